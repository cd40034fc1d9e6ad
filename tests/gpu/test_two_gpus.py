"""Two GPUs of one machine: what belongs to one of them leaves the other alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import numba_swap as ns

pytestmark = [pytest.mark.gpu, pytest.mark.peers]

# Contexts are those of a process: a fresh one shows which of them the package makes.
SECOND_ALONE = """
import json, threading
import numpy as np
import numba_swap as ns
from cuda.bindings import driver
from numba import cuda

driver.cuInit(0)

def active():
    return [int(driver.cuDevicePrimaryCtxGetState(device)[2]) for device in (0, 1)]

told = {"at first": active(), "modes": {}, "right": []}
cuda.select_device(1)
host, back = (cuda.pinned_array((512, 4096), np.uint8) for _ in range(2))
device = cuda.device_array((512, 4096), np.uint8)
told["with memory"] = active()
host[:] = np.arange(512)[:, None] % 251
rows = np.stack([np.arange(0, 512, 2), np.arange(0, 512, 2)[::-1]], axis=1)
# Outside of the thread: Numba itself makes a context for one that slices its arrays.
part = device[10:20, 5:105]
returning = np.stack([rows[:, 1]] * 2, axis=1)
expected = host[rows[:, 0]].copy()

def copies():
    for mode in ("auto", "kernel", "batch", "loop"):
        transfer = ns.swap_blocks(host, device, rows, mode=mode)
        transfer.wait()
        back[:] = 255
        ns.swap_blocks(device, back, returning, mode=mode).wait()
        told["right"].append(bool((back[rows[:, 1]] == expected).all()))
        told["modes"][mode] = [str(transfer.decision.mode), *active()]
    ns.copy(host[10:20, 5:105], part).wait()
    ns.copy(part, back[10:20, 5:105]).wait()
    told["after copies of views"] = active()
    told["right"].append(bool((back[10:20, 5:105] == host[10:20, 5:105]).all()))
    slots, rows_out, rows_in = np.arange(30, 38), np.arange(1, 16, 2), np.arange(101, 116, 2)
    coming = host[rows_in].copy()
    ns.swap_blocks(device, back, np.stack([slots] * 2, axis=1)).wait()
    leaving = back[slots].copy()
    ns.exchange(
        device, host, np.stack([slots, rows_out], axis=1), np.stack([rows_in, slots], axis=1)
    ).wait()
    told["right"].append(bool((host[rows_out] == leaving).all()))
    ns.swap_blocks(device, back, np.stack([slots] * 2, axis=1)).wait()
    told["right"].append(bool((back[slots] == coming).all()))
    told["current"] = int(driver.cuCtxGetCurrent()[1])

thread = threading.Thread(target=copies)
thread.start()
thread.join()
told["at last"] = active()
print(json.dumps(told))
"""


@pytest.fixture(autouse=True)
def _two_gpus():
    from numba import cuda

    if len(cuda.gpus) < 2:
        pytest.skip("this machine has one GPU")


def test_memory_of_the_second_makes_no_context_on_the_first(tmp_path):
    """In a thread that has no context, which would be given that of the first device.

    With nothing in the disk cache, for kernels are compiled for a device, too.
    """
    result = subprocess.run(
        [sys.executable, "-c", SECOND_ALONE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["at first"] == [0, 0]
    assert told["with memory"] == [0, 1]
    assert told["modes"] == {
        "auto": ["kernel", 0, 1],
        "kernel": ["kernel", 0, 1],
        "batch": ["batch", 0, 1],
        "loop": ["loop", 0, 1],
    }
    assert told["after copies of views"] == [0, 1]
    assert told["at last"] == [0, 1]
    assert told["current"] == 0
    assert told["right"] == [True] * 7


# -- with memory of both ------------------------------------------------------------------------

MODES = ["auto", "kernel", "batch", "loop"]
ROWS = np.stack([np.arange(0, 512, 2), np.arange(0, 512, 2)[::-1]], axis=1)


@pytest.fixture
def machine():
    """Numba's arrays on either GPU, filled and read by contiguous copies."""
    return TwoGPUs()


class TwoGPUs:
    def __init__(self):
        from numba import cuda

        self.cuda = cuda

    def array(self, device, content):
        with self.cuda.gpus[device]:
            array = self.cuda.to_device(np.ascontiguousarray(content))
            self.cuda.synchronize()
        return array

    def part(self, device, array, *index):
        with self.cuda.gpus[device]:  # Numba makes a context for whoever slices an array
            return array[index]

    def content(self, device, array):
        with self.cuda.gpus[device]:
            self.cuda.synchronize()
            return array.copy_to_host()

    def stream(self, device):
        with self.cuda.gpus[device]:
            return self.cuda.stream()

    def pinned(self, content):
        array = self.cuda.pinned_array(content.shape, content.dtype)
        array[:] = content
        return array


