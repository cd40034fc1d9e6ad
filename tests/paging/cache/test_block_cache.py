"""What a cache promises, one promise a test; each row of others' bugs has one."""

import gc
import threading
import weakref
from collections import Counter

import numpy as np
import pytest
from cache_model import SimulatedKernels, memory_of

import numba_swap as ns
from numba_swap.testing import Fault

BLOCKS, SLOTS, WORDS = 40, 8, 16


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


@pytest.fixture
def host(gpu):
    host = gpu.pinned_array((BLOCKS, WORDS), np.int64)
    host[:] = np.arange(BLOCKS)[:, None]
    return host


@pytest.fixture
def cache(host):
    cache = ns.BlockCache(host, SLOTS)
    yield cache
    if cache._residency.is_open and not cache._residency._broken:
        cache.close()


def touch(cache, ids, mode="r", stream=None, value=None, gpu=None):
    """Lease blocks and, if a value is given, let a "kernel" write it."""
    with cache.lease(ids, mode, stream) as lease:
        if value is not None:
            written = np.full((len(ids), WORDS), value)
            SimulatedKernels(gpu).use(cache, lease, stream, None, written)
    return lease


def traffic(cache):
    return cache.stats.bytes_in // (8 * WORDS), cache.stats.bytes_out // (8 * WORDS)


# -- what others got wrong ----------------------------------------------------------------------


def test_what_is_leased_is_never_evicted_not_by_prefetches_either(cache):
    with cache.lease([1, 2, 3], "r"):
        for first in range(4, 36, 5):
            assert cache.prefetch(range(first, first + 5)) == 5
            assert cache.resident([1, 2, 3]).all()
        with pytest.raises(ns.CacheFullError):
            cache.prefetch(range(10, 16))
    cache.prefetch(range(20, 28))
    assert not cache.resident([1, 2, 3]).any()


def test_a_prefetched_block_that_a_later_prefetch_evicted_is_fetched_again(cache, gpu):
    cache.prefetch([0, 1, 2, 3])
    cache.prefetch(range(10, 18))
    kernels = SimulatedKernels(gpu)
    with cache.lease([0, 1], "r") as lease:
        kernels.use(cache, lease, None, np.repeat([[0], [1]], WORDS, 1), None)
    gpu.synchronize()
    assert kernels.wrong == 0


def test_reading_never_dirties_and_clean_blocks_leave_without_traffic(cache):
    touch(cache, range(8))
    touch(cache, range(8, 16))
    cache.flush()
    stats = cache.stats
    assert (stats.clean_evictions, stats.dirty_evictions, stats.bytes_out) == (8, 0, 0)


def test_only_what_was_written_goes_back_and_only_once(cache, gpu, host):
    touch(cache, [1, 2], "rw", value=-1, gpu=gpu)
    touch(cache, [3, 4])
    touch(cache, range(10, 18))
    assert traffic(cache) == (12, 2)
    cache.flush()
    assert traffic(cache) == (12, 2)
    assert (host[[1, 2]] == -1).all()
    assert (host[[3, 4]] == [[3], [4]]).all()


def test_writing_whole_blocks_fetches_nothing(cache, gpu, host):
    touch(cache, [5, 6], "w", value=7, gpu=gpu)
    assert traffic(cache) == (0, 0)
    cache.flush()
    assert (host[[5, 6]] == 7).all()


def test_too_much_is_an_error_with_numbers_and_changes_nothing(cache):
    touch(cache, range(6))
    before = cache.resident(range(BLOCKS))
    with cache.lease([0, 1, 2], "r"):
        for ask in (cache.prefetch, lambda ids: cache.lease(ids).__enter__()):
            with pytest.raises(ns.CacheFullError) as caught:
                ask([2, 3, *range(20, 26)])
            error = caught.value
            assert (error.needed, error.slots, error.leased) == (6, 8, 4)
            assert (cache.resident(range(BLOCKS)) == before).all()
        assert cache.prefetch([3, *range(20, 24)]) == 4  # and so many do fit


