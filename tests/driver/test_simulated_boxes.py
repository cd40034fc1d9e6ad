"""The strided copies of the simulated driver, and the calls that submit boxes to it."""

import ctypes
import itertools
from ctypes import byref, c_size_t

import numpy as np
import pytest

from numba_swap.driver import abi
from numba_swap.driver.simulated import Fault
from numba_swap.driver.simulated.gpu import simulate
from numba_swap.driver.simulated.memory import Kind
from numba_swap.errors import EntryPointNotFoundError
from numba_swap.native import boxes

INVALID = abi.ERROR_INVALID_VALUE
UNWRITTEN = 4711
BATCH = abi.MEMCPY_3D_BATCH_ASYNC.name
SINGLE = "cuMemcpy3DAsync"
HOST, DEVICE, UNIFIED = abi.MEMORYTYPE_HOST, abi.MEMORYTYPE_DEVICE, abi.MEMORYTYPE_UNIFIED
EVERY = np.empty(0, np.int64)  # all boxes have form 0
SHAPE, FIELD = (3, 4, 6), (8, 10, 12)


@pytest.fixture
def gpu():
    with simulate() as simulated:
        simulated.driver.current_context()
        yield simulated


def address(array):
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return array.__cuda_array_interface__["data"][0]


def peek(array):
    """The bytes as they are now: nothing is synchronised."""
    return array._memory.copy() if hasattr(array, "_memory") else array.copy()


def numbered(gpu, shape):
    """A pinned array of bytes that are none of them 0."""
    array = gpu.pinned_array(shape, np.uint8)
    array[...] = np.arange(array.size).reshape(shape) % 255 + 1
    return array


def zeros(gpu, shape):
    array = gpu.device_array(shape, np.uint8)
    array.copy_to_device(0)
    return array


def form_of(dst, src, shape, axes=2, types=(DEVICE, HOST)):
    """The form of boxes of one shape between two arrays of three axes of bytes."""
    planes, rows, row_bytes = shape
    steps = (dst.strides[1], dst.strides[0], src.strides[1], src.strides[0])
    return np.array([[row_bytes, rows, planes, *steps, axes, *types]], np.int64)


class Boxes:
    """Boxes of SHAPE from the corners of a pinned field into the slots of a pool."""

    def __init__(self, gpu, axes=2, slots=4):
        self.gpu = gpu
        self.field = numbered(gpu, FIELD)
        self.pool = zeros(gpu, (slots, *SHAPE))
        # The last one ends with the field: no byte lies behind it.
        self.origins = [(0, 0, 0), (1, 2, 3), (5, 0, 6), (5, 6, 6)][:slots]
        self.src = np.array([address(self.field[o]) for o in self.slices()], np.uint64)
        self.dst = np.array([address(self.pool[i]) for i in range(slots)], np.uint64)
        self.form = form_of(self.pool[0], self.field, SHAPE, axes)

    def slices(self):
        return [
            tuple(slice(o, o + n) for o, n in zip(origin, SHAPE, strict=True))
            for origin in self.origins
        ]

    def expected(self, count=None):
        """The pool once so many boxes have landed."""
        pool = np.zeros((len(self.origins), *SHAPE), np.uint8)
        for i, index in enumerate(self.slices()[:count]):
            pool[i] = self.field[index]
        return pool

    def loop(self, stream):
        return self.gpu.driver.memcpy_boxes_loop(self.dst, self.src, self.form, EVERY, stream)

    def operations(self):
        words = np.zeros(1000 * boxes.OPERATION_WORDS, np.uint64)
        count = boxes.fill_operations(self.dst, self.src, self.form, EVERY, 0, len(self.dst), words)
        return (abi.Memcpy3DBatchOp * count).from_buffer_copy(words)

    def batch(self, stream, operations=None):
        operations = self.operations() if operations is None else operations
        start = ctypes.addressof(operations)
        return self.gpu.driver.memcpy_boxes_batch(start, len(operations), stream)


