"""Threads, forks and the end of the interpreter, each in a process of its own."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of

HELPERS = Path(__file__).parents[1] / "helpers"
ROOT = Path(__file__).parents[2]
MODES = ["batch", "loop", "kernel"]
HAS_FORK = hasattr(os, "fork")

BEGIN = {
    "simulated": """
import numba_swap as ns
simulation = ns.simulate()
gpu = simulation.__enter__()
""",
    "real": """
import numba_swap as ns
from machines import RealGPU
gpu = RealGPU()
""",
}
REAL = pytest.param("real", marks=pytest.mark.gpu)


def run_child(code, timeout=120):
    """Run code in a process of its own; it must end well, and say nothing on stderr."""
    paths = [str(HELPERS), str(ROOT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    assert not result.stderr
    return result.stdout


# -- fork ---------------------------------------------------------------------------------------

FORK = """
import os, sys, gc, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads at a fork
import numpy as np
src, dst = gpu.pinned_array((64, 4096), np.uint8), gpu.device_array((64, 4096), np.uint8)
src[:] = 7
rows = np.array([[i, 63 - i] for i in range(0, 64, 2)])
stream = gpu.stream()
plan = ns.plan_blocks(src, dst, rows)
for _ in range(2):  # the short ways are known, too
    ns.swap_blocks(src, dst, rows, stream=stream).wait()
    plan.run(stream).wait()
