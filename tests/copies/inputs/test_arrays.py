"""Reading arrays of every protocol."""

import ctypes

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.inputs.arrays import extent, view_array
from numba_swap.copies.inputs.dlpack import read_dlpack
from numba_swap.device.memory import Allocation, MemoryKind, allocations_of_range, find_allocation
from numba_swap.driver.calls import Driver


class OnlyDLPack:
    """A producer that speaks nothing else."""

    def __init__(self, array, device=None, versioned=True):
        self.array, self.device, self.versioned = array, device, versioned

    def __dlpack_device__(self):
        return (self.device, 0) if self.device else self.array.__dlpack_device__()

    def __dlpack__(self, **keywords):
        if not self.versioned:
            if keywords:
                raise TypeError("unexpected keyword")
            return self.array.__dlpack__()
        return self.array.__dlpack__(**keywords)


@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack(versioned):
    array = np.arange(60, dtype=np.int32).reshape(3, 4, 5)[:, ::2, 1:]
    view = view_array(OnlyDLPack(array, versioned=versioned), "src")
    direct = view_array(array, "src")
    assert (view.address, view.shape, view.strides, view.itemsize) == (
        direct.address,
        direct.shape,
        direct.strides,
        direct.itemsize,
    )
    assert not view.readonly
    assert view.stream is None


def test_dlpack_says_read_only_and_that_is_heeded():
    array = np.arange(12.0)
    array.flags.writeable = False
    assert read_dlpack(OnlyDLPack(array)).readonly


class SaysWritable(np.ndarray):
    """As Numba's mapped and managed arrays: NumPy's flag is not in their interface."""

    @property
    def __cuda_array_interface__(self):
        return {**self.__array_interface__, "data": (self.ctypes.data, False)}


@pytest.mark.parametrize("swapped_before", [False, True])
def test_numpys_flag_is_heeded_whatever_the_cuda_interface_says(swapped_before):
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4, 64)), gpu.device_array((4, 64))
        locked = host.view(SaysWritable)
        if swapped_before:
            for _ in range(3):
                ns.swap_blocks(device, locked, [[0, 1]]).wait()
        locked.flags.writeable = False
        before = host.copy()
        with pytest.raises(ns.BadPlanError, match="read-only"):
            ns.swap_blocks(device, locked, [[0, 1]])
        with pytest.raises(ns.BadPlanError, match="read-only"):
            ns.exchange(device, locked, [[0, 1]], [])
        assert np.array_equal(host, before)
        ns.swap_blocks(locked, device, [[0, 1]]).wait()  # to read it is no harm


def test_dlpack_of_another_device_is_refused():
    with pytest.raises(ns.UnsupportedArrayError, match="device type 10"):
        view_array(OnlyDLPack(np.zeros(3), device=10), "src")


def test_torch_cpu_tensors_with_and_without_a_numpy_dtype():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        tensor = torch.arange(24).to(dtype).reshape(4, 6)
        view = view_array(tensor, "src")
        assert view.address == tensor.data_ptr()
        assert view.itemsize == tensor.element_size()
        assert view.strides == tuple(s * tensor.element_size() for s in tensor.stride())
    with ns.simulate() as gpu:
        dst = gpu.device_array((4, 6), np.uint8)
        mapping = torch.tensor([[1, 0], [3, 2]])
        ns.swap_blocks(tensor, dst, mapping).wait()
        assert (dst.copy_to_host()[[0, 2]] == tensor.numpy()[[1, 3]]).all()


def test_masked_cuda_arrays_are_refused():
    class Masked:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (3,),
            "typestr": "<f4",
            "data": (4096, False),
            "version": 3,
            "mask": object(),
        }

    with pytest.raises(ns.UnsupportedArrayError, match="masked"):
        view_array(Masked(), "src")


def test_an_array_that_refuses_its_interface_is_explained():
    class NeedsGrad:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("call detach() first")

    with pytest.raises(ns.UnsupportedArrayError, match="call detach"):
        view_array(NeedsGrad(), "src")


class Interface:
    """An array by its CUDA array interface alone."""

    def __init__(self, **values):
        self.__cuda_array_interface__ = values


