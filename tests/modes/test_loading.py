"""A kernel that cannot be compiled or loaded: tried once, said wherever it matters."""

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.driver.calls import Driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.modes.kernel import loading
from numba_swap.modes.kernel.compilers import simulator
from numba_swap.testing import Fault

LOAD = "cuModuleLoadData"
NO_BINARY = 209
WORDS = r"could not compile or load the kernel for device 0 \(.*\[209\].*not tried again"


@pytest.fixture
def gpu():
    """A GPU on which no kernel can be loaded."""
    with ns.simulate() as gpu:
        gpu.library.faults.add(Fault(LOAD, NO_BINARY, times=None))
        yield gpu


@pytest.fixture
def pools(gpu):
    host = gpu.pinned_array((64, 512), np.uint8)
    host[:] = np.arange(64)[:, None]
    return host, gpu.device_array((64, 512), np.uint8)


shifts = count(1)


def swap(pools, **how):
    """Swap with a mapping that was not seen before, so that nothing is known of it."""
    host, device = pools
    rows = np.stack([np.arange(64), (np.arange(64) * 5 + next(shifts)) % 64], axis=1)
    transfer = ns.swap_blocks(host, device, rows, **how)
    transfer.wait()
    assert (device.copy_to_host()[rows[:, 1], 0] == rows[:, 0]).all()
    return transfer.decision


def test_it_is_tried_once_in_a_process(gpu, pools, caplog):
    decisions = [swap(pools) for _ in range(10)]
    assert gpu.library.calls[LOAD] == 1
    assert {decision.mode for decision in decisions} == {"batch"}
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "not tried again in this process" in caplog.text


def test_every_reason_says_it(gpu, pools):
    for _ in range(2):
        decision = swap(pools)
        assert "no kernel: Numba could not compile or load the kernel for" in decision.reason
        assert "[209]" in decision.reason
        assert "not tried again in this process" in decision.reason
    with ns.override(driver_version=(12, 4)):
        assert "[209]" in swap(pools).reason
    table = ns.plan_blocks(*pools, [[1, 2], [5, 9]]).explain().table()
    assert "[209]" in table


def test_the_mode_forced_is_refused_with_the_reason(gpu, pools):
    for _ in range(2):
        with pytest.raises(ns.ModeUnavailableError, match=WORDS):
            swap(pools, mode="kernel")
        with ns.override(mode="kernel"), pytest.raises(ns.ModeUnavailableError, match=WORDS):
            swap(pools)
    assert gpu.library.calls[LOAD] == 1


def test_exchanges_try_their_own_kernel_once(gpu, pools, caplog):
    swap(pools)
    host, device = pools
    for slot in range(4):
        expected = device.copy_to_host()[slot, 0], host[slot, 0]
        transfer = ns.exchange(device, host, [[slot, 60]], [[slot, 50]])
        transfer.wait()
        assert "not in pairs: Numba could not compile or load" in transfer.decision.reason
        assert (host[60, 0], device.copy_to_host()[50, 0]) == expected
    assert gpu.library.calls[LOAD] == 2  # one of each
    assert len(caplog.records) == 1


def test_a_kernel_of_exchanges_alone(monkeypatch):
    """That of copies is there, and is used."""
    register = simulator.register

    def only_copies(library, name):
        if name == "exchange":
            raise RuntimeError("too many registers")
        return register(library, name)

    monkeypatch.setattr(simulator, "register", only_copies)
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((64, 512), np.uint8), gpu.device_array((64, 512), np.uint8)
        host[:] = np.arange(64)[:, None]
        ns.swap_blocks(host, device, [[5, 5]], mode="kernel").wait()
        transfer = ns.exchange(device, host, [[5, 60]], [[9, 5]], mode="kernel")
        transfer.wait()
        assert (host[60, 0], device.copy_to_host()[5, 0]) == (5, 9)
        assert transfer.decision.mode == "kernel"
        assert "(RuntimeError: too many registers)" in transfer.decision.reason


def test_warm_up_says_it_without_another_try(gpu, pools):
    swap(pools)
    for _ in range(2):
        with pytest.raises(ns.ModeUnavailableError, match=WORDS):
            ns.warm_up()
    assert gpu.library.calls[LOAD] == 1


def test_threads_that_come_together_try_once(gpu, pools, caplog):
    devices = devices_of(gpu.driver)
    gpu.driver.initialize()
    with ThreadPoolExecutor(8) as pool:
        reasons = set(pool.map(lambda _: loading.why_not_loaded(devices[0], "copy"), range(8)))
    assert len(reasons) == 1
    assert gpu.library.calls[LOAD] == 1
    assert len(caplog.records) == 1


def test_another_device_is_none_the_worse(caplog):
    driver = Driver(SimulatedLibrary(devices=2))
    driver.library.faults.add(Fault(LOAD, NO_BINARY))
    first, second = devices_of(driver)[0], devices_of(driver)[1]
    assert "device 0" in loading.why_not_loaded(first, "copy")
    assert loading.why_not_loaded(second, "copy") is None
    assert loading.why_not_loaded(first, "copy") is not None
    with pytest.raises(ns.ModeUnavailableError, match=WORDS):
        loading.load_kernel(first, "copy")
    assert loading.load_kernel(second, "copy") == second.kernels["copy"]


def test_another_driver_is_none_the_worse(gpu, pools):
    swap(pools)
    with ns.simulate() as other:
        ns.warm_up()
        assert other.library.calls[LOAD] == 3


@pytest.mark.parametrize("error", [OSError, RuntimeError, MemoryError, ImportError])
def test_whatever_a_compiler_raises(monkeypatch, error, caplog):
    tries = []

    def fail(library, name):
        tries.append(name)
        raise error("one\n  line, and " + "page after page " * 1000)

    monkeypatch.setattr(simulator, "register", fail)
    with ns.simulate() as gpu:
        pools = gpu.pinned_array((64, 512), np.uint8), gpu.device_array((64, 512), np.uint8)
        pools[0][:] = np.arange(64)[:, None]
        decisions = [swap(pools) for _ in range(3)]
    assert tries == ["copy"]
    for decision in decisions:
        assert f"({error.__name__}: " in decision.reason
        assert "one line, and page after page" in decision.reason
        assert len(decision.reason) < 1000


def test_ctrl_c_while_compiling_is_no_failure(monkeypatch):
    register = simulator.register

    def interrupted(library, name):
        monkeypatch.setattr(simulator, "register", register)
        raise KeyboardInterrupt

    monkeypatch.setattr(simulator, "register", interrupted)
    with ns.simulate():
        with pytest.raises(KeyboardInterrupt):
            ns.warm_up()
        ns.warm_up()
