"""What is counted on of strided copies holds on a real driver as on the simulated one."""

import ctypes
from ctypes import byref, c_size_t

import numpy as np
import pytest
from machines import MACHINES, MEMORY_KINDS, address_of, capture, make_array, read_array

from numba_swap.driver import abi
from numba_swap.driver.current import current_driver
from numba_swap.native import boxes

HOST, DEVICE, UNIFIED = abi.MEMORYTYPE_HOST, abi.MEMORYTYPE_DEVICE, abi.MEMORYTYPE_UNIFIED
TYPES = {"device": DEVICE, "pinned": HOST, "pageable": HOST, "managed": UNIFIED}
INVALID = abi.ERROR_INVALID_VALUE
UNWRITTEN = 4711
EVERY = np.empty(0, np.int64)  # all boxes have form 0
FIELD, TILE = (9, 10, 12), (3, 4, 6)
# In corners of the field, the first and the last bytes of it among them.
ORIGINS = [(0, 0, 0), (3, 5, 3), (6, 0, 6), (6, 6, 6)]
BATCH = abi.MEMCPY_3D_BATCH_ASYNC.name


@pytest.fixture(params=MACHINES)
def case(request):
    return request.param


@pytest.fixture
def driver(gpu):
    driver = current_driver()
    driver.current_context()
    return driver


@pytest.fixture
def batching(driver):
    """The driver, if it has the batch of strided copies."""
    if not driver.has(BATCH):
        pytest.skip(f"this driver, {driver.version}, has no {BATCH}")
    return driver


def handle_of(stream):
    return stream if isinstance(stream, int) else stream.__cuda_stream__()[1]


class Boxes:
    """Four boxes between a field and four tiles; `to_field` says which way."""

    def __init__(self, gpu, dst="device", src="pinned", to_field=False, axes=2, types=None):
        self.gpu, self.to_field = gpu, to_field
        shapes = (FIELD, (4, *TILE)) if to_field else ((4, *TILE), FIELD)
        self.content = np.arange(np.prod(shapes[1]), dtype=np.int64).reshape(shapes[1]) % 255 + 1
        self.content = self.content.astype(np.uint8)
        self.dst = make_array(gpu, dst, np.zeros(shapes[0], np.uint8))
        self.src = make_array(gpu, src, self.content)
        field, tiles = (self.dst, self.src) if to_field else (self.src, self.dst)
        field_at, tiles_at = address_of(field), address_of(tiles)
        (row, plane), (tile_row, tile_plane) = (12, 120), (6, 24)
        in_field = [field_at + z * plane + y * row + x for z, y, x in ORIGINS]
        in_tiles = [tiles_at + i * 72 for i in range(4)]
        pair = (in_field, in_tiles) if to_field else (in_tiles, in_field)
        self.columns = [np.array(column, np.uint64) for column in pair]
        steps = (row, plane, tile_row, tile_plane)
        if not to_field:
            steps = (tile_row, tile_plane, row, plane)
        types = (TYPES[dst], TYPES[src]) if types is None else types
        self.form = np.array([[6, 4, 3, *steps, axes, *types]], np.int64)

    def expected(self, count=4):
        content = np.zeros(self.dst.shape, np.uint8)
        for i, origin in enumerate(ORIGINS[:count]):
            index = tuple(slice(o, o + n) for o, n in zip(origin, TILE, strict=True))
            if self.to_field:
                content[index] = self.content[i]
            else:
                content[i] = self.content[index]
        return content

    def landed(self):
        self.gpu.synchronize()
        return read_array(self.gpu, self.dst)

    def loop(self, driver, stream):
        return driver.memcpy_boxes_loop(*self.columns, self.form, EVERY, handle_of(stream))

    def operations(self):
        words = np.zeros(64 * boxes.OPERATION_WORDS, np.uint64)
        count = boxes.fill_operations(*self.columns, self.form, EVERY, 0, 4, words)
        return (abi.Memcpy3DBatchOp * count).from_buffer_copy(words)

    def batch(self, driver, stream, operations=None):
        operations = self.operations() if operations is None else operations
        return driver.memcpy_boxes_batch(
            ctypes.addressof(operations), len(operations), handle_of(stream)
        )


def change(structure, changes):
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = structure
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, value)


# -- what is copied -----------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("to_field", [False, True])
@pytest.mark.parametrize("dst", MEMORY_KINDS)
@pytest.mark.parametrize("src", MEMORY_KINDS)
def test_boxes_one_by_one(gpu, driver, dst, src, to_field, axes):
    given = Boxes(gpu, dst, src, to_field, axes)
    assert given.loop(driver, gpu.stream()) == (0, 4)
    assert (given.landed() == given.expected()).all()


@pytest.mark.parametrize("dst", MEMORY_KINDS)
@pytest.mark.parametrize("src", MEMORY_KINDS)
def test_any_memory_may_be_called_unified(gpu, driver, dst, src):
    given = Boxes(gpu, dst, src, types=(UNIFIED, UNIFIED))
    assert given.loop(driver, gpu.stream()) == (0, 4)
    assert (given.landed() == given.expected()).all()


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("to_field", [False, True])
@pytest.mark.parametrize("dst", MEMORY_KINDS)
@pytest.mark.parametrize("src", MEMORY_KINDS)
def test_boxes_in_one_call(gpu, batching, dst, src, to_field, axes):
    given = Boxes(gpu, dst, src, to_field, axes)
    assert given.batch(batching, gpu.stream()) == (0, None)
    assert (given.landed() == given.expected()).all()