NO_INTEGER = 1.5, "8", None, [8], np.zeros((50, 50)), object()
WRONG = {
    "typestr": (None, 5, "zz", ["|u1"], "", "|O", "|t4", b"", {}, np.zeros((50, 50))),
    "shape": (None, 4, "48", (4.0, 8), (None, 8), (-4, 8), (4, -8), (1 << 63, 8), (0, 1 << 70)),
    "strides": (
        5,
        "81",
        (),
        (8,),
        (8, 1, 1),
        (8, None),
        (8.0, 1),
        (1 << 63, 1),
        (-(1 << 70), 1),
        (1 << 62, 1),
    ),
    "data": (
        None,
        5,
        (),
        (4096,),
        (4096, False, 0),
        (1 << 63, False),
        (1 << 64, False),
        (-4096, False),
        ((1 << 63) - 8, False),
        *((bad, False) for bad in NO_INTEGER if bad is not None),
    ),
    "stream": (-1, 1 << 63, 1 << 70, (), *[bad for bad in NO_INTEGER if bad is not None]),
}


@pytest.mark.parametrize(
    ("part", "value"), [(part, value) for part, values in WRONG.items() for value in values]
)
@pytest.mark.parametrize("rows", [[[0, 1]], []])
def test_interfaces_that_cannot_be_are_refused(part, value, rows):
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4, 8), np.uint8), gpu.device_array((4, 8), np.uint8)
        good = device.__cuda_array_interface__
        ns.swap_blocks(host, Interface(**good), [[0, 1]]).wait()
        bad = Interface(**{**good, part: value})
        for call in (
            lambda: ns.swap_blocks(host, bad, rows),
            lambda: ns.swap_blocks(bad, host, rows),
            lambda: ns.plan_blocks(host, bad, rows),
            lambda: ns.exchange(bad, host, rows, rows),
        ):
            with pytest.raises(ns.UnsupportedArrayError, match=r"^(src|dst|device)\b") as caught:
                call()
            assert len(str(caught.value)) < 500
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["typestr", "shape", "data"])
def test_interfaces_without_a_part_are_refused(part):
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4, 8), np.uint8), gpu.device_array((4, 8), np.uint8)
        values = device.__cuda_array_interface__
        del values[part]
        with pytest.raises(ns.UnsupportedArrayError, match=f"^dst's CUDA .* has no '{part}'"):
            ns.swap_blocks(host, Interface(**values), [[0, 1]])


@pytest.mark.parametrize("interface", [5, "shape", (), []])
def test_an_interface_that_is_no_mapping_is_refused(interface):
    array = Interface()
    array.__cuda_array_interface__ = interface
    with pytest.raises(ns.UnsupportedArrayError, match=r"^src gives no CUDA array interface"):
        view_array(array, "src")


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, RuntimeError, AttributeError])
def test_an_interface_that_is_refused_leaves_the_other_protocols(error):
    """As tensors of JAX do, of some types."""

    class Both(OnlyDLPack):
        @property
        def __cuda_array_interface__(self):
            raise error("not of this type")

    host, array = np.arange(32).reshape(4, 8), np.zeros((4, 8), int)
    with ns.simulate():
        for _ in range(2):
            ns.swap_blocks(host, Both(array), [[1, 2]]).wait()
        assert array[2].tolist() == host[1].tolist()


@pytest.mark.parametrize("change", ["mask", "shape", "refused"])
def test_an_interface_that_spoils_between_two_swaps(change):
    """It is asked at every swap, and what it gives then may be anything."""

    class Spoiling:
        refused = False

        @property
        def __cuda_array_interface__(self):
            if self.refused:
                raise RuntimeError("call detach() first")
            return self.values

    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4, 8), np.uint8), gpu.device_array((4, 8), np.uint8)
        array = Spoiling()
        array.values = device.__cuda_array_interface__
        for _ in range(3):
            ns.swap_blocks(host, array, np.array([[0, 1]])).wait()
        spoilt = {"mask": {"mask": object()}, "shape": {"shape": None}, "refused": {}}[change]
        array.values = {**array.values, **spoilt}
        array.refused = change == "refused"
        with pytest.raises(ns.UnsupportedArrayError, match=r"^dst"):
            ns.swap_blocks(host, array, np.array([[0, 1]]))


