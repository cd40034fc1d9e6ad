"""What may change about an array while it stays the same object, and that it is seen."""

import ctypes
import gc
import weakref

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.inputs import array_state
from numba_swap.copies.inputs.array_state import state_reader


class Streamed(np.ndarray):
    """As Numba's mapped arrays: one of NumPy that has a stream."""

    stream = None


class Interface:
    def __init__(self, **values):
        self.__cuda_array_interface__ = {
            "shape": [4, 8],
            "typestr": "|u1",
            "data": (4096, False),
            "version": 3,
        } | values


class Memory:
    """What Numba calls the memory of an array."""


def of_numba(memory, **values):
    array = Interface()
    array.gpu_data, array.shape, array.strides, array.stream = memory, (4, 8), (8, 1), 0
    vars(array).update(values)
    return array


OTHER = np.ones((4, 8), np.uint8)


def exchange_memory(one, other):
    """Let two arrays of NumPy have each other's memory, as `resize` may move it."""
    places = [
        ctypes.c_size_t.from_address(id(array) + object.__basicsize__) for array in (one, other)
    ]
    places[0].value, places[1].value = places[1].value, places[0].value


def changed(array, change):
    """Whether a change is seen, and nothing before it."""
    read = state_reader(array)
    before = read(array)
    assert read(array) == before
    change(array)
    return read(array) != before


@pytest.mark.parametrize("kind", [np.ndarray, Streamed])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: setattr(array, "shape", (8, 4)),
        lambda array: array.setflags(write=False),
        lambda array: exchange_memory(array, OTHER),
    ],
    ids=["shape", "writeable", "memory"],
)
@pytest.mark.parametrize("offset", [object.__basicsize__, object.__basicsize__ + 8])
def test_arrays_of_numpy(monkeypatch, kind, change, offset):
    """Also where the address of the data is not where this NumPy has it."""
    monkeypatch.setattr(array_state, "_DATA_OFFSET", offset)
    array = np.zeros((4, 8), np.uint8).view(kind).copy()
    address = array.ctypes.data
    try:
        assert changed(array, change)
    finally:
        if array.ctypes.data != address:
            exchange_memory(array, OTHER)


def test_an_array_of_numpy_that_has_a_stream():
    array = np.zeros((4, 8), np.uint8).view(Streamed)
    assert changed(array, lambda array: setattr(array, "stream", 7))


@pytest.mark.parametrize(
    "values",
    [{"gpu_data": Memory()}, {"shape": (8, 4)}, {"strides": (16, 1)}, {"stream": 7}],
    ids=lambda values: next(iter(values)),
)
def test_arrays_of_numba(values):
    memory = Memory()
    assert changed(of_numba(memory), lambda array: vars(array).update(values))


def test_no_memory_is_kept_alive():
    array = of_numba(Memory())
    read, alive = state_reader(array), weakref.ref(array.gpu_data)
    before = read(array)
    del array.gpu_data
    gc.collect()
    assert alive() is None
    array.gpu_data = Memory()  # perhaps with the id of the former
    assert read(array) != before


@pytest.mark.parametrize(
    "values", [{}, {"gpu_data": Memory()}, {"stream": 0}, {"stream": 0, "gpu_data": object()}]
)
def test_what_only_has_an_interface_is_read_by_it(values):
    """Whatever else it has; and a list in it that is changed in place is seen."""
    array = Interface()
    vars(array).update(values)
    assert changed(array, lambda array: array.__cuda_array_interface__["shape"].reverse())
    for key, value in {
        "data": (8192, False),
        "strides": (16, 1),
        "typestr": "<f4",
        "stream": 5,
        "mask": 6,
    }.items():
        assert changed(array, lambda array: array.__cuda_array_interface__.update({key: value}))  # noqa: B023


def test_a_number_of_dimensions_that_changes_is_seen():
    assert changed(Interface(), lambda array: array.__cuda_array_interface__.update(shape=(32,)))


def test_what_has_no_state_to_read():
    assert state_reader(object()) is None
    with ns.simulate() as gpu:
        assert state_reader(gpu.device_array((4, 8), np.uint8)) is not None
