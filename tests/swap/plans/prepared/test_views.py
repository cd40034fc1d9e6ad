"""The short way of a copy between views like earlier ones: same results, and left for the rest."""

import gc
import itertools
import weakref

import numpy as np
import pytest
from machines import capture, make_array, read_array

import numba_swap as ns
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import enter_driver, leave_driver
from numba_swap.driver.simulated import Fault, SimulatedLibrary
from numba_swap.driver.simulated.gpu import SimulatedGPU
from numba_swap.driver.simulated.memory import Kind
from numba_swap.swap.plans.prepared.views import PreparedViews

FIELD, TILE = (12, 14, 40), (3, 5, 17)


@pytest.fixture(autouse=True)
def _nothing_of_others():
    ns.plan_cache.clear()


@pytest.fixture
def taken(monkeypatch):
    """Counts of the short way: taken, and left to the long one."""
    counts = {True: 0, False: 0}
    copy = PreparedViews.copy

    def count(self, *arguments):
        try:
            transfer = copy(self, *arguments)
        except ns.DriverCallError:
            counts["refused"] = counts.get("refused", 0) + 1
            raise
        counts[transfer is not None] += 1
        return transfer

    monkeypatch.setattr(PreparedViews, "copy", count)
    return counts


def box_at(corner, shape=TILE):
    return tuple(slice(i, i + n) for i, n in zip(corner, shape, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("steps", [(1, 1, 1), (-1, 1, 1), (1, -1, 1)], ids=str)
def test_boxes_of_a_field_arrive_every_time(case, dtype, steps, rng, taken):
    content = rng.integers(0, 200, FIELD).astype(dtype)
    expected = content.copy()
    turn = tuple(slice(None, None, step) for step in steps)
    room = np.array(FIELD) - TILE + 1
    with case.open() as gpu:
        field, back = (make_array(gpu, "pinned", content) for _ in range(2))
        tiles = [gpu.device_array(TILE, dtype) for _ in range(2)]
        stream = gpu.stream()
        for i in range(40):
            tile, box, other = tiles[i % 2], box_at(rng.integers(room)), box_at(rng.integers(room))
            ns.copy(field[box][turn], tile, stream=stream, mode=case.mode).wait()
            assert np.array_equal(read_array(gpu, tile), content[box][turn])
            transfer = ns.copy(tile, back[other], stream=stream, mode=case.mode)
            transfer.wait()
            expected[other] = content[box][turn]
            assert np.array_equal(back, expected)
            assert transfer.nbytes == content[box].nbytes
    if case.mode == "batch":
        assert taken[True] == 0
    elif case.mode != "auto":  # at most 16 ways to be aligned there, and back, twice the long way
        assert taken[True] >= 80 - 4 * (16 // np.dtype(dtype).itemsize) - 2


@pytest.fixture
def pair():
    """Two views that were copied between before, in a stream."""
    with ns.simulate() as gpu:
        field, tile = gpu.pinned_array(FIELD, np.float32), gpu.device_array(TILE, np.float32)
        field[:] = np.arange(field.size).reshape(FIELD)
        stream = gpu.stream()
        for _ in range(3):
            ns.copy(field[box_at((1, 2, 4))], tile, stream=stream).wait()
        yield gpu, field, tile, stream


BOX = box_at((5, 6, 8))


def test_one_long_way_for_views_that_lie_alike(pair, taken):
    _, field, tile, stream = pair
    before = ns.plan_cache.info()
    for z, y in itertools.product(range(4), range(5)):
        ns.copy(field[box_at((z, y, 4))], tile, stream=stream).wait()
        assert np.array_equal(tile.copy_to_host(), field[box_at((z, y, 4))])
    assert taken == {True: 20, False: 0}
    info = ns.plan_cache.info()
    assert (info.hits - before.hits, info.misses - before.misses) == (20, 0)


def test_the_driver_is_asked_once_for_each_side(pair):
    gpu, field, tile, stream = pair
    calls = gpu.driver.library.calls
    before = calls["cuPointerGetAttributes"]
    ns.copy(field[BOX], tile, stream=stream).wait()
    assert calls["cuPointerGetAttributes"] == before + 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "batch"},
        {"mode": "kernel"},
        {"policy": "overlap"},
        {"max_blocks": 3},
        {"stream": None},
    ],
    ids=str,
)
def test_other_arguments_take_the_long_way(pair, taken, arguments):
    _, field, tile, stream = pair
    transfer = ns.copy(field[BOX], tile, **{"stream": stream, **arguments})
    transfer.wait()
    assert np.array_equal(tile.copy_to_host(), field[BOX])
    assert taken[True] == 0
    assert transfer.decision.mode == arguments.get("mode", transfer.decision.mode)


