"""Loads and stores at integer addresses, for the copy kernels.

Numba has no pointers, and a copy of vector or complex elements becomes scalar accesses, so these
are intrinsics: an integer becomes a pointer into global memory, accessed 1, 2, 4, 8 or 16 bytes at
a time. ``get`` and ``put`` do the same with the low bytes of a 64-bit integer. Where a kernel runs
in Python (Numba's CUDA simulator, the simulated driver), the same names are plain functions over
host memory.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from numba import cuda
from numba.core import config


def _host_access(ctype: Any) -> tuple[Any, Any]:
    def load(address: int) -> Any:
        return ctype.from_address(address).value

    def store(address: int, value: Any) -> None:
        ctype.from_address(address).value = value

    return load, store


def _host_load16(address: int) -> tuple[int, int]:
    words = (ctypes.c_int64 * 2).from_address(address)
    return words[0], words[1]


def _host_store16(address: int, value: tuple[int, int]) -> None:
    words = (ctypes.c_int64 * 2).from_address(address)
    words[0], words[1] = value


def _host_put(ctype: Any) -> Any:
    def put(address: int, value: int) -> None:
        ctype.from_address(address).value = value  # its low bytes

    return put


def host_memory() -> SimpleNamespace:
    """Make the accesses in Python, over host memory."""
    load1, store1 = _host_access(ctypes.c_uint8)
    load4, store4 = _host_access(ctypes.c_int32)
    load8, store8 = _host_access(ctypes.c_int64)
    return SimpleNamespace(
        load1=load1,
        store1=store1,
        load4=load4,
        store4=store4,
        load8=load8,
        store8=store8,
        load16=_host_load16,
        store16=_host_store16,
        get1=load1,
        put1=_host_put(ctypes.c_uint8),
        get2=_host_access(ctypes.c_uint16)[0],
        put2=_host_put(ctypes.c_uint16),
        get4=_host_access(ctypes.c_uint32)[0],
        put4=_host_put(ctypes.c_uint32),
    )


def _device_memory() -> SimpleNamespace:
    """Make the accesses as intrinsics of Numba-CUDA."""
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    global_space = 1

    def pointer(builder: Any, address: Any, element: Any) -> Any:
        return builder.inttoptr(address, ir.PointerType(element, addrspace=global_space))

    def scalar(bits: int, numba_type: Any) -> tuple[Any, Any]:
        element = ir.IntType(bits)

        @intrinsic  # type: ignore[untyped-decorator]
        def load(typing_context: Any, address: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.load(pointer(builder, arguments[0], element), align=bits // 8)

            return numba_type(types.int64), emit

        @intrinsic  # type: ignore[untyped-decorator]
        def store(typing_context: Any, address: Any, value: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                target = pointer(builder, arguments[0], element)
                builder.store(arguments[1], target, align=bits // 8)
                return context.get_dummy_value()

            return types.void(types.int64, numba_type), emit

        return load, store

    def low_bytes(bits: int) -> tuple[Any, Any]:
        element, whole = ir.IntType(bits), ir.IntType(64)

        @intrinsic  # type: ignore[untyped-decorator]
        def get(typing_context: Any, address: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                place = pointer(builder, arguments[0], element)
                return builder.zext(builder.load(place, align=bits // 8), whole)

            return types.int64(types.int64), emit

        @intrinsic  # type: ignore[untyped-decorator]
        def put(typing_context: Any, address: Any, value: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                target = pointer(builder, arguments[0], element)
                builder.store(builder.trunc(arguments[1], element), target, align=bits // 8)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64), emit

        return get, put

    words = ir.VectorType(ir.IntType(64), 2)
    pair = types.UniTuple(types.int64, 2)
    index = ir.IntType(32)

    @intrinsic  # type: ignore[untyped-decorator]
    def load16(typing_context: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(pointer(builder, arguments[0], words), align=16)
            halves = [builder.extract_element(value, index(i)) for i in range(2)]
            return context.make_tuple(builder, signature.return_type, halves)

        return pair(types.int64), emit

    @intrinsic  # type: ignore[untyped-decorator]
    def store16(typing_context: Any, address: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.Constant(words, ir.Undefined)
            for i in range(2):
                half = builder.extract_value(arguments[1], i)
                vector = builder.insert_element(vector, half, index(i))
            builder.store(vector, pointer(builder, arguments[0], words), align=16)
            return context.get_dummy_value()

        return types.void(types.int64, pair), emit

    load1, store1 = scalar(8, types.uint8)
    load4, store4 = scalar(32, types.int32)
    load8, store8 = scalar(64, types.int64)
    get1, put1 = low_bytes(8)
    get2, put2 = low_bytes(16)
    get4, put4 = low_bytes(32)
    return SimpleNamespace(
        load1=load1,
        store1=store1,
        load4=load4,
        store4=store4,
        load8=load8,
        store8=store8,
        load16=load16,
        store16=store16,
        get1=get1,
        put1=put1,
        get2=get2,
        put2=put2,
        get4=get4,
        put4=put4,
    )


memory = host_memory() if config.ENABLE_CUDASIM else _device_memory()
simulator_active: bool = bool(config.ENABLE_CUDASIM)

__all__ = ["cuda", "host_memory", "memory", "simulator_active"]