def test_the_legacy_stream_takes_single_copies_only(gpu, batching):
    given = Boxes(gpu)
    for stream in (0, abi.STREAM_LEGACY):
        assert given.batch(batching, stream) == (INVALID, None)
    assert not given.landed().any()
    for stream in (0, abi.STREAM_LEGACY):
        assert given.loop(batching, stream) == (0, 4)
    assert (given.landed() == given.expected()).all()
    assert given.batch(batching, abi.STREAM_PER_THREAD) == (0, None)


def test_single_copies_are_captured(gpu, driver):
    given, stream, outcomes = Boxes(gpu), gpu.stream(), []
    work = lambda: outcomes.append(given.loop(driver, stream))  # noqa: E731
    replay = capture(gpu, stream, work)
    assert outcomes == [(0, 4)]
    assert not given.landed().any()
    replay()
    assert (given.landed() == given.expected()).all()


def test_a_batch_vanishes_from_a_capture(gpu, batching):
    given, stream, outcomes = Boxes(gpu), gpu.stream(), []
    work = lambda: outcomes.append(given.batch(batching, stream))  # noqa: E731
    replay = capture(gpu, stream, work)
    assert outcomes == [(abi.ERROR_STREAM_CAPTURE_UNSUPPORTED, None)]
    replay()
    assert not given.landed().any()


# -- refusals -----------------------------------------------------------------------------------

WRONG_OPERATIONS = {
    "width 0": {"extent.width": 0},
    "height 0": {"extent.height": 0},
    "depth 0": {"extent.depth": 0},
    "wider than a row": {"dst.row_length": 5},
    "wider than a row of the source": {"src.row_length": 5},
    "higher than a layer": {"dst.layer_height": 3},
    "higher than a layer of the source": {"src.layer_height": 3},
}


@pytest.mark.parametrize("changes", WRONG_OPERATIONS.values(), ids=WRONG_OPERATIONS)
def test_the_operation_at_fault_is_told_and_nothing_lands(gpu, batching, changes):
    """Unlike in `cuMemcpyBatchAsync`, where those before it land (H100, driver 580)."""
    given, stream = Boxes(gpu), gpu.stream()
    operations = given.operations()
    change(operations[2], changes)
    assert given.batch(batching, stream, operations) == (INVALID, 2)
    assert not given.landed().any()


def test_a_box_out_of_its_allocation_is_refused_without_telling_where(gpu, batching):
    """Those before it land, or none."""
    given, stream = Boxes(gpu), gpu.stream()
    operations = given.operations()
    change(operations[2], {"extent.depth": 1 << 20})
    assert given.batch(batching, stream, operations) == (INVALID, None)
    landed = given.landed()
    assert any((landed == given.expected(count)).all() for count in (0, 2))


@pytest.mark.parametrize("side", ["dst", "src"])
def test_a_null_pointer_is_not_told_and_those_before_land(gpu, batching, side):
    given, stream = Boxes(gpu), gpu.stream()
    operations = given.operations()
    change(operations[2], {f"{side}.address": 0})
    assert given.batch(batching, stream, operations) == (INVALID, None)
    assert (given.landed() == given.expected(2)).all()


def test_faults_of_no_single_operation(gpu, batching):
    given, stream = Boxes(gpu), gpu.stream()
    operations = given.operations()
    for count, flags in ((0, 0), (4, 1)):
        fail_index = c_size_t(UNWRITTEN)
        code = batching._cuMemcpy3DBatchAsync(
            count, byref(operations[0]), byref(fail_index), flags, handle_of(stream)
        )
        assert code == INVALID
        assert fail_index.value in (abi.SIZE_MAX, UNWRITTEN)
    operations[1].src_access_order = 0
    assert given.batch(batching, stream, operations)[0] == INVALID


WRONG_FORMS = {
    "rows overlap": {boxes.DST_PITCH: 5, boxes.DST_PLANE: 20},
    "rows of the source overlap": {boxes.SRC_PITCH: 5, boxes.SRC_PLANE: 50},
    "planes overlap": {boxes.DST_PLANE: 18},
    "planes of the source overlap": {boxes.SRC_PLANE: 36},
    "pitch too long": {boxes.SRC_PITCH: 1 << 31, boxes.SRC_PLANE: 4 << 31},
    "rows backwards": {boxes.SRC_PITCH: -12, boxes.SRC_PLANE: -120},
    "out of its allocation": {boxes.PLANES: 1 << 20},
}


@pytest.mark.parametrize("changes", WRONG_FORMS.values(), ids=WRONG_FORMS)
def test_single_copies_that_the_driver_refuses(gpu, driver, changes):
    given = Boxes(gpu)
    for column, value in changes.items():
        given.form[0, column] = value
    assert given.loop(driver, gpu.stream()) == (INVALID, 0)
    assert not given.landed().any()


def test_a_device_address_may_be_called_one_of_the_host(gpu, driver):
    given = Boxes(gpu)
    given.form[0, boxes.DST_TYPE] = HOST
    assert given.loop(driver, gpu.stream()) == (0, 4)
    assert (given.landed() == given.expected()).all()


# -- look-up ------------------------------------------------------------------------------------


def test_the_requested_version_is_the_abi(gpu, batching):
    library = batching.library
    exports = library.exports if library.simulated else ctypes.CDLL(library.path)

    def exported(symbol):
        function = exports[symbol] if library.simulated else getattr(exports, symbol)
        return ctypes.cast(function, ctypes.c_void_p).value

    def given(name, version):
        return library.proc_address.ask(name, version).address

    assert given("cuMemcpy3DAsync", 3020) == exported("cuMemcpy3DAsync_v2")
    assert given(BATCH, 12080) == exported(BATCH) == batching.address(BATCH)
    if batching.version >= (13, 0):
        assert given(BATCH, 13000) == exported(f"{BATCH}_v2") != exported(BATCH)
