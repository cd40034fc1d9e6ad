"""Several simulated devices: contexts, links, access, and what goes wrong without."""

import ctypes

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.driver import abi
from numba_swap.errors import DriverCallError

RANK, ACCESS, ATOMICS = (
    abi.P2P_PERFORMANCE_RANK,
    abi.P2P_ACCESS_SUPPORTED,
    abi.P2P_NATIVE_ATOMIC_SUPPORTED,
)


def address(array):
    return array.__cuda_array_interface__["data"][0]


@pytest.mark.parametrize(
    ("access", "told"),
    [(True, (0, 1, 1)), ("NVLink", (0, 1, 1)), ("PCIe", (1, 1, 0)), (False, (2, 0, 0))],
)
def test_what_the_driver_tells_of_a_pair(access, told):
    with ns.simulate(devices=2, peer_access=access) as gpu:
        driver = gpu.driver
        assert driver.device_count() == 2
        for pair in ((0, 1), (1, 0)):
            found = tuple(driver.peer_attribute(code, *pair) for code in (RANK, ACCESS, ATOMICS))
            assert found == told
            assert driver.can_access_peer(*pair) == bool(told[1])
        assert not driver.can_access_peer(1, 1)
        assert gpu.library.active_devices == set()  # to ask makes no context
        with pytest.raises(DriverCallError, match="INVALID_DEVICE"):
            driver.peer_attribute(RANK, 1, 1)
        with pytest.raises(DriverCallError, match="INVALID_VALUE"):
            driver.peer_attribute(77, 0, 1)
        for ask in (driver.can_access_peer, lambda *pair: driver.peer_attribute(RANK, *pair)):
            for pair in ((0, 2), (2, 0)):
                with pytest.raises(DriverCallError, match="INVALID_DEVICE"):
                    ask(*pair)


def test_a_matrix_has_a_row_for_each_device():
    matrix = [[False, "PCIe", False], ["NVLink", False, True], [False, False, False]]
    with ns.simulate(devices=3, peer_access=matrix) as gpu:
        reach = [[gpu.driver.can_access_peer(i, j) for j in range(3)] for i in range(3)]
    assert reach == [[False, True, False], [True, False, True], [False, False, False]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": 0}, "devices=0 is no positive number"),
        ({"devices": True}, "devices=True is no positive number"),
        ({"devices": "2"}, "devices='2' is no positive number"),
        ({"devices": 2, "peer_access": "SLI"}, "'SLI' is no link"),
        ({"devices": 2, "peer_access": [[True, True]]}, "no row and column for each of 2"),
        ({"devices": 2, "peer_access": [[True], [True]]}, "no row and column for each of 2"),
        ({"devices": 2, "peer_access": [[True, 2], [True, True]]}, "2 is no link"),
    ],
)
def test_what_cannot_be_simulated(arguments, words):
    with pytest.raises(ns.BadArgumentError, match=words), ns.simulate(**arguments):
        pass


@pytest.mark.parametrize("device", [2, -1, True, None])
def test_arrays_and_streams_are_of_a_device_that_there_is(device):
    with ns.simulate(devices=2) as gpu:
        for make in (lambda: gpu.device_array(3, device=device), lambda: gpu.stream(device=device)):
            with pytest.raises(ns.BadArgumentError, match="which are 0 to 1"):
                make()


def test_access_is_enabled_for_one_context_and_one_way():
    with ns.simulate(devices=2) as gpu:
        driver = gpu.driver
        contexts = [driver.primary_context(device) for device in (0, 1)]
        with driver.activate(contexts[0]):
            assert driver._cuCtxEnablePeerAccess(contexts[1], 1) == abi.ERROR_INVALID_VALUE
            assert driver._cuCtxEnablePeerAccess(contexts[0], 0) == abi.ERROR_INVALID_CONTEXT
            assert driver._cuCtxEnablePeerAccess(123, 0) == abi.ERROR_INVALID_CONTEXT
            assert driver._cuCtxEnablePeerAccess(contexts[1], 0) == abi.SUCCESS
            again = driver._cuCtxEnablePeerAccess(contexts[1], 0)
            assert again == abi.ERROR_PEER_ACCESS_ALREADY_ENABLED
            driver.enable_peer_access(contexts[1])  # which is no error
        assert driver._cuCtxEnablePeerAccess(contexts[1], 0) == abi.ERROR_INVALID_CONTEXT
        with driver.activate(contexts[1]):
            assert driver._cuCtxEnablePeerAccess(contexts[0], 0) == abi.SUCCESS
    with ns.simulate(devices=2, peer_access=False) as gpu:
        driver = gpu.driver
        with (
            driver.activate(driver.primary_context(0)),
            pytest.raises(DriverCallError, match="PEER_ACCESS_UNSUPPORTED"),
        ):
            driver.enable_peer_access(driver.primary_context(1))