def raw_batch(gpu, operations, stream, *, count=None, flags=0, revision=1):
    """The C function itself; returns the code and what failIdx holds after."""
    fail_index = c_size_t(UNWRITTEN)
    first = None if operations is None else byref(operations[0])
    arguments = [len(operations or ()) if count is None else count, first]
    if revision == 2:
        return gpu.library.exports[f"{BATCH}_v2"](*arguments, flags, stream), fail_index.value
    code = gpu.library.exports[BATCH](*arguments, byref(fail_index), flags, stream)
    return code, fail_index.value


def parameters_of(dst, src, shape=SHAPE, types=(DEVICE, HOST), **changes):
    """What `cuMemcpy3DAsync` takes for one box between arrays of three axes of bytes."""
    parameters = abi.Memcpy3D(
        src_memory_type=types[1],
        src_pitch=src.strides[1],
        src_height=src.strides[0] // src.strides[1],
        dst_memory_type=types[0],
        dst_pitch=dst.strides[1],
        dst_height=dst.strides[0] // dst.strides[1],
        width_in_bytes=shape[2],
        height=shape[1],
        depth=shape[0],
    )
    for side, array, kind in (("dst", dst, types[0]), ("src", src, types[1])):
        # The other of the two is not looked at.
        setattr(parameters, f"{side}_host", address(array) if kind == HOST else 1)
        setattr(parameters, f"{side}_device", 1 if kind == HOST else address(array))
    for name, value in changes.items():
        setattr(parameters, name, value)
    return parameters


def single(gpu, parameters, stream):
    return gpu.library.exports[f"{SINGLE}_v2"](byref(parameters), stream)


# -- what is copied, and when -------------------------------------------------------------------


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("way", ["loop", "batch"])
def test_boxes_land_when_their_turn_comes(gpu, way, axes):
    given, stream = Boxes(gpu, axes), gpu.stream()
    outcome = given.loop(stream.handle) if way == "loop" else given.batch(stream.handle)
    assert outcome == ((0, 4) if way == "loop" else (0, None))
    assert not peek(given.pool).any()
    stream.synchronize()
    assert (peek(given.pool) == given.expected()).all()
    copies = {2: 1, 1: 3, 0: 12}[axes] * 4
    calls = gpu.library.calls
    if way == "batch":
        assert (calls[BATCH], calls[SINGLE], calls["cuMemcpyAsync"]) == (1, 0, 0)
    else:
        assert calls[SINGLE if axes else "cuMemcpyAsync"] == copies
        assert calls["cuMemcpyAsync" if axes else SINGLE] == 0


@pytest.mark.parametrize("revision", [1, 2])
def test_a_box_into_the_midst_of_a_field_touches_nothing_else(gpu, revision):
    field, tile = zeros(gpu, FIELD), numbered(gpu, SHAPE)
    inner = field[2:5, 3:7, 4:10]
    parameters = parameters_of(inner, tile)
    expected = np.zeros(FIELD, np.uint8)
    expected[2:5, 3:7, 4:10] = tile
    assert single(gpu, parameters, 2) == 0
    gpu.synchronize()
    assert (peek(field) == expected).all()
    field.copy_to_device(0)
    words = np.zeros(boxes.OPERATION_WORDS, np.uint64)
    columns = [np.array([address(array)], np.uint64) for array in (inner, tile)]
    boxes.fill_operations(*columns, form_of(inner, tile, SHAPE), EVERY, 0, 1, words)
    operations = (abi.Memcpy3DBatchOp * 1).from_buffer_copy(words)
    assert raw_batch(gpu, operations, 2, revision=revision) == (0, UNWRITTEN)
    gpu.synchronize()
    assert (peek(field) == expected).all()


def test_where_a_3d_copy_begins(gpu):
    field, tile = numbered(gpu, FIELD), zeros(gpu, (5, 6, 7))
    at = {"src_x_in_bytes": 4, "src_y": 3, "src_z": 2, "dst_x_in_bytes": 1, "dst_y": 2, "dst_z": 1}
    assert single(gpu, parameters_of(tile, field, **at), 0) == 0
    gpu.synchronize()
    assert (peek(tile)[1:4, 2:6, 1:7] == field[2:5, 3:7, 4:10]).all()
    assert np.count_nonzero(peek(tile)) == np.prod(SHAPE)


