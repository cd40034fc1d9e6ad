"""Streams of every library, by the handle that each has."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.streams import stream_handle


class CUstream:
    """As that of cuda.bindings before it had the protocol."""

    def __init__(self, handle):
        self._handle = handle

    def __int__(self):
        return self._handle

    def getPtr(self):
        return id(self)  # where the handle stands: not the handle


def named(kind, **attributes):
    return type(kind, (SimpleNamespace,), {})(**attributes)


def with_protocol(answer):
    return named("Stream", __cuda_stream__=answer)


FORMS = {
    "an integer": lambda handle: handle,
    "an integer of NumPy": np.uint64,
    "the protocol": lambda handle: with_protocol(lambda: (0, handle)),
    "the protocol as a property": lambda handle: with_protocol((0, handle)),
    "the protocol with an integer of NumPy": lambda h: with_protocol(lambda: (0, np.int64(h))),
    "PyTorch before 2.10": lambda handle: named("Stream", cuda_stream=handle, stream_id=3),
    "CuPy before 14": lambda handle: named("ExternalStream", ptr=handle, device_id=0),
    "PyCUDA": lambda handle: named("Stream", handle=handle),
    "Numba over ctypes": lambda handle: named("Stream", handle=ctypes.c_void_p(handle)),
    "Numba over CUstream": lambda handle: named("Stream", handle=CUstream(handle)),
    "CUstream": CUstream,
    "anything with a well-known handle": lambda handle: SimpleNamespace(cuda_stream=handle),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_of_any_library_is_the_one_that_is_copied_in(form):
    with ns.simulate() as gpu:
        stream = gpu.stream(non_blocking=True)
        host, device = gpu.pinned_array((8, 16), np.uint8), gpu.device_array((8, 16), np.uint8)
        host[:] = 7
        given = FORMS[form](stream.handle)
        for row in range(3):
            ns.swap_blocks(host, device, np.array([[0, row]]), stream=given)
        stream.synchronize()
        assert (device.copy_to_host()[:3] == 7).all()
        assert stream_handle(given) == stream.handle


@pytest.mark.parametrize("form", FORMS)
def test_handle_0_is_numbas_default_stream(form, monkeypatch):
    given = FORMS[form](0)
    assert stream_handle(given) == 0
    monkeypatch.setenv("NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    assert stream_handle(given) == 2


@pytest.mark.parametrize(
    "answer",
    [
        (),
        (0,),
        None,
        5,
        "",
        (0, None),
        (0, "7"),
        (0, 1.5),
        (0, -1),
        (0, 1 << 63),
        (0, 1 << 70),
        {},
        np.array([0, 1.5]),
    ],
    ids=repr,
)
def test_a_protocol_that_gives_no_handle(answer):
    stream = with_protocol(lambda: answer)
    with ns.simulate() as gpu:
        pools = gpu.pinned_array((8, 16), np.uint8), gpu.device_array((8, 16), np.uint8)
        for call in (
            lambda: ns.swap_blocks(*pools, [[0, 1]], stream=stream),
            lambda: ns.exchange(*pools[::-1], [[0, 1]], [], stream=stream),
            lambda: ns.plan_blocks(*pools, [[0, 1]]).run(stream=stream),
        ):
            with pytest.raises(ns.UnsupportedArrayError, match=r"^stream=.* is no stream"):
                call()


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, LookupError])
@pytest.mark.parametrize("make", [property, lambda method: method], ids=["property", "method"])
def test_what_a_protocol_raises_is_wrapped(error, make):
    def fail(self):
        raise error("the stream was closed")

    stream = type("Stream", (), {"__cuda_stream__": make(fail)})()
    with pytest.raises(ns.UnsupportedArrayError, match=r"is no stream.*the stream was closed"):
        stream_handle(stream)


@pytest.mark.parametrize(
    "given",
    [
        named("Event", handle=5),  # Numba
        named("Event", ptr=5),  # CuPy
        named("MemoryPointer", ptr=5),
        named("Buffer", handle=5),  # cuda.core
        named("Context", handle=5),
        named("DeviceNDArray", handle=5),
        named("Stream", handle="5"),
        named("Stream", ptr=1.5),
        named("Stream", cuda_stream=[5]),
        named("Stream"),
        named("Thing"),
        type("CUevent", (CUstream,), {})(5),
        type("Handle", (), {"__int__": lambda self: 5})(),
        1.0,
        np.float64(5),
        "5",
        b"5",
        [5],
        np.array([5]),
        True,
        object,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_stream_is_refused_and_the_attributes_that_do_are_named(given):
    message = r"^stream=.* is no stream.*stream\.cuda_stream.*stream\.ptr.*stream\.handle"
    with pytest.raises(ns.UnsupportedArrayError, match=message):
        stream_handle(given)


def test_a_whole_array_is_not_printed():
    class Endless:
        def __repr__(self):
            return "[0., 0.,\n" * 100_000

    for given in (np.zeros((500, 500)), [np.zeros((500, 500))] * 50, "x" * 10**6, Endless()):
        with pytest.raises(ns.UnsupportedArrayError) as caught:
            stream_handle(given)
        assert len(str(caught.value)) < 600
        assert "\n" not in str(caught.value)
