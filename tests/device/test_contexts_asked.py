"""Which context a thread without one gets, and that each GPU is one object."""

import threading

import pytest

from numba_swap.device.devices import Devices, devices_of
from numba_swap.driver.calls import Driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.memory import Kind


@pytest.fixture
def driver():
    """Two GPUs, and a thread without a context."""
    driver = Driver(SimulatedLibrary(devices=2))
    driver.initialize()
    return driver


def place(driver, kind, device):
    return driver.library.allocate(256, kind, device).start


@pytest.mark.parametrize(
    ("where", "device"),
    [
        ([(Kind.DEVICE, 0)], 0),
        ([(Kind.DEVICE, 1)], 1),
        ([(Kind.PINNED, 0), (Kind.DEVICE, 1)], 1),
        ([(Kind.DEVICE, 1), (Kind.PINNED, 0)], 1),
        ([(Kind.PINNED, 1)], 1),
        ([(Kind.DEVICE, 1), (Kind.DEVICE, 0)], 1),
        ([None, (Kind.DEVICE, 1)], 1),
        ([None, (Kind.PINNED, 1)], 1),
        ([None], 0),
    ],
)
def test_a_thread_gets_the_context_of_the_gpu_whose_memory_it_is(driver, where, device):
    devices = devices_of(driver)
    at = [64 if memory is None else place(driver, *memory) for memory in where]
    with devices.asking_about(at):
        assert driver.current_device() == device
        assert driver.probe(0)[0] == devices[device].primary_context
    assert driver.probe(0)[0] == 0
    # Its own, if it has one.
    with driver.activate(devices[1 - device].primary_context), devices.asking_about(at):
        assert driver.current_device() == 1 - device
    with devices.asking_about([]):
        assert driver.probe(0)[0] == 0


@pytest.mark.parametrize(("asked", "device"), [(None, 0), (0, 0), (1, 1)])
def test_a_thread_gets_the_context_that_is_asked_for_unless_it_has_one(driver, asked, device):
    devices = devices_of(driver)
    with devices.in_a_context(asked):
        assert driver.current_device() == device
    assert driver.probe(0)[0] == 0
    with driver.activate(devices[1].primary_context), devices.in_a_context(asked):
        assert driver.current_device() == 1
    buffer = devices.host_buffers.take(100, asked)
    assert driver.probe(0)[0] == 0
    assert driver.pointer_info(buffer.address).device == device


def test_each_is_one_object(driver):
    devices = devices_of(driver)
    assert devices_of(driver) is devices
    assert devices_of(Driver(SimulatedLibrary())) is not devices
    assert [devices[i].ordinal for i in (0, 1)] == [0, 1]
    assert devices[1] is devices[1]
    handle = devices[1].primary_context
    with driver.activate(handle):
        context = devices.context(handle)
    assert context is devices.context(handle)
    assert (context.handle, context.device, context.driver) == (handle, devices[1], driver)


def test_threads_that_come_first_together_get_the_same(driver, monkeypatch):
    """Whoever is second throws away what it made."""
    both, found = threading.Barrier(2), []

    def slow(self, driver, real=Devices.__init__):
        real(self, driver)
        both.wait(10)

    monkeypatch.setattr(Devices, "__init__", slow)
    threads = [threading.Thread(target=lambda: found.append(devices_of(driver))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]