def test_lengths_that_are_not_specified_mean_that_nothing_lies_between(gpu):
    source, target = numbered(gpu, SHAPE), zeros(gpu, SHAPE)
    given = Boxes(gpu, slots=1)
    operations = given.operations()
    for operand, array in ((operations[0].dst, target), (operations[0].src, source)):
        operand.address, operand.row_length, operand.layer_height = address(array), 0, 0
    assert given.batch(2, operations) == (0, None)
    gpu.synchronize()
    assert (peek(target) == source).all()
    target.copy_to_device(0)
    plane, row = source[:1], source[:1, :1]
    one = parameters_of(target[:1], plane, (1, 4, 6), dst_height=0, src_height=0)
    assert single(gpu, one, 2) == 0
    gpu.synchronize()
    assert (peek(target)[:1] == plane).all()
    target.copy_to_device(0)
    one = parameters_of(target, row, (1, 1, 6), dst_height=0, src_height=0)
    one.dst_pitch = one.src_pitch = 0
    assert single(gpu, one, 2) == 0
    gpu.synchronize()
    assert (peek(target)[0, 0] == row[0, 0]).all()


def test_batch_promises_no_order(gpu):
    given = Boxes(gpu)
    operations = given.operations()
    operations[3].dst.address = operations[0].dst.address
    assert given.batch(2, operations)[0] == 0
    gpu.library.synchronize_stream(2)
    assert (peek(given.pool)[0] == given.expected()[0]).all()  # the last copy came first


@pytest.mark.parametrize(("order", "seen"), [(1, True), (2, False), (3, False)])
def test_source_access_order(gpu, order, seen):
    given, stream = Boxes(gpu), gpu.stream()
    gpu.library.enqueue(stream.handle, lambda: given.field.__setitem__(..., 7))
    operations = given.operations()
    for operation in operations:
        operation.src_access_order = order
    before = given.expected()
    assert given.batch(stream.handle, operations)[0] == 0
    stream.synchronize()
    assert (peek(given.pool) == (7 if seen else before)).all()


@pytest.mark.parametrize("side", ["dst", "src"])
def test_a_3d_copy_of_pageable_memory_is_over_when_it_returns(gpu, side):
    """With all that it depends on, as a plain copy is."""
    stream, pageable, inner = gpu.stream(), np.zeros(FIELD, np.uint8), zeros(gpu, SHAPE)
    part = pageable[2:5, 3:7, 4:10]
    gpu.library.enqueue(stream.handle, lambda: (part if side == "src" else inner._memory).fill(9))
    arrays, types = ((inner, part), (DEVICE, HOST)) if side == "src" else ((part, inner), (1, 2))
    assert single(gpu, parameters_of(*arrays, types=types), stream.handle) == 0
    assert (peek(arrays[0]) == 9).all()
    assert np.count_nonzero(pageable) == np.prod(SHAPE)


def test_a_batch_of_pageable_memory_is_put_off(gpu):
    given = Boxes(gpu)
    pageable = given.field.copy()
    given.src = given.src - address(given.field) + address(pageable)
    assert given.batch(2) == (0, None)
    assert not peek(given.pool).any()
    gpu.library.synchronize_stream(2)
    assert (peek(given.pool) == given.expected()).all()


@pytest.mark.parametrize("way", ["loop", "batch"])
def test_memory_that_is_gone_when_the_turn_comes(gpu, way):
    given, stream = Boxes(gpu), gpu.stream()
    assert (given.loop if way == "loop" else given.batch)(stream.handle)[0] == 0
    gpu.library.free(address(given.pool))
    event = gpu.driver.create_event()
    gpu.driver.record_event(event, stream.handle)
    assert gpu.driver._cuEventSynchronize(event) == abi.ERROR_ILLEGAL_ADDRESS
    gpu.library.sticky_reported = True


# -- look-up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(11, 4), (12, 4), (12, 8), (13, 0)])
def test_which_drivers_have_them(version):
    with simulate(version) as gpu:
        assert gpu.driver.has(SINGLE)
        assert gpu.driver.has(BATCH) == (version >= (12, 8))
        assert (f"{BATCH}_v2" in gpu.library.exports) == (version >= (13, 0))
        gpu.driver.current_context()
        given = Boxes(gpu)
        assert given.loop(2) == (0, 4)
        if version < (12, 8):
            with pytest.raises(EntryPointNotFoundError, match=f"{BATCH} at version 12080"):
                given.batch(2)
        else:
            assert given.batch(2) == (0, None)