def test_settings_and_capture_are_seen(pair, taken):
    gpu, field, tile, stream = pair
    with ns.override(mode="batch"):
        transfer = ns.copy(field[BOX], tile, stream=stream, mode=None)
    assert transfer.decision.mode == "batch"
    transfer.wait()
    replay = capture(gpu, stream, lambda: ns.copy(field[BOX], tile, stream=stream))
    field[BOX] += 1
    replay()
    assert np.array_equal(tile.copy_to_host(), field[BOX])
    assert taken[True] == 0


@pytest.mark.parametrize("kind", ["pageable", "managed"])
def test_memory_of_another_sort_is_seen(pair, taken, kind):
    gpu, field, tile, stream = pair
    other = make_array(gpu, kind, np.asarray(field) + 1)
    ns.copy(other[BOX], tile, stream=stream).wait()
    assert np.array_equal(tile.copy_to_host(), np.asarray(field)[BOX] + 1)
    assert taken[True] == 0


def test_memory_that_is_no_longer_pinned_is_seen(taken):
    with ns.simulate() as gpu:
        field = np.arange(np.prod(FIELD), dtype=np.float32).reshape(FIELD)
        tile, stream = gpu.device_array(TILE, np.float32), gpu.stream()
        gpu.driver.library.register_host(field)
        for step in range(6):
            if step == 3:
                gpu.driver.library.unregister_host(field)
            ns.copy(field[BOX], tile, stream=stream).wait()
            assert np.array_equal(tile.copy_to_host(), field[BOX])
        assert taken == {True: 1, False: 1}


def test_a_registered_part_that_ends_within_the_view_is_refused(taken):
    """As by the long way: the view begins in memory like that of before, and runs past it."""
    with ns.simulate() as gpu:
        memory = np.zeros(2 * np.prod(FIELD), dtype=np.float32)
        whole, half = memory[: np.prod(FIELD)], memory[np.prod(FIELD) : -8]
        gpu.driver.library.register_host(whole)
        gpu.driver.library.register_host(half)
        tile, stream = gpu.device_array(TILE, np.float32), gpu.stream()
        views = [
            memory[at : at + np.prod(FIELD)].reshape(FIELD)[-3:, -5:, -17:]
            for at in (0, np.prod(FIELD))
        ]
        for _ in range(3):
            ns.copy(views[0], tile, stream=stream).wait()
        with pytest.raises(ns.BadPlanError):
            ns.copy(views[1], tile, stream=stream)
        assert taken == {True: 1, False: 1}


def test_what_is_read_only_is_refused_again(pair):
    gpu, _, tile, stream = pair
    back = gpu.pinned_array(FIELD, np.float32)
    for _ in range(3):
        ns.copy(tile, back[BOX], stream=stream).wait()
    back.flags.writeable = False
    with pytest.raises(ns.BadPlanError, match="read-only"):
        ns.copy(tile, back[BOX], stream=stream)


def test_a_subclass_that_says_it_may_always_be_written_is_not_believed(pair):
    """As Numba's mapped and managed arrays do."""

    class Mapped(np.ndarray):
        @property
        def __cuda_array_interface__(self):
            return {**self.__array_interface__, "data": (self.ctypes.data, False), "version": 3}

    gpu, _, tile, stream = pair
    back = gpu.pinned_array(FIELD, np.float32).view(Mapped)
    for _ in range(4):
        ns.copy(tile, back[BOX], stream=stream).wait()
    back.flags.writeable = False
    with pytest.raises(ns.BadPlanError, match="read-only"):
        ns.copy(tile, back[BOX], stream=stream)


class Interface:
    def __init__(self, array, **changes):
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": tuple(map(float, TILE))},
        {"shape": (3, 5.0, 17)},
        {"data": (1 << 63, False)},
        {"data": (0, False)},
        {"mask": "a mask"},
        {"typestr": "|O"},
    ],
    ids=str,
)
def test_what_an_interface_may_not_say_gets_the_same_error(pair, changes):
    _, field, tile, stream = pair
    for _ in range(3):
        ns.copy(field[BOX], Interface(tile), stream=stream).wait()
    with pytest.raises(ns.NumbaSwapError) as short:
        ns.copy(field[BOX], Interface(tile, **changes), stream=stream)
    with pytest.raises(ns.NumbaSwapError) as long:
        ns.plan_copy(field[BOX], Interface(tile, **changes))
    assert (type(short.value), str(short.value)) == (type(long.value), str(long.value))


def test_an_attribute_that_raises_is_no_obstacle(pair):
    _, field, tile, stream = pair

    class Raises(Interface):
        @property
        def data_ptr(self):
            raise RuntimeError("not now")

    try:
        ns.plan_copy(field[BOX], Raises(tile))
    except ns.NumbaSwapError as error:
        with pytest.raises(type(error)):
            ns.copy(field[BOX], Raises(tile), stream=stream)
    else:
        ns.copy(field[BOX], Raises(tile), stream=stream).wait()
        assert np.array_equal(tile.copy_to_host(), field[BOX])


