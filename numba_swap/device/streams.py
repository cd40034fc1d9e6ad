"""Reading the stream that a user gives, in whatever form."""

from __future__ import annotations

import operator
import os
from typing import Any

from numba_swap.driver import abi
from numba_swap.errors import UnsupportedArrayError

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
        A Numba stream, anything with ``__cuda_stream__``, or an integer handle; None or handle 0
        is Numba's default stream.

    Raises
    ------
    UnsupportedArrayError
        If it is none of these.
    """
    if stream is None:
        return numba_default_stream()
    if type(stream) is int and 0 < stream < 1 << 63:  # the most frequent case where time counts
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    try:
        if isinstance(stream, bool):
            raise TypeError
        handle = operator.index(protocol()[1] if protocol is not None else stream)
    except TypeError:
        raise UnsupportedArrayError(
            f"stream={stream!r} is no stream: give a Numba stream, an object with "
            "__cuda_stream__, an integer handle, or None"
        ) from None
    if not 0 <= handle < 1 << 63:
        raise UnsupportedArrayError(f"stream={handle} is no stream handle")
    return handle or numba_default_stream()


def is_legacy(handle: int) -> bool:
    """Whether a handle is the legacy default stream's."""
    return handle in _LEGACY


def same_stream(one: int, other: int) -> bool:
    """Whether two handles are the same stream."""
    return one == other or (is_legacy(one) and is_legacy(other))