transfer, dropped = plan.run(stream), plan.run(stream)
pid = os.fork()
if pid == 0:
    address = src.ctypes.data
    calls = [
        transfer.wait,
        transfer.done,
        plan.explain,
        lambda: plan.run(stream),
        lambda: ns.swap_blocks(src, dst, rows, stream=stream),
        lambda: ns.swap_blocks(src, dst, rows.tolist()),
        lambda: ns.swap_blocks_batch([address], [address + 8], [8]),
        lambda: ns.plan_blocks(src, dst, rows),
        ns.warm_up,
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except ns.DriverUnavailableError as error:
            assert "does not survive a fork" in str(error) and "spawn" in str(error)
        else:
            print("not refused:", number)
            os._exit(1)
    del dropped, transfer, plan
    gc.collect()
    with ns.simulate() as other:  # a driver of the child's own is no matter
        small = other.pinned_array((4, 8)), other.device_array((4, 8))
        ns.swap_blocks(*small, [[0, 1], [2, 3]], mode="loop").wait()
    EXIT
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
transfer.wait()
assert (dst.copy_to_host()[rows[:, 1]] == 7).all()
dst.copy_to_device(np.zeros((64, 4096), np.uint8))
ns.swap_blocks(src, dst, rows, stream=stream).wait()
plan.run(stream).wait()
assert (dst.copy_to_host()[rows[:, 1]] == 7).all()
print("the parent works on")
"""


@pytest.mark.skipif(not HAS_FORK, reason="this system has no fork")
@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit()"])
@pytest.mark.parametrize("machine", ["simulated", REAL])
def test_a_forked_child_is_told_and_the_parent_works_on(machine, ending):
    code = BEGIN[machine] + FORK.replace("EXIT", ending)
    if machine == "real" and ending == "sys.exit()":
        # What Numba itself does at the end of a forked process is not looked at.
        code = code.replace("sys.exit()", "os._exit(0)")
    assert "the parent works on" in run_child(code)


@pytest.mark.skipif(not HAS_FORK, reason="this system has no fork")
def test_a_child_forked_before_any_use_may_use_cuda():
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numba_swap as ns
from numba_swap.driver import current, library
from numba_swap.driver.simulated import SimulatedLibrary
library.NvidiaLibrary = SimulatedLibrary
current.default_driver()  # looked up, but not initialised
pid = os.fork()
if pid == 0:
    current.default_driver().current_context()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    run_child(code)


def test_a_driver_that_another_library_used_before_the_fork_is_told():
    """Then cuInit answers "not initialised" in the child."""
    from numba_swap.driver.calls import Driver
    from numba_swap.driver.simulated import Fault, FaultPlan, SimulatedLibrary

    driver = Driver(SimulatedLibrary(faults=FaultPlan(Fault("cuInit", 3, times=None))))
    with pytest.raises(ns.DriverUnavailableError, match="does not survive a fork"):
        driver.current_context()


# -- the end of the interpreter -----------------------------------------------------------------

EXIT = """
import sys
import numpy as np
src, dst = gpu.pinned_array((BLOCKS, 1 << 16), np.uint8), gpu.device_array((BLOCKS, 1 << 16), "u1")
back = gpu.pinned_array((BLOCKS, 1 << 16), np.uint8)
rows = np.array([[i, BLOCKS - 1 - i] for i in range(BLOCKS)])
streams = [gpu.stream() for _ in range(3)]
kept = []
for step in range(12):
    kept.append(ns.swap_blocks(src, dst, rows, stream=streams[step % 3], mode=MODE))
    transfer = ns.swap_blocks(dst, back, rows, stream=streams[step % 3], mode=MODE)
if MODE == "loop":
    del src, dst, back, streams, kept, transfer
print("ending")
ENDING
"""


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("sys.exit(3)", 3)])
@pytest.mark.parametrize("mode", ["loop", "batch", "kernel"])
@pytest.mark.parametrize("machine", ["simulated", REAL])
def test_the_interpreter_ends_with_transfers_in_flight(machine, mode, ending, code):
    if machine == "simulated" and (mode == "kernel" or ending == ""):
        pytest.skip("Numba's simulator would take long" if ending else "see test_transfer.py")
    blocks = 2048 if machine == "real" else 8
    script = EXIT.replace("BLOCKS", str(blocks)).replace("MODE", repr(mode))
    script = BEGIN[machine] + script.replace("ENDING", ending)
    if code:
        script = f"import atexit, os\n{script}"
        wrapped = f"import subprocess, sys; r = subprocess.run([sys.executable, '-c', {script!r}])"
        script = f"{wrapped}; sys.exit(0 if r.returncode == {code} else 1)"
    assert "ending" in run_child(script)


# -- threads ------------------------------------------------------------------------------------

THREADS = """
import threading, sys
import numpy as np
sys.setswitchinterval(1e-5)
barrier, errors = threading.Barrier(8), []

def work(number):
    try:
        rng = np.random.default_rng(number)
        src, back, device, own, shared = arrays[number]
        barrier.wait()
        for step in range(STEPS):
            src[:] = rng.integers(1, 255, src.shape)
            pairs = np.stack([np.arange(16), rng.permutation(16)], axis=1)
            mode = MODES[(number + step) % len(MODES)]
            stream = shared if step % 2 else own
            there = ns.swap_blocks(src, device, pairs, stream=stream, mode=mode)
            ns.swap_blocks(device, back, pairs[:, ::-1].copy(), stream=stream, mode=mode).wait()
            assert np.array_equal(src, back), (number, step)
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
print("driver resolved", made, "times")
"""

FIRST_USE = {
    "simulated": """
import numba_swap as ns
from numba_swap.driver import library
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.gpu import SimulatedGPU
import numpy as np, time
gpu = SimulatedGPU.__new__(SimulatedGPU)
gpu.library = SimulatedLibrary()
made = 0
def slow():
    global made
    time.sleep(0.05)
    made += 1
    return gpu.library
library.NvidiaLibrary = slow
MODES, STEPS = ["batch", "loop"], 20
shared = gpu.stream()
arrays = [
    (gpu.pinned_array((16, 64), np.uint8), gpu.pinned_array((16, 64), np.uint8),
     gpu.device_array((16, 64), np.uint8), gpu.stream(), shared) for _ in range(8)
]
""",
    "real": """
import numba_swap as ns
from machines import RealGPU
import numpy as np
gpu, made = RealGPU(), 1
MODES, STEPS = ["batch", "loop", "kernel", "auto"], 200
shared = gpu.stream()
arrays = [
    (gpu.pinned_array((16, 5000), np.uint8), gpu.pinned_array((16, 5000), np.uint8),
     gpu.device_array((16, 5000), np.uint8), gpu.stream(), shared) for _ in range(8)
]
""",
}


@pytest.mark.parametrize("machine", ["simulated", REAL])
def test_eight_threads_come_first_together(machine):
    """Own streams and a shared one, while the library resolves itself for the first time."""
    assert "driver resolved 1 times" in run_child(FIRST_USE[machine] + THREADS)


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.mark.parametrize("what", ["cuStreamCreate", "cuDevicePrimaryCtxRetain", "cuMemHostAlloc"])
def test_no_lock_is_held_while_the_driver_takes_its_time(gpu, what):
    """While one thread waits for the driver, others do the same without waiting for it."""
    driver, released, entered = gpu.driver, threading.Event(), threading.Event()
    original, first = getattr(driver, f"_{what}"), threading.Lock()

    def slow(*arguments):
        if first.acquire(blocking=False):
            entered.set()
            assert released.wait(20)
        return original(*arguments)

    setattr(driver, f"_{what}", slow)
    context = driver.current_context()
    devices = devices_of(driver)
    call = {
        "cuStreamCreate": lambda: devices.context(context).private_streams(2),
        "cuDevicePrimaryCtxRetain": lambda: devices[0].primary_context,
        "cuMemHostAlloc": lambda: devices.host_buffers.take(1 << 14),
    }[what]

    def work():
        with driver.activate(context):
            call()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert entered.wait(20)
        call()  # would not return if the other held a lock
    finally:
        released.set()
        thread.join()
    assert len(devices.context(context).private_streams(2)) == 2


class AlwaysCleared(dict):
    """A table that another thread clears whenever nobody looks."""

    def __getitem__(self, key):
        raise KeyError(key)

    def __setitem__(self, key, value):
        self.clear()
        super().__setitem__(key, value)

    def get(self, key, default=None):
        return self.pop(key, default)


def test_tables_of_the_short_way_may_be_cleared_at_any_time(gpu, monkeypatch):
    cache = ns.plan_cache
    cache.clear()
    src, dst = gpu.pinned_array((64, 8), np.uint8), gpu.device_array((64, 8), np.uint8)
    src[:] = 3
    rows, stream = np.array([[0, 8], [2, 4], [40, 0]]), gpu.stream()
    for _ in range(2):
        ns.swap_blocks(src, dst, rows, stream=stream).wait()
    (pair,) = cache._pairs.values()
    (prepared,) = pair._prepared.values()
    for table in (pair, "_makers"), (pair, "_prepared"), (prepared._ready, "_made"):
        monkeypatch.setattr(*table, AlwaysCleared(getattr(*table)))
    assert ns.swap_blocks(src, dst, rows, stream=stream).done() in (False, True)
    monkeypatch.setattr(cache, "_pairs", AlwaysCleared(cache._pairs))
    for _ in range(4):
        ns.swap_blocks(src, dst, rows, stream=stream).wait()
    assert (dst.copy_to_host()[[8, 4, 0]] == 3).all()