def test_the_smallest_cache_that_works_is_one_request(gpu, host):
    with ns.BlockCache(host, 3) as cache:
        for first in range(0, 30, 3):
            touch(cache, range(first, first + 3), "rw", value=first, gpu=gpu)
    assert host[:30, 0].tolist() == [i // 3 * 3 for i in range(30)]


def test_duplicates_in_a_request_are_one_block(cache, gpu):
    with cache.lease([4, 9, 4, 4], "r") as lease:
        slots = lease.host_slots
        assert slots[0] == slots[2] == slots[3] != slots[1]
        assert lease.slots.copy_to_host().tolist() == slots.tolist()
        assert lease.slots.dtype == np.int32
    assert traffic(cache) == (2, 0)
    assert (cache.stats.hits, cache.stats.misses) == (0, 2)


def test_a_slot_is_refilled_only_when_the_stream_has_passed(cache, gpu):
    """The simulated driver runs a kernel as late as it may: unless ordered, too late."""
    first, second = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    kernels = SimulatedKernels(gpu)
    with cache.lease(range(8), "r", first) as lease:
        first.synchronize()  # the blocks are there, and the kernel is still to come
        kernels.use(cache, lease, first, np.repeat(np.arange(8)[:, None], WORDS, 1), None)
    touch(cache, range(8, 16), "r", second)
    second.synchronize()
    first.synchronize()
    assert kernels.wrong == 0


def test_the_pinned_slots_are_not_used_again_before_they_were_read(cache, gpu):
    stream, kernels = gpu.stream(non_blocking=True), SimulatedKernels(gpu)
    for i in range(20):
        ids = np.array([i % 8, (i + 3) % 8])
        with cache.lease(ids, "r", stream) as lease:
            kernels.use(cache, lease, stream, np.repeat(ids[:, None], WORDS, 1), None)
        del lease
    stream.synchronize()
    assert kernels.wrong == 0


def test_a_request_makes_one_exchange_at_most(cache, gpu, monkeypatch):
    from numba_swap.paging.cache import pool

    calls = Counter()
    for name in ("exchange", "swap_blocks"):
        real = getattr(pool, name)
        monkeypatch.setattr(
            pool,
            name,
            lambda *a, real=real, name=name, **k: (calls.update([name]), real(*a, **k))[1],
        )
    touch(cache, range(8), "rw", value=1, gpu=gpu)
    assert calls == {"swap_blocks": 1}
    touch(cache, range(8, 14))  # six dirty ones out, six others in
    assert calls == {"swap_blocks": 1, "exchange": 1}
    touch(cache, range(10, 14))
    assert calls == {"swap_blocks": 1, "exchange": 1}


def test_reuse_shows_in_the_statistics(cache):
    for _ in range(3):
        touch(cache, range(6))
    cache.prefetch([6, 7])
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.prefetched) == (12, 6, 2)
    assert stats.hit_rate == 1 - 8 / 18
    assert stats.bytes_in == 8 * 8 * WORDS
    cache.flush()
    assert cache.stats.waited_s >= 0


# -- order and conflicts ------------------------------------------------------------------------


def test_what_one_stream_wrote_another_reads_and_writes_after_it(cache, gpu, host):
    streams, kernels = [gpu.stream(non_blocking=True) for _ in range(3)], SimulatedKernels(gpu)
    last = np.full((1, WORDS), 3)
    for i in range(12):
        stream, following = streams[i % 3], np.full((1, WORDS), 100 + i)
        with cache.lease([3], "rw", stream) as lease:
            kernels.use(cache, lease, stream, last, following)
        last = following
    cache.flush()
    assert kernels.wrong == 0
    assert (host[3] == 111).all()


@pytest.mark.parametrize(("first", "second"), [("rw", "r"), ("r", "w"), ("w", "rw")])
def test_a_writer_shares_its_blocks_with_nobody(cache, first, second):
    with cache.lease([1, 2], first):
        before = cache.stats
        with pytest.raises(ns.LeaseConflictError, match="block 2 is leased") as caught:
            cache.lease([5, 2], second).__enter__()
        assert caught.value.block == 2
        assert cache.stats == before
        assert not cache.resident([5])[0]
        with cache.lease([5], second):
            pass
    writing = cache.lease([1], "rw")
    with (
        cache.lease([1], "r"),
        cache.lease([1], "r"),
        pytest.raises(ns.LeaseConflictError, match="for reading"),
    ):
        writing.__enter__()
    touch(cache, [1, 2], second)