def scattered(rng):
    return rng.integers(0, 256, (512, 4096), dtype=np.uint8)


def swapped(content, target):
    after = target.copy()
    after[ROWS[:, 1]] = content[ROWS[:, 0]]
    return after


@pytest.mark.parametrize("of", [None, 0, 1], ids=["default", "stream of 0", "stream of 1"])
@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_blocks_from_one_to_the_other(machine, rng, mode, direction, of):
    content, target = scattered(rng), scattered(rng)
    source, destination = direction
    src, dst = machine.array(source, content), machine.array(destination, target)
    stream = None if of is None else machine.stream(of)
    plan = ns.plan_blocks(src, dst, ROWS)
    for _ in range(3):  # the last ones in the short way
        transfer = plan.run(stream, mode)
        transfer.wait()
    assert np.array_equal(machine.content(destination, dst), swapped(content, target))
    decision = transfer.decision
    assert decision.direction is ns.Direction.P2P
    assert decision.where.startswith(f"{source} to {destination}, ")
    if mode != "auto":
        assert decision.mode == mode
    elif not decision.where.endswith("no peer access"):
        assert decision.mode == "kernel"


@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("odd", [0, 1])
def test_boxes_from_one_to_the_other(machine, rng, mode, direction, odd):
    content, target = (rng.integers(0, 2**31, (24, 30, 36), dtype=np.uint32) for _ in range(2))
    source, destination = direction
    src, dst = machine.array(source, content), machine.array(destination, target)
    index = slice(2, 18), slice(3, 20), slice(4 + odd, 24)
    pair = machine.part(source, src, *index), machine.part(destination, dst, *index)
    ns.copy(*pair, mode=mode).wait()
    want = target.copy()
    want[index] = content[index]
    assert np.array_equal(machine.content(destination, dst), want)


@pytest.mark.parametrize("mode", MODES)
def test_faces_both_ways_at_once(machine, rng, mode):
    fields = [rng.random((40, 40, 40), dtype=np.float32) for _ in range(2)]
    for axis in range(3):
        u, v = (machine.array(k, field) for k, field in enumerate(fields))

        def face(device, array, index, axis=axis):
            where = [slice(None)] * 3
            where[axis] = index
            return machine.part(device, array, *where)

        pairs = [(face(0, u, 38), face(1, v, 0)), (face(1, v, 1), face(0, u, 39))]
        transfer = ns.copy_many(pairs, mode=mode)
        transfer.wait()
        want = [np.moveaxis(field.copy(), axis, 0) for field in fields]
        want[1][0], want[0][39] = want[0][38].copy(), want[1][1].copy()
        for k, array in enumerate((u, v)):
            found = np.moveaxis(machine.content(k, array), axis, 0)
            assert found.tobytes() == want[k].tobytes(), (axis, k)
        assert len(transfer.decision.parts) == 2


