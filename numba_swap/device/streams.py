"""Reading the stream that a user gives, in whatever form."""

from __future__ import annotations

import operator
import os
import re
from typing import Any

from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.errors import (
    CapturedTransferError,
    DriverCallError,
    UnsupportedArrayError,
    brief,
    say,
)

_LEGACY = (0, abi.STREAM_LEGACY)


def numba_default_stream() -> int:
    """Handle of Numba's default stream: the legacy one unless Numba is told otherwise."""
    per_thread = os.environ.get("NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM", "0").strip() not in (
        "",
        "0",
    )
    return abi.STREAM_PER_THREAD if per_thread else 0


def stream_handle(stream: Any) -> int:
    """Return the driver's handle of a stream.

    Parameters
    ----------
    stream : object, int or None
        A stream of Numba, PyTorch, CuPy, PyCUDA or cuda.bindings, anything with
        ``__cuda_stream__``, or an integer handle; None or handle 0 is Numba's default stream.

    Raises
    ------
    UnsupportedArrayError
        If it is none of these.
    """
    if stream is None:
        return numba_default_stream()
    if type(stream) is int and 0 < stream < 1 << 63:  # the most frequent case where time counts
        return stream
    try:
        protocol = getattr(stream, "__cuda_stream__", None)
        if isinstance(stream, bool):
            raise TypeError
        if protocol is None:
            handle = _handle_without_protocol(stream)
        else:
            # (Of cuda.core before 0.2 it is no method.)
            handle = operator.index((protocol() if callable(protocol) else protocol)[1])
    except Exception as error:
        why = f" ({say(error)})" if error.args else ""
        raise UnsupportedArrayError(
            f"stream={brief(stream)} is no stream{why}: give a stream of Numba, PyTorch, CuPy or "
            "PyCUDA, an object with __cuda_stream__, an integer handle (PyTorch's "
            "stream.cuda_stream, CuPy's stream.ptr, PyCUDA's stream.handle, int(CUstream)), or None"
        ) from None
    if not 0 <= handle < 1 << 63:
        raise UnsupportedArrayError(f"stream={brief(stream)} is no stream handle: {brief(handle)}")
    return handle or numba_default_stream()


def _handle_without_protocol(stream: Any) -> int:
    """Return the handle of an integer, or of a stream of before the protocol.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if hasattr(stream, "__index__"):
        return operator.index(stream)
    kind = type(stream).__name__
    if _NO_STREAM.search(kind):
        raise TypeError
    for attribute in _HANDLES:
        handle = getattr(stream, attribute, None)
        if handle is not None:
            break
    else:
        if "stream" not in kind.lower():
            raise TypeError
        handle = stream
    # In PyCUDA it is an integer; in Numba it was an object of ctypes, or a CUstream.
    handle = getattr(handle, "value", handle) or 0
    if hasattr(handle, "__int__") and not hasattr(handle, "__float__"):
        return int(handle)
    return operator.index(handle)


# What a stream has for a handle: in PyTorch before 2.10, CuPy before 14, and PyCUDA and Numba.
_HANDLES = ("cuda_stream", "ptr", "handle")
# Other objects of these packages have handles, too: a wrong one would end the process.
_NO_STREAM = re.compile(
    "^(?!.*stream).*(event|memory|pointer|buffer|array|tensor|context|module|function|kernel|graph"
    "|device|program|object|link)",
    re.IGNORECASE,
)


def is_legacy(handle: int) -> bool:
    """Whether a handle is the legacy default stream's."""
    return handle in _LEGACY


def same_stream(one: int, other: int) -> bool:
    """Whether two handles are the same stream."""
    return one == other or (is_legacy(one) and is_legacy(other))


def probe_stream(driver: Driver, stream: int, name: str) -> tuple[int, int, bool]:
    """Do what `Driver.probe` does, for a stream in which something is to be enqueued.

    Raises
    ------
    CapturedTransferError
        If it is the legacy default stream, and a stream is being captured that this one waits for.
        Work in it would be refused, and that graph be lost; to ask does no harm.
    """
    try:
        return driver.probe(abi.STREAM_LEGACY if is_legacy(stream) else stream)
    except DriverCallError as error:
        if error.code != abi.ERROR_STREAM_CAPTURE_IMPLICIT:
            raise
        raise CapturedTransferError(
            f"{name} is the legacy default stream, and another stream of this context is being "
            "captured into a CUDA graph, which any work in the legacy one would end: give a "
            "stream of your own (stream=numba.cuda.stream()), capture in a non-blocking stream, "
            "or wait for the end of the capture"
        ) from None
