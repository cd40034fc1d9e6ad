"""The compiled loop over a driver function given by its address. Importing this imports Numba."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def _memcpy_async(
    typing_context: Any, function: Any, dst: Any, src: Any, nbytes: Any, stream: Any
) -> Any:
    """Call ``CUresult (*)(CUdeviceptr, CUdeviceptr, size_t, CUstream)`` at an address."""
    word = ir.IntType(64)
    prototype = ir.FunctionType(ir.IntType(32), [word] * 4)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], prototype.as_pointer())
        return builder.call(pointer, arguments[1:])

    return types.int32(*(types.uint64,) * 5), emit


_columns = types.Array(types.uint64, 1, "C", readonly=True)
_SIGNATURE = types.UniTuple(types.int64, 2)(
    types.uint64, _columns, _columns, _columns, types.uint64
)


@njit(_SIGNATURE, nogil=True, cache=True)
def submit_loop(function, dst, src, size, stream):  # type: ignore[no-untyped-def]
    """Submit copies one by one until one is refused.

    Returns
    -------
    code, index : int
        The driver's return code, and the copy it refused; 0 and the number of copies if none.
    """
    for index in range(len(size)):
        code = _memcpy_async(function, dst[index], src[index], size[index], stream)
        if code != 0:
            return code, index
    return 0, len(size)