def test_a_writer_is_in_the_way_of_a_flush_and_any_lease_of_a_close(cache):
    with cache.lease([1], "rw"):
        with pytest.raises(ns.LeaseConflictError, match="block 1 is leased for writing"):
            cache.flush()
        with pytest.raises(ns.LeaseConflictError):
            cache.close()
        with pytest.raises(ns.LeaseConflictError):
            cache.drop([1])
    with cache.lease([1], "r"):
        cache.flush()


def test_captured_streams_are_refused(cache, gpu):
    stream = gpu.stream(non_blocking=True)
    gpu.library.begin_capture(stream.handle)
    with pytest.raises(ns.CapturedTransferError, match="freeze which"):
        cache.lease([1], "r", stream).__enter__()
    gpu.library.end_capture(stream.handle)
    assert not cache.resident([1])[0]


# -- exceptions and failures --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rw", "w"])
def test_after_an_exception_in_a_lease(cache, gpu, host, mode):
    touch(cache, [1], "rw", value=5, gpu=gpu)
    with pytest.raises(ZeroDivisionError), cache.lease([1, 2], mode) as lease:  # noqa: PT012
        if mode != "r":
            written = np.full((2, WORDS), 9)
            SimulatedKernels(gpu).use(cache, lease, None, None, written)
        raise ZeroDivisionError
    cache.flush()
    assert host[[1, 2], 0].tolist() == {"r": [5, 2], "rw": [9, 9], "w": [9, 2]}[mode]
    assert cache.resident([1, 2]).tolist() == [True, mode != "w"]


def test_a_cache_flushes_when_its_block_ends_with_an_exception_too(gpu, host):
    for value, error in ((7, None), (8, ZeroDivisionError)):
        try:
            with ns.BlockCache(host, SLOTS) as cache:
                touch(cache, [1], "rw", value=value, gpu=gpu)
                if error:
                    raise error
        except ZeroDivisionError:
            pass
        assert (host[1] == value).all()
        with pytest.raises(ns.BadArgumentError, match="closed"):
            touch(cache, [1])
        cache.close()  # again is harmless


def test_if_nothing_was_submitted_nothing_has_changed(cache, gpu, host):
    with ns.override(mode="kernel"):
        touch(cache, range(8), "rw", value=1, gpu=gpu)
        gpu.library.faults.add(Fault("cuLaunchKernel", 1))
        with pytest.raises(ns.DriverCallError):
            touch(cache, range(8, 16))
        assert cache.lost == ()
        assert cache.resident(range(8)).all()
        cache.flush()
    assert (host[:8] == 1).all()


def test_what_is_lost_is_named_and_refused_and_the_rest_goes_on(cache, gpu, host):
    with ns.override(mode="loop"):
        touch(cache, range(4), "rw", value=1, gpu=gpu)
        touch(cache, range(4, 8))
        cache.drop([7])
        gpu.library.faults.add(Fault("cuMemcpyAsync", 1, call=2))
        with pytest.raises(ns.BlocksLostError, match="2 blocks") as caught:
            touch(cache, [20, 21, 22])  # into a free slot, and those of 0 and 1
        assert caught.value.blocks == cache.lost == (0, 1)
        assert isinstance(caught.value.__cause__, ns.DriverCallError)
        for ask in (touch, lambda cache, ids: cache.prefetch(ids)):
            with pytest.raises(ns.BlocksLostError, match="1 blocks"):
                ask(cache, [1, 2])
        touch(cache, [0], "w", value=9, gpu=gpu)  # written anew
        with pytest.raises(ZeroDivisionError), cache.lease([1], "w"):
            raise ZeroDivisionError  # not written after all
        assert cache.lost == (1,)
        cache.drop([1], discard=True)
        assert cache.lost == ()
        touch(cache, [1, 20])
        cache.flush()
    assert host[[0, 2, 3], 0].tolist() == [9, 1, 1]