def test_the_address_for_kernels_is_told_where_they_may_use_it():
    with ns.simulate(devices=2) as gpu:
        driver, there = gpu.driver, gpu.device_array(64, device=1)
        contexts = [driver.primary_context(device) for device in (0, 1)]
        told = []
        for context in (*contexts, contexts[0]):
            with driver.activate(context):
                told.append(driver.pointer_info(address(there)).device_address != 0)
                if context == contexts[1]:
                    with driver.activate(contexts[0]):
                        driver.enable_peer_access(contexts[1])
        assert told == [False, True, True]
        assert driver.pointer_info(address(there)).device == 1


@pytest.mark.parametrize("enabled", [False, True])
def test_a_kernel_that_touches_what_it_may_not_reach_breaks_its_context(enabled):
    simulation = ns.simulate(devices=2)
    with simulation as gpu:
        driver, check = gpu.driver, gpu.library.memory.check_kernel_access
        there = gpu.device_array(64, np.uint8, device=1)
        kernel = gpu.library.register_kernel(lambda b, t, at: check(at, 8), parameters=1)
        stream = gpu.stream()
        context, other = (driver.primary_context(device) for device in (0, 1))
        with driver.activate(context):
            if enabled:
                driver.enable_peer_access(other)
            value = ctypes.c_uint64(address(there))
            parameters = (ctypes.c_void_p * 1)(ctypes.addressof(value))
            code = driver._cuLaunchKernel(
                kernel, 1, 1, 1, 1, 1, 1, 0, stream.handle, parameters, None
            )
            assert code == abi.SUCCESS
        if enabled:
            stream.synchronize()
        else:
            with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
                stream.synchronize()


def test_a_kernel_is_launched_on_its_own_device_only():
    with ns.simulate(devices=2) as gpu:
        driver, stream = gpu.driver, gpu.stream(device=1)
        driver.initialize()
        kernel = gpu.library.register_kernel(lambda b, t: None)
        gpu.library.bind_kernel(kernel, 0)
        launch = kernel, 1, 1, 1, 1, 1, 1, 0, stream.handle, None, None
        assert driver._cuLaunchKernel(*launch) == abi.ERROR_INVALID_HANDLE  # no context
        with driver.activate(driver.primary_context(1)):
            assert driver._cuLaunchKernel(*launch) == abi.ERROR_INVALID_HANDLE
            gpu.library.bind_kernel(kernel, 1)
            assert driver._cuLaunchKernel(*launch) == abi.SUCCESS


def test_arrays_are_read_and_written_in_the_default_stream_of_their_device():
    with ns.simulate(devices=2) as gpu:
        there = gpu.device_array(4, np.int32, device=1)
        assert there.device == there[1:].device == 1
        gpu.library.enqueue(0, lambda: there._memory.fill(5), device=1)
        assert (there.copy_to_host() == 5).all()
        there[2:].copy_to_device([7, 8])
        assert there.copy_to_host().tolist() == [5, 5, 7, 8]


def test_events_go_between_devices_and_are_recorded_at_home():
    with ns.simulate(devices=2) as gpu:
        driver = gpu.driver
        here, there = gpu.stream().handle, gpu.stream(device=1).handle
        with driver.activate(driver.primary_context(0)):
            event = driver.create_event()
        with pytest.raises(DriverCallError, match="INVALID_HANDLE"):
            driver.record_event(event, there)
        order = []
        gpu.library.enqueue(here, lambda: order.append("first"))
        driver.record_event(event, here)
        driver.wait_event(there, event)
        gpu.library.enqueue(there, lambda: order.append("second"))
        gpu.library.synchronize_stream(there)
        assert order == ["first", "second"]


@pytest.mark.parametrize("version", [(11, 3), (13, 0)])
def test_a_driver_without_peer_functions_has_no_peers(version):
    with ns.simulate(version, devices=2) as gpu:
        driver = gpu.driver
        driver.entry_points.answers["cuDeviceCanAccessPeer"] = missing = (
            driver.entry_points.answers["cuDeviceGetP2PAttribute"]
        ).__class__("none", 4000, 500, 0, None)
        driver.entry_points.answers["cuDeviceGetP2PAttribute"] = missing
        assert not driver.can_access_peer(0, 1)
        assert driver.peer_attribute(RANK, 0, 1) == 0
