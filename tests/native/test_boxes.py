"""What compiled code hands to the driver for boxes, read back through the structures of `abi`."""

import ctypes
import itertools
from ctypes import POINTER, c_int, c_size_t, c_uint64, c_void_p

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_swap.driver import abi
from numba_swap.native import boxes

STREAM = 0x5EC2E7
NO_FORMS = np.empty(0, np.int64)


def form(
    row_bytes=12,
    rows=5,
    planes=3,
    dst_pitch=16,
    dst_plane=160,
    src_pitch=32,
    src_plane=320,
    axes=2,
    dst_type=2,
    src_type=1,
):
    columns = (row_bytes, rows, planes, dst_pitch, dst_plane, src_pitch, src_plane)
    return [*columns, axes, dst_type, src_type]


def column(*values):
    return np.array(values, np.uint64)


class Recorder:
    """Two C functions that note what they are called with; the call number `refused` fails."""

    def __init__(self, refused=None):
        self.calls = []
        self.refused = refused

        def memcpy_3d(parameters, stream):
            return self._note(abi.Memcpy3D.from_buffer_copy(parameters[0]), stream)

        def memcpy(dst, src, nbytes, stream):
            return self._note((dst, src, nbytes), stream)

        pointer = POINTER(abi.Memcpy3D)
        self._keep = (
            ctypes.CFUNCTYPE(c_int, pointer, c_void_p)(memcpy_3d),
            ctypes.CFUNCTYPE(c_int, c_uint64, c_uint64, c_size_t, c_void_p)(memcpy),
        )
        self.functions = [ctypes.cast(function, c_void_p).value for function in self._keep]

    def _note(self, what, stream):
        assert stream == STREAM
        self.calls.append(what)
        return 77 if len(self.calls) - 1 == self.refused else 0

    def run(self, dst, src, forms, which=NO_FORMS):
        return boxes.memcpy_loop(*self.functions, dst, src, np.array(forms), which, STREAM)


def rows_of_driver_copy(dst, src, extent, dst_pitch, dst_height, src_pitch, src_height):
    """(dst, src, nbytes) of each row of one strided copy, as ``cuda.h`` defines them."""
    width, height, depth = extent
    return [
        (
            dst + (plane * dst_height + row) * dst_pitch,
            src + (plane * src_height + row) * src_pitch,
            width,
        )
        for plane in range(depth)
        for row in range(height)
    ]


def rows_of_call(call):
    if isinstance(call, tuple):
        return [call]
    extent = (call.width_in_bytes, call.height, call.depth)
    dst = call.dst_host if call.dst_memory_type == abi.MEMORYTYPE_HOST else call.dst_device
    src = call.src_host if call.src_memory_type == abi.MEMORYTYPE_HOST else call.src_device
    pitches = (call.dst_pitch, call.dst_height, call.src_pitch, call.src_height)
    return rows_of_driver_copy(dst, src, extent, *pitches)


def rows_of_operation(operation):
    dst, src, extent = operation.dst, operation.src, operation.extent
    return rows_of_driver_copy(
        *(dst.address, src.address, (extent.width, extent.height, extent.depth)),
        *(dst.row_length, dst.layer_height, src.row_length, src.layer_height),
    )


def rows_of_box(dst, src, of):
    row_bytes, rows, planes, dst_pitch, dst_plane, src_pitch, src_plane, *_ = map(int, of)
    return [
        (
            int(dst) + plane * dst_plane + row * dst_pitch,
            int(src) + plane * src_plane + row * src_pitch,
            row_bytes,
        )
        for plane in range(planes)
        for row in range(rows)
    ]


def operations_of(dst, src, forms, which=NO_FORMS, start=0, stop=None):
    words = np.full(4096 * boxes.OPERATION_WORDS, 0xABAB_ABAB_ABAB_ABAB, np.uint64)
    stop = len(dst) if stop is None else stop
    count = boxes.fill_operations(dst, src, np.array(forms), which, start, stop, words)
    # Not a word behind the last is touched.
    assert (words[count * boxes.OPERATION_WORDS :] == 0xABAB_ABAB_ABAB_ABAB).all()
    return list((abi.Memcpy3DBatchOp * count).from_buffer_copy(words))


# -- all that is handed over --------------------------------------------------------------------


def test_sizes_of_structures():
    assert ctypes.sizeof(abi.Memcpy3D) == 200
    assert ctypes.sizeof(abi.Memcpy3DBatchOp) == 8 * boxes.OPERATION_WORDS
    assert len(form()) == boxes.FORM_COLUMNS


@pytest.mark.parametrize(("dst_type", "src_type"), [(1, 2), (2, 1), (4, 4), (2, 4)])
def test_every_field_of_a_3d_copy(dst_type, src_type):
    recorder = Recorder()
    only = form(dst_type=dst_type, src_type=src_type)
    assert recorder.run(column(1000), column(9000), [only]) == (0, 1)
    (call,) = recorder.calls
    found = {name: getattr(call, name) for name, _ in call._fields_}
    assert found == {
        **dict.fromkeys(("src_x_in_bytes", "src_y", "src_z", "src_lod"), 0),
        **dict.fromkeys(("dst_x_in_bytes", "dst_y", "dst_z", "dst_lod"), 0),
        **dict.fromkeys(("src_array", "dst_array", "reserved0", "reserved1"), None),
        "src_memory_type": src_type,
        "src_host": 9000,
        "src_device": 9000,
        "src_pitch": 32,
        "src_height": 10,
        "dst_memory_type": dst_type,
        "dst_host": 1000,
        "dst_device": 1000,
        "dst_pitch": 16,
        "dst_height": 10,
        "width_in_bytes": 12,
        "height": 5,
        "depth": 3,
    }