def test_what_was_on_its_way_when_it_failed_comes_before_what_follows(cache, gpu, host):
    first, second = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    with ns.override(mode="loop"):
        touch(cache, range(4), "rw", first, value=1, gpu=gpu)
        touch(cache, range(4, 8), "r", first)
        first.synchronize()
        gpu.library.faults.add(Fault("cuMemcpyAsync", 1, call=2))
        with pytest.raises(ns.BlocksLostError):
            touch(cache, [20, 21], "r", first)  # block 0 is on its way to the host
        cache.drop([7])  # so that block 0 gets another slot than before
        touch(cache, [0], "w", second, value=9, gpu=gpu)
        second.synchronize()
        cache.flush()
        gpu.synchronize()
    assert (host[0] == 9).all()
    cache.drop([1], discard=True)


@pytest.mark.parametrize("broken", [False, True])
def test_nested_leases_end_after_a_sticky_error_too(cache, gpu, broken):
    def nested():
        with cache.lease([1], "rw"), cache.lease([2], "r"):
            if broken:
                raise ZeroDivisionError
            touch(cache, [4])

    touch(cache, [0], "rw", value=1, gpu=gpu)
    touch(cache, [1, 2])
    gpu.library.faults.add(Fault("cuEventRecord", 700, times=None, sticky=True))
    with ns.override(mode="kernel"), pytest.raises((ns.DriverCallError, ZeroDivisionError)):
        nested()
    with pytest.raises((ns.DriverCallError, ns.BlocksLostError)):
        cache.close()
    gpu.library.faults.clear()


def test_a_stream_is_kept_alive_until_it_has_passed(cache, gpu):
    stream = gpu.stream(non_blocking=True)
    alive = weakref.ref(stream)
    touch(cache, [1], "r", stream)
    del stream
    gc.collect()
    assert alive() is not None
    gpu.synchronize()
    cache.flush()
    gc.collect()
    assert alive() is None


def test_a_sticky_error_ends_it_and_all_dirty_blocks_are_lost(cache, gpu):
    touch(cache, [1, 2], "rw", value=1, gpu=gpu)
    touch(cache, [3])
    gpu.library.faults.add(Fault("cuLaunchKernel", 700, sticky=True))
    with ns.override(mode="kernel"), pytest.raises(ns.DriverCallError, match="sticky"):
        touch(cache, [4])
    assert cache.lost == (1, 2)
    with pytest.raises(ns.DriverCallError, match="sticky"):
        touch(cache, [3])
    with pytest.raises(ns.BlocksLostError):
        cache.close()
    cache.close()


def test_dirty_blocks_are_not_dropped_in_silence(cache, gpu, host):
    touch(cache, [1, 2], "rw", value=5, gpu=gpu)
    with pytest.raises(ns.BadArgumentError, match="block 1 is dirty"):
        cache.drop([2, 1])
    assert cache.resident([1, 2]).all()
    cache.drop([1], discard=True)
    host[7] = 77
    cache.drop([7])
    cache.flush()
    assert host[[1, 2], 0].tolist() == [1, 5]


def test_what_the_host_wrote_is_seen_after_a_drop(cache, gpu, host):
    touch(cache, [1])
    gpu.synchronize()
    host[1] = 50
    cache.drop([1])
    kernels = SimulatedKernels(gpu)
    with cache.lease([1]) as lease:
        kernels.use(cache, lease, None, np.full((1, WORDS), 50), None)
    gpu.synchronize()
    assert kernels.wrong == 0


