"""One GPU: what is asked of the driver once, and what is kept."""

from types import SimpleNamespace

import pytest

from numba_swap.device.device import Device
from numba_swap.device.tuning import DEFAULT_TUNING, SIMULATED_TUNING
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.simulated import SimulatedLibrary


@pytest.fixture
def driver():
    driver = Driver(SimulatedLibrary(devices=2))
    driver.initialize()
    return driver


def test_attributes_and_the_context_are_asked_for_once(driver):
    device, calls = Device(driver, 1), driver.library.calls
    code = abi.DEVICE_CONCURRENT_MANAGED_ACCESS
    assert [device.attribute(code) for _ in range(3)] == [driver.device_attribute(code, 1)] * 3
    assert calls["cuDeviceGetAttribute"] == 2
    handles = {device.primary_context for _ in range(3)}
    assert calls["cuDevicePrimaryCtxRetain"] == 1
    assert handles == {driver.primary_context(1)}
    assert handles != {driver.primary_context(0)}


def test_what_is_known_of_a_new_device(driver):
    device = Device(driver, 1)
    assert (device.driver, device.ordinal, device.name) == (driver, 1, driver.device_name(1))
    assert (device.kernels, device.costs, device.capabilities) == ({}, None, {})
    assert device.tuning is SIMULATED_TUNING
    assert Device(SimpleNamespace(simulated=False), 0).tuning is DEFAULT_TUNING