def test_the_driver_gives_each_abi_at_its_version():
    with simulate((13, 0)) as gpu:
        exports, ask = gpu.library.exports, gpu.library.proc_address.ask
        for name, version, symbol, parameters in (
            (BATCH, 12080, BATCH, 5),
            (BATCH, 12990, BATCH, 5),
            (BATCH, 13000, f"{BATCH}_v2", 4),
            (SINGLE, 3020, f"{SINGLE}_v2", 2),
        ):
            address = ctypes.cast(exports[symbol], ctypes.c_void_p).value
            assert ask(name, version).address == address
            assert len(exports[symbol].argtypes) == parameters
        assert ask(BATCH, 12070).status == abi.VERSION_NOT_SUFFICIENT


# -- refusals of the batch ----------------------------------------------------------------------


def test_batch_refuses_the_legacy_stream(gpu):
    given = Boxes(gpu)
    operations = given.operations()
    assert raw_batch(gpu, operations, 0) == (INVALID, UNWRITTEN)
    assert raw_batch(gpu, operations, 1) == (INVALID, abi.SIZE_MAX)
    assert raw_batch(gpu, operations, 2) == (0, UNWRITTEN)
    assert raw_batch(gpu, operations, 0x1234) == (abi.ERROR_INVALID_HANDLE, UNWRITTEN)


def test_batch_refusals_without_an_index(gpu):
    given = Boxes(gpu)
    operations = given.operations()
    refused = (INVALID, abi.SIZE_MAX)
    assert raw_batch(gpu, operations, 2, count=0) == refused
    assert raw_batch(gpu, None, 2, count=1) == refused
    assert raw_batch(gpu, operations, 2, flags=1) == refused
    gpu.synchronize()
    assert not peek(given.pool).any()


WRONG_OPERATIONS = {
    "width 0": {"extent.width": 0},
    "height 0": {"extent.height": 0},
    "depth 0": {"extent.depth": 0},
    "no destination": {"dst.address": 0},
    "no source": {"src.address": 0},
    "wider than a row": {"dst.row_length": 5},
    "wider than a row of the source": {"src.row_length": 5},
    "higher than a layer": {"dst.layer_height": 3},
    "higher than a layer of the source": {"src.layer_height": 3},
    "a row too long": dict.fromkeys(("extent.width", "dst.row_length", "src.row_length"), 500),
    "too many planes": {"extent.depth": 10_000},
    "rows too far apart": {"src.row_length": 1 << 20},
    "rows backwards": {"src.row_length": (1 << 64) - 12},
    "no operand": {"dst.type": 0},
    "a CUDA array": {"src.type": 2},
    "no order": {"src_access_order": 0},
    "an unknown order": {"src_access_order": 4},
}


def change(operation, changes):
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = operation
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, value)


@pytest.mark.parametrize("index", [0, 2, 3])
@pytest.mark.parametrize("changes", WRONG_OPERATIONS.values(), ids=WRONG_OPERATIONS)
def test_batch_error_names_its_operation_and_submits_nothing(gpu, changes, index):
    """As driver 580 does: tests/contract/test_driver_boxes.py asks it."""
    given = Boxes(gpu)
    operations = given.operations()
    change(operations[index], changes)
    null = any(value == 0 and path.endswith("address") for path, value in changes.items())
    told = not null and changes not in (
        WRONG_OPERATIONS["a row too long"],
        WRONG_OPERATIONS["too many planes"],
        WRONG_OPERATIONS["rows too far apart"],
        WRONG_OPERATIONS["rows backwards"],
    )
    assert raw_batch(gpu, operations, 2) == (INVALID, index if told else abi.SIZE_MAX)
    assert given.batch(2, operations) == (INVALID, index if told else None)
    gpu.synchronize()
    # The same batch was given twice; those before a null pointer land.
    assert (peek(given.pool) == given.expected(index if null else 0)).all()