# -- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_schedule_fetches_as_little_as_belady_and_one_request_ahead(gpu, host, seed):
    from numba_swap.paging.cache.replay import replay

    rng = np.random.default_rng(seed)
    requests = [np.minimum(rng.zipf(1.2, rng.integers(1, 6)), BLOCKS) - 1 for _ in range(40)]
    kernels, stream = SimulatedKernels(gpu), gpu.stream(non_blocking=True)
    with ns.BlockCache(host, SLOTS) as cache:
        schedule = cache.schedule(requests, stream=stream)
        assert len(schedule) == 40
        for lease in schedule:
            with lease:
                kernels.use(cache, lease, stream, host[lease.ids].copy(), None)
        stats = cache.stats
    best = replay(requests, BLOCKS, SLOTS, "belady")
    assert stats.misses + stats.prefetched == best.fetched
    assert stats.hit_rate == pytest.approx(best.hit_rate)
    assert best.fetched <= replay(requests, BLOCKS, SLOTS, "lru").fetched
    assert stats.prefetched > 0
    assert kernels.wrong == 0


def test_schedules_that_cannot_be(cache):
    with pytest.raises(ns.CacheFullError):
        cache.schedule([[0], range(9)])
    with pytest.raises(ns.BadPlanError, match=r"request 1\[0\]: block 40"):
        cache.schedule([[0], [40]])
    with pytest.raises(ns.BadArgumentError, match="requests is a int"):
        cache.schedule(3)


# -- arrays, sizes, lifetimes -------------------------------------------------------------------


def test_layers_and_other_axes(gpu):
    layers = [gpu.pinned_array((6, 10, 4), np.float32), gpu.pinned_array((3, 10), np.int16)]
    for layer in layers:
        layer[:] = np.arange(10).reshape((10, 1) if layer.ndim == 3 else 10)
    with ns.BlockCache(layers, 4, block_axis=1) as cache:
        assert [pool.shape for pool in cache.pool] == [(6, 4, 4), (3, 4)]
        assert cache.block_bytes == 6 * 4 * 4 + 3 * 2
        with cache.lease([7, 2], "rw") as lease:
            gpu.synchronize()
            slots = lease.host_slots
            for pool in map(memory_of, cache.pool):
                assert (pool[:, slots[0]] == 7).all()
                pool[:, slots[1]] = 1
    assert [np.unique(layer[:, 2]).tolist() for layer in layers] == [[1], [1]]


@pytest.mark.parametrize("kind", ["managed_array", "pageable", "device"])
def test_the_array_may_lie_in_any_memory(gpu, kind):
    content = np.arange(60.0).reshape(20, 3)
    if kind == "device":
        host = gpu.device_array(content.shape)
        host.copy_to_device(content)
    else:
        host = content.copy() if kind == "pageable" else gpu.managed_array(content.shape)
        host[:] = content
    with ns.BlockCache(host, 4) as cache:
        for i in range(0, 20, 4):
            with cache.lease(range(i, i + 4), "rw") as lease:
                gpu.synchronize()
                memory_of(cache.pool)[lease.host_slots] += 1
    assert ((host.copy_to_host() if kind == "device" else host) == content + 1).all()


def test_how_large_it_is(gpu, host):
    free = 16 << 30
    for arguments, slots in (
        ({"bytes": 1 << 10}, 8),
        ({"slots": 99}, BLOCKS),
        ({"bytes": "50%"}, BLOCKS),
    ):
        with ns.BlockCache(host, **arguments) as cache:
            assert cache.slots == slots
    advice = ns.suggest_slots(1 << 20, leave_bytes=0)
    assert advice.slots <= free >> 20
    assert "bytes free on GPU 0" in str(advice)
    for wrong in (
        {}, {"slots": 3, "bytes": 9}, {"slots": 0}, {"bytes": 8}, {"bytes": "60"}, {"bytes": "0%"},
        {"slots": 2, "evict": "fifo"}, {"slots": 2, "device": 3},
    ):  # fmt: skip
        with pytest.raises(ns.BadArgumentError):
            ns.BlockCache(host, **wrong)
    for wrong in ({"block_axis": 2}, {"block_axis": "x"}):
        with pytest.raises(ns.BadPlanError):
            ns.BlockCache(host, 2, **wrong)
    for wrong in ((0,), (1, None, -1)):
        with pytest.raises(ns.BadArgumentError):
            ns.suggest_slots(wrong[0], leave_bytes=wrong[-1] if len(wrong) > 1 else None)
    host.flags.writeable = False
    with ns.BlockCache(host, 2) as cache:
        touch(cache, [1])
        with pytest.raises(ns.BadArgumentError, match="host is read-only"):
            cache.lease([1], "rw").__enter__()


