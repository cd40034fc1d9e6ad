"""Snapshots of one moment: a ring with back pressure, a writer, its errors, and restoring."""

import threading

import numpy as np
import pytest
from machines import no_reaper

import numba_swap as ns


@pytest.fixture
def gpu():
    with no_reaper(), ns.simulate() as gpu:  # nobody waits but the test
        yield gpu


def tiles_of(gpu, blocks=6, shape=(4, 3)):
    tiles = gpu.device_array((blocks, *shape), np.int32)
    content = np.arange(tiles.nbytes // 4, dtype=np.int32).reshape(tiles.shape)
    tiles.copy_to_device(content)
    return tiles, content


def test_they_are_of_one_moment(gpu):
    tiles, content = tiles_of(gpu)
    stream = gpu.stream(non_blocking=True)
    snaps, taken = ns.Snapshots(tiles, depth=3), []
    for _ in range(3):
        taken.append(snaps.take([4, 1], stream=stream))
        gpu.launch(lambda a: np.add(a, 100, out=a), tiles, stream=stream)
    for i in (2, 0, 1):  # in any order
        taken[i].wait()
        assert (taken[i].data == content[[4, 1]] + 100 * i).all()
        assert taken[i].ids.tolist() == [4, 1]


def test_memory_that_serves_again_is_ordered(gpu):
    tiles, content = tiles_of(gpu)
    stream = gpu.stream(non_blocking=True)
    snaps = ns.Snapshots(tiles, depth=1)
    for ids in ([0], [1, 2, 3], None, [5], []):
        snap = snaps.take(ids, stream=stream)
        snap.release()  # without having waited
        snap = snaps.take(ids, stream=stream)
        snap.wait()
        assert (snap.data == (content if ids is None else content[ids])).all()
        snap.release()
        snap.release()


def test_a_released_snapshot_has_no_data(gpu):
    snap = ns.Snapshots(tiles_of(gpu)[0]).take()
    snap.release()
    for use in (lambda: snap.data, snap.wait, snap.restore):
        with pytest.raises(ns.BadPlanError, match="was released"):
            use()


def test_a_full_ring_is_no_hang(gpu):
    snaps = ns.Snapshots(tiles_of(gpu)[0], depth=2)
    first, _ = snaps.take([0]), snaps.take([1])
    with pytest.raises(ns.BadPlanError, match="all 2 snapshots are in use"):
        snaps.take([2])
    first.release()
    snaps.take([2])


def test_restore(gpu):
    tiles, content = tiles_of(gpu)
    snap = ns.Snapshots(tiles).take([5, 0])
    tiles.copy_to_device(np.zeros_like(content))
    snap.restore().wait()
    want = np.zeros_like(content)
    want[[5, 0]] = content[[5, 0]]
    assert (tiles.copy_to_host() == want).all()


def test_an_array_is_written_in_order_with_back_pressure(gpu):
    tiles, content = tiles_of(gpu)
    stream = gpu.stream(non_blocking=True)
    may_go, busy, written = threading.Semaphore(0), [], []

    def write(snap):
        busy.append(snap.ids[0])
        assert may_go.acquire(timeout=30)
        written.append(snap.data.copy())

    with ns.Snapshots(tiles, depth=2, to=write) as snaps:
        for i in range(2):
            snaps.take([i], stream=stream)
            gpu.launch(lambda a: np.add(a, 1, out=a), tiles, stream=stream)
        late = []
        thread = threading.Thread(target=lambda: late.append(snaps.take([2], stream=stream)))
        thread.start()
        thread.join(0.2)
        assert not late  # it waits for the writer
        for _ in range(3):
            may_go.release()
        thread.join(30)
        assert late
    assert [list(array.shape) for array in written] == [[1, 4, 3]] * 3
    assert all((array == content[[i]] + i).all() for i, array in enumerate(written))
    assert busy == [0, 1, 2]


def test_to_an_array(gpu):
    tiles, content = tiles_of(gpu)
    there = np.zeros_like(content)
    with ns.Snapshots(tiles, to=there) as snaps:
        for i in range(6):
            snaps.take([i])
    assert (there == content).all()


def test_errors_of_the_writer_come_with_the_next_take(gpu):
    tiles, content = tiles_of(gpu)
    written = {}

    def write(snap):
        if snap.ids[0] == 1:
            raise OSError("disk full")
        written[int(snap.ids[0])] = snap.data.copy()

    snaps = ns.Snapshots(tiles, depth=1, to=write)
    snaps.take([0])
    snaps.take([1])
    with pytest.raises(OSError, match="disk full") as caught:
        snaps.take([2])
    assert "snapshot of blocks" in caught.value.__notes__[0]
    snaps.take([3])  # the ring is as good as before
    snaps.close()
    assert sorted(written) == [0, 3]
    assert (written[3] == content[3]).all()
    with pytest.raises(OSError, match="disk full"), ns.Snapshots(tiles, to=write) as snaps:
        snaps.take([1])


def test_what_is_refused(gpu):
    tiles, _ = tiles_of(gpu)
    for array in (gpu.pinned_array((2, 2)), [[1]], gpu.managed_array((2, 2))):
        with pytest.raises(ns.UnsupportedArrayError, match="give a device array"):
            ns.Snapshots(array)
    with pytest.raises(ns.BadArgumentError, match="depth=0"):
        ns.Snapshots(tiles, 0)
    with pytest.raises(ns.BadArgumentError, match="to=3"):
        ns.Snapshots(tiles, to=3)
    snaps = ns.Snapshots(tiles, depth=1)
    for ids in ([6], [-1], [[0]], [0.5], ["a"]):
        with pytest.raises(ns.BadPlanError, match="ids="):
            snaps.take(ids)
    with pytest.raises(ns.UnsupportedArrayError, match="no stream"):
        snaps.take([0], stream="s")
    snaps.take([0])  # none of these took a place