def test_every_field_of_an_operation():
    (operation,) = operations_of(column(1000), column(9000), [form()])
    extent = operation.extent
    assert (extent.width, extent.height, extent.depth) == (12, 5, 3)
    assert (operation.src_access_order, operation.flags) == (abi.SRC_ACCESS_ORDER_STREAM, 0)
    expected = {"dst": (1000, 16, 10), "src": (9000, 32, 10)}
    for name, values in expected.items():
        operand = getattr(operation, name)
        assert operand.type == abi.OPERAND_TYPE_POINTER
        assert (operand.address, operand.row_length, operand.layer_height) == values
        assert (operand.loc_hint.type, operand.loc_hint.id) == (0, 0)


@pytest.mark.parametrize(("axes", "calls"), [(2, 1), (1, 3), (0, 15)])
def test_a_box_takes_as_many_copies_as_the_driver_needs(axes, calls):
    only = form(axes=axes)
    recorder = Recorder()
    recorder.run(column(1000), column(9000), [only])
    operations = operations_of(column(1000), column(9000), [only])
    assert len(recorder.calls) == len(operations) == calls
    assert all(isinstance(call, tuple) == (axes == 0) for call in recorder.calls)
    if axes == 1:
        assert all((call.height, call.depth) == (5, 1) for call in recorder.calls)


def test_the_plane_of_a_single_one_is_not_read():
    """Nothing follows it, so any value may stand there; no height is below the number of rows."""
    for axes in (1, 2):
        only = form(planes=1, dst_plane=0, src_plane=-3, axes=axes)
        recorder = Recorder()
        assert recorder.run(column(1000), column(9000), [only]) == (0, 1)
        operations = operations_of(column(1000), column(9000), [only])
        assert rows_of_call(recorder.calls[0]) == rows_of_box(1000, 9000, only)
        assert rows_of_operation(operations[0]) == rows_of_box(1000, 9000, only)
        assert recorder.calls[0].src_height == operations[0].src.layer_height == 5


@st.composite
def forms(draw):
    """One form, of such strides as it may have: with 2 or 1 those that the driver knows."""
    axes = draw(st.integers(0, 2))
    row_bytes, rows, planes = (draw(st.integers(1, 5)) for _ in range(3))
    steps = []
    for _ in range(2):
        pitch = row_bytes + draw(st.integers(0, 9))
        plane = pitch * (rows + draw(st.integers(0, 3)))
        if axes == 0:
            pitch = draw(st.integers(-50, 50))
        if axes <= 1:
            plane = draw(st.integers(-500, 500))
        steps += [pitch, plane]
    dst_pitch, dst_plane, src_pitch, src_plane = steps
    types = draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])))
    return [row_bytes, rows, planes, dst_pitch, dst_plane, src_pitch, src_plane, axes, *types]


# Also addresses of the upper half, which are negative as int64.
addresses = st.one_of(st.integers(1 << 12, 1 << 47), st.integers(1 << 63, (1 << 64) - (1 << 20)))


@given(st.data())
def test_boxes_are_their_rows_whatever_their_form(data):
    table = data.draw(st.lists(forms(), min_size=1, max_size=3))
    pairs = data.draw(st.lists(st.tuples(addresses, addresses), max_size=4))
    dst, src = (column(*(pair[i] for pair in pairs)) for i in (0, 1))
    one = data.draw(st.booleans())
    which = [0 if one else data.draw(st.integers(0, len(table) - 1)) for _ in pairs]
    named = NO_FORMS if one else np.array(which, np.int64)
    expected = [rows_of_box(*pair, table[index]) for pair, index in zip(pairs, which, strict=True)]

    recorder = Recorder()
    assert recorder.run(dst, src, table, named) == (0, len(pairs))
    rows = [row for call in recorder.calls for row in rows_of_call(call)]
    assert rows == list(itertools.chain(*expected))
    start = data.draw(st.integers(0, len(pairs)))
    stop = data.draw(st.integers(start, len(pairs)))
    operations = operations_of(dst, src, table, named, start, stop)
    rows = [row for operation in operations for row in rows_of_operation(operation)]
    assert rows == list(itertools.chain(*expected[start:stop]))


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("where", ["first", "last"])
def test_the_box_that_is_refused(axes, where):
    """Whichever of its copies the driver refuses; nothing is submitted after it."""
    of_a_box = {2: 1, 1: 3, 0: 15}[axes]
    refused = 2 * of_a_box + (0 if where == "first" else of_a_box - 1)
    recorder = Recorder(refused)
    dst, src = column(1000, 2000, 3000, 4000), column(9000, 10_000, 11_000, 12_000)
    assert recorder.run(dst, src, [form(axes=axes)]) == (77, 2)
    assert len(recorder.calls) == refused + 1


def test_no_boxes():
    recorder = Recorder()
    assert recorder.run(column(), column(), [form()]) == (0, 0)
    assert operations_of(column(), column(), [form()]) == []