def test_a_simulated_machine_goes_when_it_is_left():
    with ns.simulate() as gpu:
        field, tile = gpu.pinned_array(FIELD, np.float32), gpu.device_array(TILE, np.float32)
        for _ in range(4):
            ns.copy(field[BOX], tile).wait()
        driver = weakref.ref(gpu.driver)
    del gpu, field, tile
    gc.collect()
    assert driver() is None


def test_views_seen_once_are_counted_and_trimmed(pair):
    gpu, field, _, stream = pair
    before = ns.plan_cache.info()
    try:
        ns.plan_cache.resize(4)
        for n in range(1, 12):
            ns.copy(field[0, 0, :n], gpu.device_array((n,), np.float32), stream=stream).wait()
        info = ns.plan_cache.info()
    finally:
        ns.plan_cache.resize(256)
    assert info.currsize == 4
    assert (info.hits, info.misses) == (before.hits, before.misses + 11)


def test_ways_to_copy_are_told_apart(pair, taken):
    """Alternating modes each have a short way of their own."""
    _, field, tile, stream = pair
    for i in range(12):
        mode = ("loop", "kernel")[i % 2]
        transfer = ns.copy(field[BOX], tile, stream=stream, mode=mode)
        transfer.wait()
        assert transfer.decision.mode == mode
    assert taken[True] == 8


class OnDevice:
    """An array in some memory of a simulated device."""

    def __init__(self, memory, shape):
        self.memory = memory
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (memory.start, False),
            "version": 3,
        }


def test_memory_of_another_gpu_is_another_copy(taken):
    driver = Driver(SimulatedLibrary(devices=2))
    enter_driver(driver)
    try:
        gpu = SimulatedGPU(driver)
        field = gpu.pinned_array(FIELD, np.float32)
        field[:] = np.arange(field.size).reshape(FIELD)
        nbytes = field[BOX].nbytes
        for device in (0, 0, 0, 0, 1, 1, 0):
            memory = gpu.library.allocate(nbytes, Kind.DEVICE, device)
            ns.copy(field[BOX], OnDevice(memory, TILE)).wait()
            found = np.frombuffer(memory.buffer, np.float32).reshape(TILE)
            assert np.array_equal(found, field[BOX])
    finally:
        leave_driver(driver)
    assert taken == {True: 3, False: 2}


@pytest.mark.parametrize("mode", ["loop", "kernel"])
def test_a_driver_that_refuses_is_told_of_as_by_the_long_way(mode, taken):
    function = {"loop": "cuMemcpy3DAsync", "kernel": "cuLaunchKernel"}[mode]
    told = []
    for short in (False, True):
        ns.plan_cache.clear()
        with ns.simulate() as gpu:
            field, tile = gpu.pinned_array(FIELD, np.float32), gpu.device_array(TILE, np.float32)
            stream = gpu.stream()
            for _ in range(4 * short):
                ns.copy(field[BOX], tile, stream=stream, mode=mode).wait()
            gpu.driver.library.faults.add(Fault(function, 700))
            with pytest.raises(ns.DriverCallError) as error:
                ns.copy(field[BOX], tile, stream=stream, mode=mode)
            told.append((str(error.value), error.value.code, error.value.submitted))
            ns.copy(field[BOX], tile, stream=stream, mode=mode).wait()
    assert told[0] == told[1]
    assert taken[True] == 2
    assert taken["refused"] == 1


def test_contiguous_views_take_the_short_way(taken):
    with ns.simulate() as gpu:
        host, slab = gpu.pinned_array((64, 1000), np.int16), gpu.device_array((8, 1000), np.int16)
        host[:] = np.arange(64)[:, None]
        stream = gpu.stream()
        for i in range(12):
            ns.copy(host[4 * i : 4 * i + 8], slab, stream=stream, mode="loop").wait()
            assert np.array_equal(slab.copy_to_host(), host[4 * i : 4 * i + 8])
    assert taken == {True: 10, False: 0}


def test_no_array_is_kept_alive(pair):
    gpu, _, _, stream = pair
    host, tile = gpu.pinned_array(FIELD, np.float64), gpu.device_array(TILE, np.float64)
    for _ in range(3):
        ns.copy(host[BOX], tile, stream=stream).wait()
    alive = weakref.ref(host), weakref.ref(tile)
    assert ns.plan_cache.info().currsize == 2
    del host, tile
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_the_cache_can_be_switched_off(pair, taken):
    _, field, tile, stream = pair
    try:
        ns.plan_cache.resize(0)
        for _ in range(2):
            ns.copy(field[BOX], tile, stream=stream).wait()
        assert ns.plan_cache.info().currsize == 0
    finally:
        ns.plan_cache.resize(256)
    assert taken == {True: 0, False: 0}
