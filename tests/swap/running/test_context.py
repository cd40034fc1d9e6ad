"""In which context work is submitted, and what is current afterwards."""

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from machines import random_bytes

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import enter_driver, leave_driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.gpu import SimulatedGPU
from numba_swap.swap.running import context

ROWS = np.array([[0, 6], [2, 9], [5, 1], [7, 3], [9, 11]])


def test_a_thread_has_no_context_after_an_error_either(monkeypatch):
    def fail(*_):
        raise MemoryError("no more")

    found = []

    def work(plan):
        with pytest.raises(MemoryError, match="no more") as caught:
            plan.run()
        found.append(driver.probe(0)[0])
        del caught  # until here the error keeps all that was under way

    with ns.simulate() as gpu:
        driver = gpu.driver
        plan = ns.plan_blocks(np.zeros((12, 96)), gpu.device_array((12, 96)), ROWS)
        monkeypatch.setattr(context, "capabilities_of", fail)
        thread = threading.Thread(target=work, args=(plan,))
        thread.start()
        thread.join()
    assert found == [0]


def test_a_thread_gets_back_what_it_had_when_the_context_is_left():
    """Not only when what led into it is dropped."""
    driver = Driver(SimulatedLibrary(devices=2))
    devices = devices_of(driver)
    driver.initialize()
    here = context.launching(devices, 1, ns.Direction.H2D, context.RunOptions())
    with here as launch:
        assert launch.device is devices[1]
        assert driver.probe(0)[0] == devices[1].primary_context
    assert driver.probe(0)[0] == 0


def test_what_is_pending_in_another_context_comes_first(rng):
    """An event is recorded in a stream of its own context only."""
    driver = Driver(SimulatedLibrary(devices=2))
    enter_driver(driver)
    try:
        gpu = SimulatedGPU(driver)
        own, there = gpu.stream(), gpu.library.create_stream(device=1)
        src, dst = gpu.pinned_array((12, 96), np.uint8), gpu.device_array((12, 96), np.uint8)
        content = random_bytes(rng, (12, 96))
        pending = {
            "shape": src.shape,
            "typestr": "|u1",
            "data": (src.ctypes.data, False),
            "version": 3,
            "stream": there,
        }
        view = SimpleNamespace(__cuda_array_interface__=pending)
        for _ in range(2):
            src[:] = 0
            gpu.library.enqueue(there, partial(np.copyto, src, content))
            ns.swap_blocks(view, dst, ROWS, stream=own).wait()
            assert np.array_equal(dst.copy_to_host()[ROWS[:, 1]], content[ROWS[:, 0]])
            assert driver.probe(0)[0] == 0  # the thread's own, as before
            content += 1
        gpu.library.finish()
    finally:
        leave_driver(driver)