def test_bad_requests_change_nothing(cache):
    touch(cache, [1])
    for wrong, error in (
        ([3, 40], ns.BadPlanError),
        ([-1], ns.BadPlanError),
        ([0.5], ns.BadPlanError),
        ([[1]], ns.BadPlanError),
    ):
        for ask in (lambda ids: touch(cache, ids), cache.prefetch, cache.drop, cache.resident):
            with pytest.raises(error):
                ask(wrong)
    assert np.flatnonzero(cache.resident(range(BLOCKS))).tolist() == [1]
    with pytest.raises(ns.BadArgumentError, match="mode='x'"):
        cache.lease([1], "x")
    lease = touch(cache, [])
    assert lease.slots.shape == (0,)
    with pytest.raises(ns.BadArgumentError, match="used once"):
        lease.__enter__()
    with pytest.raises(ns.BadArgumentError, match="not open"):
        _ = lease.host_slots


def test_slot_of_is_on_the_device_and_right_when_it_is_asked_for(cache):
    assert (cache.slot_of.copy_to_host() == -1).all()
    with cache.lease([3, 5]) as lease:
        table = cache.slot_of.copy_to_host()
        assert table.dtype == np.int32
        assert table[[3, 5]].tolist() == lease.host_slots.tolist()
        assert (table >= 0).sum() == 2
        assert cache.slot_of is cache.slot_of  # copied when it changed


def test_memory_goes_back_and_many_requests_take_no_more(gpu, host):
    living = gpu.library.memory.living
    before = living()["device"]
    cache = ns.BlockCache(host, SLOTS)
    streams = [gpu.stream() for _ in range(3)]
    for i in range(200):
        touch(cache, [i % BLOCKS, (3 * i) % BLOCKS], ("r", "rw")[i % 2], streams[i % 3])
        if i == 100:
            gpu.synchronize()
            middle = living(), gpu.library.calls["cuEventCreate"]
    gpu.synchronize()
    assert len(cache._residency._tickets) < 150
    assert living()["pinned"] - middle[0]["pinned"] < 100
    for i in range(300):
        touch(cache, [i % BLOCKS], "r", streams[i % 3])
    after = living()
    for i in range(300):
        touch(cache, [i % BLOCKS], "r", streams[i % 3])
    assert living() == after
    cache.close()
    pool = weakref.ref(cache.pool)
    del cache
    gc.collect()
    assert pool() is None
    assert living()["device"] <= after["device"] - 1
    assert before <= living()["device"]


def test_a_cache_that_is_dropped_says_what_is_lost(gpu, host):
    cache = ns.BlockCache(host, SLOTS)
    touch(cache, [1, 2], "rw", value=4, gpu=gpu)
    with pytest.warns(ResourceWarning, match="2 dirty blocks"):  # noqa: PT031
        del cache
        gc.collect()
    cache = ns.BlockCache(host, SLOTS)
    touch(cache, [1])
    del cache  # nothing is lost, and nothing said
    gc.collect()


def test_streams_that_come_and_go_leave_nothing_behind(cache, gpu):
    for i in range(300):
        touch(cache, [i % 8], "r", gpu.stream())
    assert len(cache._residency._tickets._lines) < 130


def test_the_default_stream_of_each_thread_is_another_stream(cache, gpu):
    kernels = SimulatedKernels(gpu)
    per_thread = type("Stream", (), {"handle": 2, "__cuda_stream__": lambda self: (0, 2)})()
    touch(cache, [1], "rw", per_thread, value=5, gpu=gpu)

    def work():
        with cache.lease([1], "r", per_thread) as lease:
            kernels.use(cache, lease, per_thread, np.full((1, WORDS), 5), None)
        gpu.library.synchronize_stream(2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gpu.synchronize()
    assert kernels.wrong == 0


def test_requests_of_another_thread_without_a_context(cache, gpu):
    errors = []

    def work():
        try:
            touch(cache, range(8), "rw", value=3, gpu=gpu)
            cache.flush()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
