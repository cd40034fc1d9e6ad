"""DLPack producers of every age and temper."""

import ctypes

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.inputs.arrays import view_array

_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
CPU, CUDA = 1, 2
FLOAT8_E4M3FN, FLOAT4 = 10, 17  # codes of DLPack 1.1


class Tensor(ctypes.Structure):
    """`DLTensor` of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Versioned(ctypes.Structure):
    """`DLManagedTensorVersioned` of dlpack.h."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


class Producer:
    """Makes capsules by hand, of 4 blocks of 8 bytes."""

    def __init__(self, address, device=CPU, version=(1, 0), **fields):
        self.device, self.asked = device, []
        self.shape = (ctypes.c_int64 * 2)(4, 8)
        shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        tensor = Tensor(address, device, 0, 2, FLOAT8_E4M3FN, 8, 1, shape)
        for name, value in fields.items():
            setattr(tensor, name, value)
        self.managed = Versioned(*version, None, None, 0, tensor)

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **keywords):
        self.asked.append(keywords)
        return _new(ctypes.addressof(self.managed), b"dltensor_versioned", None)


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


@pytest.fixture
def device(gpu):
    return gpu.device_array((4, 8), np.uint8)


def address_of(array):
    return array.__cuda_array_interface__["data"][0]


def test_float8_by_its_code(gpu, device):
    host = gpu.pinned_array((4, 8), np.uint8)
    host[:] = np.arange(32).reshape(4, 8)
    producer = Producer(address_of(device), CUDA)
    ns.swap_blocks(host, producer, [[1, 2]]).wait()
    assert device.copy_to_host()[2].tolist() == list(range(8, 16))
    assert producer.asked == [{"max_version": (1, 0), "stream": 1}]


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({"code": FLOAT4, "bits": 4}, 4),
        ({"code": FLOAT4, "bits": 4, "lanes": 2}, 4),
        ({"bits": 1, "lanes": 8}, 1),
        ({"bits": 6}, 6),
        ({"bits": 12}, 12),
        ({"bits": 0}, 0),
    ],
)
def test_elements_that_are_not_whole_bytes_are_refused(device, fields, bits):
    with pytest.raises(ns.UnsupportedArrayError, match=rf"^src has elements of {bits} bits"):
        view_array(Producer(address_of(device), CUDA, **fields), "src")


def test_a_newer_major_version_is_refused(device):
    """Its tensor may stand anywhere else; a newer minor version only knows more types."""
    with pytest.raises(ns.UnsupportedArrayError, match=r"^src comes as DLPack 2\.1"):
        view_array(Producer(address_of(device), CUDA, version=(2, 1)), "src")
    assert view_array(Producer(address_of(device), CUDA, version=(1, 9)), "src").shape == (4, 8)


@pytest.mark.parametrize(
    "takes",
    [(), ("stream",), ("max_version",), ("max_version", "stream")],
    ids=lambda takes: " and ".join(takes) or "nothing",
)
def test_producers_that_take_few_arguments(gpu, device, takes):
    class Older(Producer):
        def __dlpack__(self, **keywords):
            if not set(keywords) <= set(takes):
                raise TypeError("__dlpack__() got an unexpected keyword argument")
            return super().__dlpack__(**keywords)

    producer = Older(address_of(device), CUDA)
    host = gpu.pinned_array((4, 8), np.uint8)
    host[:] = 5
    ns.swap_blocks(host, producer, [[1, 2]]).wait()
    assert (device.copy_to_host()[2] == 5).all()
    assert set(producer.asked[-1]) == set(takes)
    assert view_array(producer, "src").stream == 1  # DLPack's word for "no stream was given"


@pytest.mark.parametrize(
    "error",
    [TypeError, ValueError, BufferError, RuntimeError, AttributeError, KeyError, AssertionError],
)
@pytest.mark.parametrize("method", ["__dlpack__", "__dlpack_device__"])
def test_what_a_producer_raises_is_wrapped(gpu, device, error, method):
    def fail(self, **keywords):
        raise error("no tensor today")

    producer = type("Failing", (Producer,), {method: fail})(address_of(device), CUDA)
    with pytest.raises(ns.UnsupportedArrayError, match=r"^dst gives no DLPack tensor.*today"):
        ns.swap_blocks(gpu.pinned_array((4, 8), np.uint8), producer, [[0, 0]])


@pytest.mark.parametrize("answer", [None, 5, (), (2,), (2, 0, 0), "cuda"])
def test_a_device_that_cannot_be_read(device, answer):
    producer = Producer(address_of(device), CUDA)
    producer.__class__ = type("Odd", (Producer,), {"__dlpack_device__": lambda self: answer})
    with pytest.raises(ns.UnsupportedArrayError, match="gives no DLPack tensor"):
        view_array(producer, "src")


@pytest.mark.parametrize("answer", [None, 5, "used"])
def test_what_is_no_capsule(device, answer):
    used = _new(address_of(device), b"used_dltensor_versioned", None)
    answer = used if answer == "used" else answer
    producer = Producer(address_of(device), CUDA)
    producer.__class__ = type("Odd", (Producer,), {"__dlpack__": lambda self, **_: answer})
    with pytest.raises(ns.UnsupportedArrayError, match="no DLPack capsule"):
        view_array(producer, "src")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ndim": -1}, "without a shape"),
        ({"shape": None}, "without a shape"),
        ({"device_type": 10}, "device type 10"),
        ({"data": None}, r"^src lies at 0x0, which is no memory"),
        ({"data": None, "byte_offset": 64}, r"^src lies at 0x40, which is no memory"),
        ({"data": (1 << 64) - 8}, "no memory lies there"),
    ],
)
def test_tensors_that_cannot_be(gpu, fields, message):
    plain = np.zeros((4, 8), np.uint8)
    with pytest.raises(ns.UnsupportedArrayError, match=message):
        ns.plan_blocks(Producer(plain.ctypes.data, **fields), np.zeros((4, 8), np.uint8), [[0, 0]])


def test_prototypes_of_other_code_are_left_alone():
    """Its capsules would leak under ours, and our reading would fail under its."""
    functions = [
        getattr(ctypes.pythonapi, f"PyCapsule_{name}") for name in ("GetPointer", "IsValid", "New")
    ]
    former = [(function.argtypes, function.restype) for function in functions]
    plain = np.arange(32, dtype=np.uint8).reshape(4, 8)
    try:
        for types in ((None, ctypes.c_int), ((ctypes.c_int,), ctypes.c_char_p)):
            for function in functions:
                function.argtypes, function.restype = types
            assert view_array(Producer(plain.ctypes.data), "src").address == plain.ctypes.data
            for function in functions:
                assert (function.argtypes, function.restype) == types
    finally:
        for function, (argtypes, restype) in zip(functions, former, strict=True):
            function.argtypes, function.restype = argtypes, restype
