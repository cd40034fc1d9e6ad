"""One object for each GPU; a call makes contexts on the GPUs that it touches, and on no others."""

import threading

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import enter_driver, leave_driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.gpu import SimulatedGPU
from numba_swap.driver.simulated.memory import Kind


class OnDevice:
    """An array in the memory of one of two GPUs."""

    def __init__(self, gpu, ordinal, shape):
        self.memory = gpu.library.allocate(int(np.prod(shape)), Kind.DEVICE, ordinal)
        self.values = self.memory.buffer.reshape(shape)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (self.memory.start, False),
            "version": 3,
        }


@pytest.fixture
def two():
    library = SimulatedLibrary(devices=2)
    gpu = SimulatedGPU(Driver(library))
    enter_driver(gpu.driver)
    yield gpu
    library.finish()
    leave_driver(gpu.driver)


@pytest.fixture
def retained(two):
    """The GPUs whose primary context was asked for, in order."""
    ordinals = []
    two.library.faults.watch(
        "cuDevicePrimaryCtxRetain", lambda _, ordinal: ordinals.append(ordinal)
    )
    return ordinals


def in_a_new_thread(work):
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def pinned(two, shape):
    """Pinned memory that was allocated in the context of the second GPU."""
    with two.driver.activate(two.driver.primary_context(1)):
        return two.pinned_array(shape, np.uint8)


VERBS = {
    "plan": lambda d, h: ns.plan_blocks(h, d, [[0, 1], [2, 3], [4, 5]]).run(),
    "swap": lambda d, h: ns.swap_blocks(h, d, [[0, 1], [2, 3], [4, 5]]),
    "explain": lambda d, h: ns.plan_blocks(h, d, [[0, 1]]).explain(),
    "exchange": lambda d, h: ns.exchange(d, h, [[0, 1], [2, 3]], [[4, 0], [6, 2]]),
    "plan_exchange": lambda d, h: ns.plan_exchange(d, h, [[0, 1]], [[4, 0]]).run(),
    "pointers": lambda d, h: ns.swap_blocks_batch(
        [h.ctypes.data], [d.memory.start], [64], validate="full"
    ),
    "unchecked pointers": lambda d, h: ns.swap_blocks_batch(
        [h.ctypes.data], [d.memory.start], [64], validate="none"
    ),
}


@pytest.mark.parametrize("mode", ["auto", "kernel", "batch", "loop"])
@pytest.mark.parametrize("verb", VERBS)
def test_memory_of_the_second_gpu_needs_no_context_of_the_first(two, retained, verb, mode):
    device, host = OnDevice(two, 1, (8, 64)), pinned(two, (8, 64))
    host[:] = np.arange(8)[:, None]
    del retained[:]

    def work():
        with ns.override(mode=mode):
            for _ in range(3):  # the short ways, too
                done = VERBS[verb](device, host)
                if hasattr(done, "wait"):
                    done.wait()
        assert two.driver.probe(0)[0] == 0  # the thread has no context, as before

    in_a_new_thread(work)
    assert set(retained) == {1}
    assert not devices_of(two.driver)[0].kernels


@pytest.mark.parametrize("kind", ["pinned", "device"])
def test_a_thread_without_a_context_gets_the_same_choice(two, kind):
    """What the driver does not tell without a context would rule the kernel out."""
    device, host = OnDevice(two, 1, (64, 96)), pinned(two, (64, 96))
    host[:] = np.arange(64)[:, None]
    rows = np.array([[0, 8], [2, 4], [40, 0]])
    pair = (host, device) if kind == "pinned" else (device, host)
    said = []

    def work():
        for _ in range(3):
            transfer = ns.swap_blocks(*pair, rows)
            transfer.wait()
            said.append(str(transfer.decision.mode))

    ns.plan_cache.clear()
    in_a_new_thread(work)
    assert said == ["kernel"] * 3
    assert ns.plan_cache.info()[:2] == (2, 1)
    with two.driver.activate(two.driver.primary_context(0)):
        work()  # another GPU's context is current: the data decides
        assert two.driver.probe(0)[0] == two.driver.primary_context(0)
    assert said == ["kernel"] * 6


def test_each_gpu_has_one_object(two):
    devices = devices_of(two.driver)
    assert devices_of(two.driver) is devices
    assert devices[1] is devices[1]
    assert devices[0] is not devices[1]
    with two.driver.activate(devices[1].primary_context):
        context = devices.context(devices[1].primary_context)
        assert context.device is devices[1]
        assert devices.context(devices[1].primary_context) is context
    assert devices[0].name == "Simulated GPU"


def test_attributes_are_asked_for_once(two):
    from numba_swap.driver import abi

    device, calls = devices_of(two.driver)[0], two.library.calls
    two.driver.initialize()
    before = calls["cuDeviceGetAttribute"]
    for _ in range(3):
        assert device.attribute(abi.DEVICE_CONCURRENT_MANAGED_ACCESS) == 1
    assert calls["cuDeviceGetAttribute"] == before + 1