def test_a_shape_that_is_an_array_is_compared_by_value():
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4, 8), np.uint8), gpu.device_array((4, 8), np.uint8)
        shape = np.array([4, 8])
        array = Interface(**{**device.__cuda_array_interface__, "shape": shape})
        for _ in range(3):
            ns.swap_blocks(host, array, np.array([[0, 3]])).wait()
        shape[0] = 2
        with pytest.raises(ns.BadPlanError, match="dst block 3 is not one of its 2 blocks"):
            ns.swap_blocks(host, array, np.array([[0, 3]]))


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy before 2.0")
def test_arrays_of_strings_hold_no_plain_bytes():
    strings = np.array(["a"] * 8, dtype=np.dtypes.StringDType())
    with pytest.raises(ns.UnsupportedArrayError, match="Python objects"):
        view_array(strings, "src")


def test_extent_of_reversed_and_empty_views():
    array = np.zeros((4, 10), np.uint16)
    for view, want in ((array, (0, 80)), (array[::-1, ::2], (-60, 18)), (array[:0], (0, 0))):
        assert extent(view.shape, view.strides, view.itemsize) == want


def test_kinds_of_memory():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        for kind, array in (
            (MemoryKind.DEVICE, gpu.device_array(10)),
            (MemoryKind.PINNED, gpu.pinned_array(10)),
            (MemoryKind.MANAGED, gpu.managed_array(10)),
        ):
            allocation = find_allocation(gpu.driver, view_array(array, "a").address + 8)
            assert allocation.kind is kind
            assert allocation.device_offset == 0
        plain = np.zeros(10)
        assert find_allocation(gpu.driver, plain.ctypes.data) is None
        start = plain.ctypes.data
        (pageable,) = allocations_of_range(gpu.driver, start, start + 80, "a")
        assert pageable == Allocation(start, start + 80, MemoryKind.PAGEABLE, None, None)


def test_array_that_leaves_its_allocation_is_refused():
    with ns.simulate() as gpu:
        pinned = gpu.pinned_array(4096, np.uint8)
        beyond = np.frombuffer((ctypes.c_uint8 * 8192).from_address(pinned.ctypes.data), np.uint8)
        dst = gpu.device_array((1, 8192), np.uint8)
        with pytest.raises(ns.BadPlanError, match="pin \\(register\\) all of it or none"):
            ns.plan_blocks(beyond.reshape(1, 8192), dst, [[0, 0]])


def test_array_in_several_registrations_is_copied_but_never_merged_across_them():
    """Host memory registered in pieces: each copy must stay within one."""
    with ns.simulate() as gpu:
        memory = np.frombuffer(bytearray(5 * 4096), np.uint8)
        host = memory[-memory.ctypes.data % 4096 :][: 4 * 4096].reshape(4, 4096)
        host[:] = np.arange(4)[:, None]
        library = gpu.driver.library
        library.register_host(host[:2])
        library.register_host(host[2:])
        device = gpu.device_array((4, 4096), np.uint8)
        plan = ns.plan_blocks(host, device, [[0, 0], [1, 1], [2, 2], [3, 3]])
        assert len(plan) == 2
        for mode in ("batch", "loop", "kernel"):
            device.copy_to_device(np.zeros((4, 4096), np.uint8))
            plan.run(mode=mode).wait()
            assert device.copy_to_host()[:, 7].tolist() == [0, 1, 2, 3]
        library.unregister_host(host[:2])
        library.unregister_host(host[2:])


def test_driver_attributes_do_not_hide_mistakes():
    with ns.simulate(driver_version=(12, 4)) as gpu:
        assert isinstance(gpu.driver, Driver)
        with pytest.raises(AttributeError):
            _ = gpu.driver.no_such_thing
        with pytest.raises(
            ns.EntryPointNotFoundError, match="no cuMemcpyBatchAsync at version 12080"
        ):
            gpu.driver.address("cuMemcpyBatchAsync")
        with pytest.raises(ns.EntryPointNotFoundError, match="symbol not found"):
            gpu.driver.memcpy_batch_async(0, 0, 0, 1, 2)
