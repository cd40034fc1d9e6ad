"""Calls of C functions by their addresses, from code that Numba compiles for the CPU.

A driver function is given by its address, as looked up, so that compiled code speaks to the same
library, real or simulated, as all else. Everything is a signed 64-bit integer: that is what a
Python integer becomes without conversion, and user-space addresses fit.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from numba_swap.native.disk_cache import cache_on_disk
from numba_swap.native.salt import salted

WORD = ir.IntType(64)
CODE = ir.IntType(32)
integer = types.int64
column = types.Array(types.uint64, 1, "C")
rows = types.Array(types.int64, 1, "C")
mapping = types.Array(types.int64, 2, "C")


def compiled(signature: Any) -> Any:
    """Compile a function for a signature; calls release the GIL; cached on disk if possible."""

    def decorate(function: Any) -> Any:
        # NUMBA_DISABLE_JIT is for debugging a user's own functions; these have no Python form.
        disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
        # Numba's cache on disk notices a change of this function's file, not of those that it
        # calls in other files: the name says which sources it was compiled from.
        function = salted(function, __file__)
        try:
            dispatcher = njit(nogil=True)(function)
            cache_on_disk(dispatcher)
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        finally:
            config.DISABLE_JIT = disabled
        return dispatcher

    return decorate


def emit_call(builder: Any, address: Any, arguments: Any) -> Any:
    """Emit a call of ``CUresult (*)(...)`` at an address; the code comes back as int64."""
    prototype = ir.FunctionType(CODE, [argument.type for argument in arguments])
    function = builder.inttoptr(address, prototype.as_pointer())
    return builder.sext(builder.call(function, arguments), WORD)


def _unpack(builder: Any, values: Any, count: int) -> list[Any]:
    return [builder.extract_value(values, i) for i in range(count)]


@intrinsic  # type: ignore[untyped-decorator]
def call(context: Any, function: Any, arguments: Any) -> Any:
    """Call a driver function of 64-bit arguments, given as a tuple; return its code."""
    count = len(arguments)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return emit_call(builder, values[0], _unpack(builder, values[1], count))

    return integer(integer, arguments), emit


@intrinsic  # type: ignore[untyped-decorator]
def call_out(context: Any, function: Any, arguments: Any, word: Any) -> Any:
    """Call a driver function whose last parameter points to a word that it reads or writes.

    Narrow ones (int) take the low bytes of the little-endian word. Returns code and word.
    """
    count = len(arguments)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = cgutils.alloca_once(builder, WORD)
        builder.store(values[2], place)
        code = emit_call(builder, values[0], [*_unpack(builder, values[1], count), place])
        return context.make_tuple(builder, signature.return_type, [code, builder.load(place)])

    return types.UniTuple(integer, 2)(integer, arguments, integer), emit


@intrinsic  # type: ignore[untyped-decorator]
def call_structure(context: Any, function: Any, words: Any, stream: Any) -> Any:
    """Call a driver function of a structure and a stream; return its code.

    The structure is given as a tuple of 64-bit words; it lies on the stack meanwhile.
    """
    count = len(words)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function, words, stream = values
        place = cgutils.alloca_once(builder, WORD, size=count)
        for i, word in enumerate(_unpack(builder, words, count)):
            builder.store(word, cgutils.gep(builder, place, i))
        return emit_call(builder, function, [place, stream])

    return integer(integer, words, integer), emit


KERNEL_PARAMETERS = 7


@intrinsic  # type: ignore[untyped-decorator]
def call_launch(
    context: Any, function: Any, kernel: Any, blocks: Any, threads: Any, stream: Any, values: Any
) -> Any:
    """Call ``cuLaunchKernel`` with a one-dimensional grid and 64-bit parameters."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, kernel, blocks, threads, stream, values = arguments
        pointer = WORD.as_pointer()
        pointers = cgutils.alloca_once(builder, pointer, size=KERNEL_PARAMETERS)
        for i in range(KERNEL_PARAMETERS):
            value = cgutils.alloca_once(builder, WORD)
            builder.store(builder.extract_value(values, i), value)
            builder.store(value, cgutils.gep(builder, pointers, i))
        one, none = ir.Constant(CODE, 1), ir.Constant(CODE, 0)
        grid = [builder.trunc(blocks, CODE), one, one]
        block = [builder.trunc(threads, CODE), one, one]
        extra = ir.Constant(pointer.as_pointer(), None)
        return emit_call(builder, address, [kernel, *grid, *block, none, stream, pointers, extra])

    parameters = types.UniTuple(integer, KERNEL_PARAMETERS)
    return integer(integer, integer, integer, integer, integer, parameters), emit


POINTER_ATTRIBUTES = 6


@intrinsic  # type: ignore[untyped-decorator]
def call_attributes(context: Any, function: Any, codes: Any, address: Any) -> Any:
    """Call ``cuPointerGetAttributes`` for six attributes; return code and six words."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, codes, address = arguments
        pointers = cgutils.alloca_once(builder, WORD.as_pointer(), size=POINTER_ATTRIBUTES)
        places = []
        for i in range(POINTER_ATTRIBUTES):
            # Narrow attributes (int, bool) fill the low bytes of their little-endian word.
            place = cgutils.alloca_once(builder, WORD)
            builder.store(ir.Constant(WORD, 0), place)
            builder.store(place, cgutils.gep(builder, pointers, i))
            places.append(place)
        count = ir.Constant(CODE, POINTER_ATTRIBUTES)
        code = emit_call(builder, function, [count, codes, pointers, address])
        values = [code, *(builder.load(place) for place in places)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(integer, 1 + POINTER_ATTRIBUTES)(integer, integer, integer), emit