@pytest.mark.parametrize("of", [None, 0, 1], ids=["default", "stream of 0", "stream of 1"])
@pytest.mark.parametrize("mode", MODES)
def test_layers_on_both(machine, rng, mode, of):
    contents, targets = [scattered(rng) for _ in range(2)], [scattered(rng) for _ in range(2)]
    hosts = [machine.pinned(content) for content in contents]
    devices = [machine.array(k, target) for k, target in enumerate(targets)]
    stream = None if of is None else machine.stream(of)
    transfer = ns.swap_blocks(hosts, devices, ROWS, stream=stream, mode=mode)
    transfer.wait()
    assert [part.where for part in transfer.decision.parts] == ["device 0", "device 1"]
    for k, device in enumerate(devices):
        assert np.array_equal(machine.content(k, device), swapped(contents[k], targets[k]))
    backs = [machine.pinned(content * 0) for content in contents]
    returning = np.stack([ROWS[:, 1]] * 2, axis=1)
    ns.swap_blocks(devices, backs, returning, stream=stream, mode=mode).wait()
    for back, content in zip(backs, contents, strict=True):
        assert np.array_equal(back[ROWS[:, 1]], content[ROWS[:, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_an_exchange_between_pools_of_both(machine, rng, mode):
    pool, other = scattered(rng), scattered(rng)
    out_rows = np.stack([np.arange(0, 64), np.arange(100, 164)], axis=1)
    in_rows = np.stack([np.arange(164, 100, -1) + 40, np.arange(0, 64)], axis=1)
    device, there = machine.array(0, pool), machine.array(1, other)
    ns.exchange(device, there, out_rows, in_rows, mode=mode).wait()
    want_pool, want_other = pool.copy(), other.copy()
    want_other[out_rows[:, 1]] = pool[out_rows[:, 0]]
    want_pool[in_rows[:, 1]] = other[in_rows[:, 0]]
    assert np.array_equal(machine.content(0, device), want_pool)
    assert np.array_equal(machine.content(1, there), want_other)


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_host_and_the_second_whatever_is_current(machine, rng, mode, current):
    content, target = scattered(rng), scattered(rng)
    device, host = machine.array(1, target), machine.pinned(content)
    with machine.cuda.gpus[current]:
        before = ns.plan_blocks(host, device, ROWS)
        for _ in range(3):
            transfer = before.run(mode=mode)
            transfer.wait()
        fresh = ns.swap_blocks(host, device, ROWS, mode=mode)
        fresh.wait()
        assert machine.cuda.current_context().device.id == current
    assert np.array_equal(machine.content(1, device), swapped(content, target))
    expected = "kernel" if mode == "auto" else mode
    assert transfer.decision.mode == fresh.decision.mode == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_of_the_first_orders_copies_of_the_second(machine, rng, mode):
    """What is pending in that stream comes first, and what follows there comes after."""
    content, target = scattered(rng), scattered(rng)
    host, back = machine.pinned(content * 0), machine.pinned(content * 0)
    device, elsewhere = machine.array(1, target), machine.array(0, content)
    stream = machine.stream(0)
    for _ in range(3):
        host[:] = 0
        with machine.cuda.gpus[0]:
            elsewhere.copy_to_host(host, stream=stream)
        ns.swap_blocks(host, device, ROWS, stream=stream, mode=mode)
        ns.swap_blocks(device, back, np.stack([ROWS[:, 1]] * 2, axis=1), stream=stream, mode=mode)
        stream.synchronize()
        assert np.array_equal(back[ROWS[:, 1]], content[ROWS[:, 0]])
        back[:] = 0


def test_default_streams_of_both_order_copies_between_them(machine, rng):
    from numba import cuda

    @cuda.jit
    def add_slowly(array, value):
        for _ in range(2000):
            for i in range(cuda.grid(1), array.size, cuda.gridsize(1)):
                array[i] += value

    content = rng.integers(0, 100, (512, 1024), dtype=np.int64)
    src, dst = machine.array(0, content), machine.array(1, content * 0)
    with cuda.gpus[0]:
        flat = src.reshape(-1)
        add_slowly[128, 256](flat, 1)
    plan = ns.plan_blocks(src, dst, ROWS)
    plan.run()
    with cuda.gpus[0]:
        add_slowly[128, 256](flat, 1)  # comes after the copy has read
    found = machine.content(1, dst)
    assert np.array_equal(found, swapped(content + 2000, content * 0))


def test_a_captured_copy_between_them_replays(machine, rng):
    from machines import RealGPU

    content, target = scattered(rng), scattered(rng)
    src, dst = machine.array(0, content), machine.array(1, target)
    plan = ns.plan_blocks(src, dst, ROWS)
    for mode in ("kernel", "loop"):
        stream = machine.stream(1)
        with machine.cuda.gpus[1]:
            plan.run(stream, mode).wait()
            replay = RealGPU().capture(stream, lambda m=mode, s=stream: plan.run(s, m))
            replay()
        assert np.array_equal(machine.content(1, dst), swapped(content, target))


UNTOUCHED = """
import json
import numpy as np
import numba_swap as ns
from cuda.bindings import driver
from numba import cuda

driver.cuInit(0)
told = [len(cuda.gpus)]
ns.driver_info()
ns.explain_copy("p2p", 8192, 100)
told.append([int(driver.cuDevicePrimaryCtxGetState(k)[2]) for k in range(told[0])])
print(json.dumps(told))
"""


def test_to_ask_which_gpus_reach_each_other_makes_no_context():
    result = subprocess.run(
        [sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    count, active = json.loads(result.stdout)
    assert active == [0] * count


def test_what_the_driver_tells_of_the_pair():
    from numba import cuda

    for pair in ns.driver_info()["peers"]:
        reach = cuda.gpus[pair["device"]].get_primary_context().can_access_peer(pair["peer"])
        assert pair["access"] == bool(reach)
        assert pair["link"] == ("no peer access" if not reach else pair["link"])
