"""Rows picked up and put down by their ids."""

import numpy as np
import pytest

import numba_swap as ns


def numbered(gpu, kind, blocks):
    content = np.repeat(np.arange(blocks, dtype=np.float32)[:, None], 8, axis=1)
    if kind == "device":
        array = gpu.device_array(content.shape, content.dtype)
        array.copy_to_device(content)
    else:
        array = gpu.pinned_array(content.shape, content.dtype)
        array[:] = content
    return array


def first(gpu, array):
    gpu.synchronize()
    return (array.copy_to_host() if hasattr(array, "copy_to_host") else array)[:, 0].tolist()


def test_gather_takes_rows_in_order_and_more_than_once(gpu, mode):
    src, out = numbered(gpu, "pinned", 20), numbered(gpu, "device", 6)
    ns.gather(src, [17, 3, 17], out, mode=mode).wait()
    assert first(gpu, out) == [17, 3, 17, 3, 4, 5]
    ns.gather(src, np.array([9, 9], np.int32), out, slots=[5, 0], mode=mode).wait()
    assert first(gpu, out) == [9, 3, 17, 3, 4, 9]
    ns.gather(src, [], out, mode=mode).wait()


def test_scatter_puts_rows_where_their_ids_say(gpu, mode):
    src, dst = numbered(gpu, "device", 6), numbered(gpu, "pinned", 10)
    ns.scatter(src, dst, [9, 0], mode=mode).wait()
    assert first(gpu, dst) == [1, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    ns.scatter(src, dst, [4, 4, 2, 4], slots=[5, 3, 1, 2], duplicates="first", mode=mode).wait()
    assert [first(gpu, dst)[i] for i in (2, 4)] == [1, 5]
    ns.scatter(src, dst, [4, 4, 2, 4], slots=[5, 3, 1, 2], duplicates="last", mode=mode).wait()
    assert [first(gpu, dst)[i] for i in (2, 4)] == [1, 2]


def test_rows_along_another_axis_and_in_layers():
    with ns.simulate() as gpu:
        src, out = (
            [gpu.pinned_array((4, 6)) for _ in range(2)],
            [gpu.device_array((4, 2)) for _ in range(2)],
        )
        for i, layer in enumerate(src):
            layer[:] = 10 * i + np.arange(6)
        ns.gather(src, [5, 1], out, block_axis=1).wait()
        assert [layer.copy_to_host()[0].tolist() for layer in out] == [[5, 1], [15, 11]]


@pytest.mark.parametrize(
    ("call", "words", "index"),
    [
        (lambda s, d: ns.gather(s, [1, 20], d), r"\(ids, slots\)\[1\]: src block 20", 1),
        (lambda s, d: ns.gather(s, range(7), d), r"\(ids, slots\)\[6\]: out block 6", 6),
        (lambda s, d: ns.gather(s, [1, 2], d, slots=[3, 3]), "block 3 is written twice", 1),
        (lambda s, d: ns.gather(s, [1, 2], d, slots=[3]), "2 ids and 1 slots", None),
        (lambda s, d: ns.gather(s, [[1]], d), "ids must be a sequence", None),
        (lambda s, d: ns.scatter(d, s, [1, 1]), r"\(slots, ids\)\[1\].*written twice", 1),
        (lambda s, d: ns.scatter(d, s, [1, 1, 30], duplicates="last"), "block 30", 2),
    ],
)
def test_errors_name_ids_and_slots_and_move_nothing(call, words, index):
    with ns.simulate() as gpu:
        src, out = numbered(gpu, "pinned", 20), numbered(gpu, "device", 6)
        with pytest.raises(ns.BadPlanError, match=words) as caught:
            call(src, out)
        assert caught.value.index == index
        assert first(gpu, out) == list(range(6))
        assert first(gpu, src) == list(range(20))
        with pytest.raises(ns.BadArgumentError, match="none of 'raise'"):
            ns.scatter(out, src, [1], duplicates="sum")


def test_repeated_gathers_take_the_short_way():
    with ns.simulate() as gpu:
        src, out, stream = numbered(gpu, "pinned", 20), numbered(gpu, "device", 6), gpu.stream()
        for ids in ([1, 3], [5, 7], [9, 2]):
            ns.gather(src, np.array(ids), out, stream=stream, mode="kernel").wait()
            assert first(gpu, out)[:2] == ids
        before = gpu.library.calls["cuStreamGetCtx"]
        hits = ns.plan_cache.info().hits
        ns.gather(src, np.array([4, 8]), out, stream=stream, mode="kernel").wait()
        assert ns.plan_cache.info().hits == hits + 1
        assert gpu.library.calls["cuStreamGetCtx"] - before <= 1