def test_a_box_larger_than_any_memory_is_refused_wherever_it_begins(gpu):
    """Also in pageable memory, of which the end is not known."""
    given, pageable = Boxes(gpu, slots=1), np.zeros(FIELD, np.uint8)
    operations = given.operations()
    change(operations[0], {"src.address": address(pageable), "src.row_length": (1 << 64) - 12})
    assert given.batch(2, operations) == (INVALID, None)


def test_four_parameter_batch_fails_without_an_index(gpu):
    given = Boxes(gpu)
    operations = given.operations()
    operations[2].extent.width = 0
    assert raw_batch(gpu, operations, 2, revision=2) == (INVALID, UNWRITTEN)
    gpu.synchronize()
    assert not peek(given.pool).any()


@pytest.mark.parametrize("way", ["single", "batch"])
def test_only_the_bytes_of_a_box_must_be_in_its_allocation(gpu, way):
    """Behind the last row the pitch may reach out of it; the last row itself may not."""
    shape = (2, 3, 4)
    target = zeros(gpu, shape)
    for missing, code in ((0, 0), (1, INVALID)):
        # Rows of 16 bytes, 5 a plane; the last row has 4 bytes, or 3.
        memory = gpu.pinned_array(((3 + 2) + 2) * 16 + 4 - missing, np.uint8)
        memory[:] = np.arange(1, memory.size + 1)
        if way == "single":
            parameters = parameters_of(target, target, shape, src_host=address(memory))
            parameters.src_memory_type = HOST
            parameters.src_pitch, parameters.src_height = 16, 5
            assert single(gpu, parameters, 2) == code
        else:
            operations = (abi.Memcpy3DBatchOp * 1)()
            change(operations[0], {"src_access_order": 1, "dst.type": 1, "src.type": 1})
            change(operations[0], {"extent.width": 4, "extent.height": 3, "extent.depth": 2})
            change(operations[0], {"dst.address": address(target), "src.address": address(memory)})
            change(operations[0], {"src.row_length": 16, "src.layer_height": 5})
            told = abi.SIZE_MAX if code else UNWRITTEN
            assert raw_batch(gpu, operations, 2) == (code, told)
        gpu.synchronize()
        if not code:
            rows = [[memory[(5 * k + j) * 16 :][:4] for j in range(3)] for k in range(2)]
            assert (peek(target) == np.array(rows)).all()


def test_a_box_across_two_registrations_is_refused(gpu):
    host, target = np.ones((4, 8), np.uint8), zeros(gpu, (1, 4, 6))
    gpu.library.register_host(host[:2])
    gpu.library.register_host(host[2:])
    parameters = parameters_of(target, host[None], (1, 4, 6))
    assert single(gpu, parameters, 2) == INVALID


# -- refusals of the 3-D copy -------------------------------------------------------------------

WRONG_PARAMETERS = {
    "rows overlap": {"dst_pitch": 5},
    "rows of the source overlap": {"src_pitch": 5},
    "wider than a row, counted from where it begins": {"src_x_in_bytes": 7},
    "planes overlap": {"dst_height": 3},
    "planes of the source overlap": {"src_height": 3},
    "higher than a plane, counted from where it begins": {"src_y": 7},
    "no pitch": {"src_pitch": 0},
    "no height": {"dst_height": 0},
    "pitch too long": {"src_pitch": 1 << 31},
    "rows backwards": {"src_pitch": (1 << 64) - 12},
    "no destination": {"dst_device": 0},
    "no source": {"src_host": 0},
    "too many planes": {"depth": 10_000},
    "begins too late": {"src_z": 10_000},
    "level of detail": {"src_lod": 1},
    "reserved": {"reserved1": 1},
    "no memory type": {"src_memory_type": 0},
    "a CUDA array": {"dst_memory_type": 3},
}


@pytest.mark.parametrize("changes", WRONG_PARAMETERS.values(), ids=WRONG_PARAMETERS)
def test_3d_copy_refusals(gpu, changes):
    field, tile = numbered(gpu, FIELD), zeros(gpu, SHAPE)
    assert single(gpu, parameters_of(tile, field, **changes), 2) == INVALID
    gpu.synchronize()
    assert not peek(tile).any()


