"""Tensors of PyTorch, told by their methods: every type of whole bytes, and what has none."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.inputs.arrays import view_array


class Device:
    """As `torch.device`."""

    def __init__(self, kind):
        self.type = kind

    def __str__(self):
        return f"{self.type}:0" if self.type == "cuda" else self.type


class Tensor:
    """As a tensor of PyTorch over memory of another array; its CUDA interface knows few types."""

    requires_grad = is_quantized = is_nested = False
    layout = "torch.strided"

    def __init__(self, memory, dtype="torch.float8_e4m3fn", device="cuda", itemsize=1):
        self.memory, self.dtype, self.device = memory, dtype, Device(device)
        self.itemsize = itemsize
        interface = getattr(memory, "__cuda_array_interface__", None)
        self.address = memory.ctypes.data if interface is None else interface["data"][0]
        rows, nbytes = memory.shape
        self.shape, self._stride = (rows, nbytes // itemsize), (nbytes // itemsize, 1)

    def data_ptr(self):
        return self.address

    def stride(self):
        return self._stride

    def element_size(self):
        return self.itemsize

    def is_conj(self):
        return False

    def is_neg(self):
        return False

    @property
    def __cuda_array_interface__(self):
        raise KeyError(self.dtype)  # as the table of types in older releases does

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **keywords):
        raise BufferError("float8 types are not supported by dlpack")


@pytest.fixture
def gpu():
    ns.plan_cache.clear()
    with ns.simulate() as gpu:
        yield gpu


@pytest.mark.parametrize(
    ("dtype", "itemsize"),
    [
        ("torch.float8_e4m3fn", 1),
        ("torch.float8_e5m2", 1),
        ("torch.float8_e4m3fnuz", 1),
        ("torch.float8_e5m2fnuz", 1),
        ("torch.float8_e8m0fnu", 1),
        ("torch.bfloat16", 2),
        ("torch.complex32", 4),
        ("torch.float16", 2),
        ("torch.uint16", 2),
        ("torch.int64", 8),
        ("torch.complex128", 16),
        ("torch.bits8", 1),
        ("torch.bits16", 2),
        ("torch.bool", 1),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_type_of_whole_bytes_is_copied(gpu, rng, dtype, itemsize, device):
    content = rng.integers(0, 256, (8, 96), dtype=np.uint8)
    make = gpu.device_array if device == "cuda" else gpu.pinned_array
    memory, host = make((8, 96), np.uint8), gpu.pinned_array((8, 96), np.uint8)
    host[:] = content
    tensor = Tensor(memory, dtype, device, itemsize)
    rows = np.array([[1, 6], [5, 0]])
    for _ in range(3):  # the second time on, the tensor is known
        ns.swap_blocks(host, tensor, rows).wait()
    host[:] = 0
    ns.swap_blocks(tensor, host, rows[:, ::-1].copy()).wait()
    want = np.zeros_like(content)
    want[[1, 5]] = content[[1, 5]]
    assert np.array_equal(host, want)
    view = view_array(tensor, "src")
    assert (view.itemsize, view.shape) == (itemsize, (8, 96 // itemsize))
    assert view.strides == (96, itemsize)
    assert view.on_cuda is (device == "cuda")
    assert view.stream is None


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("torch.float4_e2m1fn_x2", 4),
        ("torch.uint4", 4),
        ("torch.int7", 7),
        ("torch.uint1", 1),
        ("torch.bits1x8", 1),
        ("torch.bits2x4", 2),
        ("torch.bits4x2", 4),
        ("torch.float6_e2m3fn", 6),
    ],
)
def test_types_of_less_than_a_byte_are_refused_with_the_reason(gpu, dtype, bits):
    tensor = Tensor(gpu.device_array((8, 96), np.uint8), dtype)
    with pytest.raises(ns.UnsupportedArrayError, match=rf"src has elements of {bits} bits .*view"):
        view_array(tensor, "src")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("requires_grad", True, r"requires gradients.*\.detach\(\)"),
        ("is_conj", lambda: True, r"conjugation pending.*\.resolve_conj\(\)"),
        ("is_neg", lambda: True, r"negation pending.*\.resolve_neg\(\)"),
        ("is_quantized", True, r"quantized.*\.int_repr\(\)"),
        ("is_nested", True, "nested tensor"),
        ("layout", "torch.sparse_coo", r"layout sparse_coo.*\.to_dense\(\)"),
        ("layout", "torch._mkldnn", "layout _mkldnn"),
        ("device", Device("meta"), "without memory"),
        ("address", 0, "Tensor without memory"),
    ],
)
def test_tensors_whose_bytes_are_not_their_values_are_refused(gpu, attribute, value, message):
    """Also by an interface or DLPack that would give them away."""
    tensor = Tensor(gpu.device_array((8, 96), np.uint8))
    setattr(tensor, attribute, value)
    before = np.ones((8, 96), np.uint8)
    for arrays in ((tensor, before), (before, tensor)):
        with pytest.raises(ns.UnsupportedArrayError, match=message):
            ns.swap_blocks(*arrays, [[0, 0]])
    assert before.all()


def test_tensors_of_a_device_that_is_none_of_cuda_are_refused(gpu):
    tensor = Tensor(gpu.device_array((8, 96), np.uint8), device="mps")
    with pytest.raises(ns.UnsupportedArrayError, match=r"^src gives no .*KeyError.*BufferError"):
        view_array(tensor, "src")


def test_what_a_tensor_raises_is_told(gpu):
    class Functional(Tensor):
        def data_ptr(self):
            raise RuntimeError("cannot access data pointer")

    tensor = Functional.__new__(Functional)
    vars(tensor).update(vars(Tensor(gpu.device_array((8, 96), np.uint8))))
    with pytest.raises(ns.UnsupportedArrayError, match="cannot access data pointer"):
        view_array(tensor, "src")


CHANGES = {
    "memory": lambda tensor, other: setattr(tensor, "address", other.data_ptr()),
    "shape": lambda tensor, other: setattr(tensor, "shape", (4, 96)),
    "stride": lambda tensor, other: setattr(tensor, "_stride", (48, 1)),
    "gradients": lambda tensor, other: setattr(tensor, "requires_grad", True),
    "conjugation": lambda tensor, other: setattr(tensor, "is_conj", lambda: True),
    "negation": lambda tensor, other: setattr(tensor, "is_neg", lambda: True),
    "type": lambda tensor, other: setattr(tensor, "dtype", "torch.int4"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_is_known_until_anything_about_it_changes(gpu, change):
    tensor, other = (Tensor(gpu.device_array((8, 96), np.uint8)) for _ in range(2))
    host = gpu.pinned_array((8, 96), np.uint8)
    host[:] = 7
    rows = np.array([[1, 6]])
    for _ in range(3):
        ns.swap_blocks(host, tensor, rows).wait()
    assert ns.plan_cache.info().hits == 2
    CHANGES[change](tensor, other)
    host[:] = 9
    known = tensor.memory.copy_to_host()
    if change in ("memory", "stride"):
        ns.swap_blocks(host, tensor, rows).wait()
    else:
        with pytest.raises(ns.NumbaSwapError):
            ns.swap_blocks(host, tensor, rows)
    assert ns.plan_cache.info().hits == 2
    written = other.memory if change == "memory" else tensor.memory
    content = written.copy_to_host().ravel()
    if change == "memory":
        assert (content[6 * 96 : 7 * 96] == 9).all()
    if change == "stride":
        assert (content[6 * 48 : 6 * 48 + 96] == 9).all()
    if change != "stride":
        assert np.array_equal(tensor.memory.copy_to_host(), known)


def test_what_speaks_less_than_a_tensor_is_read_by_another_protocol():
    class HasAnAddress:
        """Of some other library: with an address, and DLPack."""

        device = "cuda"

        def __init__(self, array):
            self.array = array
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

        def data_ptr(self):
            return 1

    array = np.arange(12.0)
    assert view_array(HasAnAddress(array), "src").address == array.ctypes.data


def test_arrays_of_numpy_with_types_of_other_packages():
    types = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        dtype = np.dtype(getattr(types, name))
        assert view_array(np.zeros((4, 8), dtype), "src").itemsize == dtype.itemsize
    for name in ("int4", "uint2", "float4_e2m1fn", "float6_e2m3fn"):
        with pytest.raises(ns.UnsupportedArrayError, match=r"elements of \d bits"):
            view_array(np.zeros((4, 8), getattr(types, name)), "src")


@pytest.mark.filterwarnings("ignore:")
def test_real_tensors_of_every_type():
    torch = pytest.importorskip("torch")
    types = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    refused = set()
    for dtype in types:
        tensor = torch.empty((4, 8), dtype=dtype)
        try:
            view = view_array(tensor, "src")
        except ns.UnsupportedArrayError:
            refused.add(str(dtype))
            continue
        assert view.address == tensor.data_ptr()
        assert view.itemsize == tensor.element_size() == dtype.itemsize
        assert view.shape[0] * view.strides[0] == tensor.nbytes
    sub_byte = {f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
    sub_byte |= {"torch.bits1x8", "torch.bits2x4", "torch.bits4x2", "torch.float4_e2m1fn_x2"}
    quantized = {"torch.qint8", "torch.quint8", "torch.qint32", "torch.quint4x2", "torch.quint2x4"}
    assert refused == (sub_byte | quantized) & {str(dtype) for dtype in types}
    for tensor in (
        torch.zeros(4, 8, requires_grad=True),
        torch.zeros(4, 8, dtype=torch.complex64).conj(),
        torch.zeros(4, 8, dtype=torch.complex64).conj().imag,
        torch.zeros(4, 8).to_sparse(),
        torch.empty(4, 8, device="meta"),
    ):
        with pytest.raises(ns.UnsupportedArrayError):
            view_array(tensor, "src")