def test_a_pitch_of_a_single_row_has_the_same_limit(gpu):
    field, tile = numbered(gpu, (1, 1, 6)), zeros(gpu, (1, 1, 6))
    for pitch, code in (((1 << 31) - 1, 0), (1 << 31, INVALID)):
        assert single(gpu, parameters_of(tile, field, (1, 1, 6), src_pitch=pitch), 2) == code


@pytest.mark.parametrize("extent", ["width_in_bytes", "height", "depth"])
def test_3d_copy_of_nothing(gpu, extent):
    field, tile = numbered(gpu, FIELD), zeros(gpu, SHAPE)
    assert single(gpu, parameters_of(tile, field, **{extent: 0}), 2) == 0
    gpu.synchronize()
    assert not peek(tile).any()


def test_no_parameters_and_no_stream(gpu):
    field, tile = numbered(gpu, SHAPE), zeros(gpu, SHAPE)
    function = gpu.library.exports[f"{SINGLE}_v2"]
    assert function(None, 2) == INVALID
    assert function(byref(parameters_of(tile, field)), 0x1234) == abi.ERROR_INVALID_HANDLE
    gpu.driver._cuCtxSetCurrent(None)
    assert function(byref(parameters_of(tile, field)), 2) == abi.ERROR_INVALID_CONTEXT


def memory_of(gpu, kind):
    if kind == "pageable":
        return np.zeros(SHAPE, np.uint8)
    if kind is Kind.REGISTERED:
        array = np.zeros(SHAPE, np.uint8)
        gpu.library.register_host(array)
        return array
    make = {
        Kind.DEVICE: gpu.device_array,
        Kind.PINNED: gpu.pinned_array,
        Kind.MANAGED: gpu.managed_array,
    }
    return make[kind](SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("memory_type", "kinds"),
    [
        (HOST, {"pageable", *Kind}),
        (DEVICE, {Kind.DEVICE, Kind.MANAGED}),
        (UNIFIED, {"pageable", *Kind}),
    ],
)
@pytest.mark.parametrize("kind", ["pageable", *Kind])
def test_memory_is_called_what_it_is(gpu, memory_type, kinds, kind):
    there, here = memory_of(gpu, kind), gpu.device_array(SHAPE, np.uint8)
    code = 0 if kind in kinds else INVALID
    assert single(gpu, parameters_of(here, there, types=(DEVICE, memory_type)), 2) == code
    assert single(gpu, parameters_of(there, here, types=(memory_type, DEVICE)), 2) == code


# -- capture ------------------------------------------------------------------------------------


def test_a_3d_copy_is_captured_and_a_batch_vanishes(gpu):
    given, stream, library = Boxes(gpu), gpu.stream(), gpu.library
    library.begin_capture(stream.handle)
    assert given.loop(stream.handle) == (0, 4)
    operations = given.operations()
    refused = (abi.ERROR_STREAM_CAPTURE_UNSUPPORTED, UNWRITTEN)
    assert raw_batch(gpu, operations, stream.handle) == refused
    graph = library.end_capture(stream.handle)
    assert len(graph.nodes) == 4
    gpu.synchronize()
    assert not peek(given.pool).any()
    for _ in range(2):
        given.pool.copy_to_device(0)
        library.launch(graph, stream.handle)
        stream.synchronize()
        assert (peek(given.pool) == given.expected()).all()


def test_a_captured_copy_of_pageable_memory_waits_for_its_launch(gpu):
    tile, pageable, stream = zeros(gpu, SHAPE), np.ones(SHAPE, np.uint8), gpu.stream()
    gpu.library.begin_capture(stream.handle)
    assert single(gpu, parameters_of(tile, pageable), stream.handle) == 0
    graph = gpu.library.end_capture(stream.handle)
    assert not peek(tile).any()
    gpu.library.launch(graph, stream.handle)
    gpu.synchronize()
    assert peek(tile).all()


# -- what the calls tell ------------------------------------------------------------------------


def test_the_loop_tells_the_box_that_was_refused(gpu):
    given = Boxes(gpu)
    given.src[2] = address(given.field) + given.field.nbytes - 10
    assert given.loop(2) == (INVALID, 2)
    gpu.synchronize()
    assert (peek(given.pool) == given.expected(2)).all()


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_boxes_of_several_forms(gpu, axes):
    given = Boxes(gpu, axes)
    half = given.form.copy()
    half[0, 0] = 3
    given.form = np.concatenate([given.form, half])
    which = np.array([0, 1, 0, 1])
    expected = given.expected()
    expected[1::2, ..., 3:] = 0
    loop = gpu.driver.memcpy_boxes_loop(given.dst, given.src, given.form, which, 2)
    assert loop == (0, 4)
    gpu.synchronize()
    assert (peek(given.pool) == expected).all()


def test_faults_of_the_loop(gpu):
    given, faults = Boxes(gpu, axes=1), gpu.library.faults
    faults.add(Fault(SINGLE, 719, call=5))
    assert given.loop(2) == (719, 1)  # the second plane of the second box
    gpu.synchronize()
    expected = given.expected(2)
    expected[1, 1:] = 0
    assert (peek(given.pool) == expected).all()
    assert [fault.function for fault in faults.struck] == [SINGLE]
    given.form[0, boxes.DRIVER_AXES] = 0
    faults.add(Fault("cuMemcpyAsync", 2, call=13))
    assert given.loop(2) == (2, 1)


@pytest.mark.parametrize(("index", "told"), [(None, None), (3, 3), (4, None), (abi.SIZE_MAX, None)])
def test_faults_of_the_batch(gpu, index, told):
    given = Boxes(gpu)
    gpu.library.faults.add(Fault(BATCH, 2, copies=3, fail_index=index))
    assert given.batch(2) == (2, told)
    gpu.synchronize()
    assert (peek(given.pool) == given.expected(3)).all()
    assert given.batch(2) == (0, None)


def test_faults_of_the_newer_abi_have_no_index(gpu):
    given = Boxes(gpu)
    operations = given.operations()
    gpu.library.faults.add(Fault(BATCH, 2, copies=1, fail_index=1))
    assert raw_batch(gpu, operations, 2, revision=2) == (2, UNWRITTEN)
    gpu.synchronize()
    assert (peek(given.pool) == given.expected(1)).all()


def test_a_sticky_fault_breaks_the_context(gpu):
    given = Boxes(gpu)
    gpu.library.faults.add(Fault(SINGLE, 719, sticky=True))
    assert given.loop(2) == (719, 0)
    assert given.batch(2) == (719, None)


def test_an_index_without_an_error_is_none(gpu):
    """What real drivers may do and the simulated one does not."""
    operations, given = Boxes(gpu).operations(), Boxes(gpu)

    def batch(count, first, fail_index, flags, stream):
        fail_index._obj.value = 1
        return 0

    gpu.driver._cuMemcpy3DBatchAsync = batch
    assert given.batch(2, operations) == (0, None)


# -- against NumPy ------------------------------------------------------------------------------


def test_every_small_box_against_slicing(gpu):
    """All shapes up to 3 x 3 x 3, at several places, by one call each."""
    field = numbered(gpu, (4, 5, 6))
    shapes = list(itertools.product((1, 2, 3), repeat=3))
    for way in ("loop", "batch"):
        target = zeros(gpu, (len(shapes), 3, 4, 5))
        expected = np.zeros((len(shapes), 3, 4, 5), np.uint8)
        forms, dst, src = [], [], []
        for i, shape in enumerate(shapes):
            origin = (i % 2, i % 3, i % 4)
            index = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
            expected[i][: shape[0], : shape[1], 1 : 1 + shape[2]] = field[index]
            forms.append(form_of(target[i], field, shape))
            dst.append(address(target[i, :, :, 1:]))
            src.append(address(field[index]))
        columns = np.array(dst, np.uint64), np.array(src, np.uint64), np.concatenate(forms)
        which = np.arange(len(shapes))
        if way == "loop":
            assert gpu.driver.memcpy_boxes_loop(*columns, which, 2) == (0, len(shapes))
        else:
            words = np.zeros(len(shapes) * boxes.OPERATION_WORDS, np.uint64)
            count = boxes.fill_operations(*columns, which, 0, len(shapes), words)
            outcome = gpu.driver.memcpy_boxes_batch(words.ctypes.data, count, 2)
            assert (count, outcome) == (len(shapes), (0, None))
        gpu.synchronize()
        assert (peek(target) == expected).all(), way
