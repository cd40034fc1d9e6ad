"""Calls that submit work: copies one by one and in batches, and kernel launches."""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_int, c_size_t
from typing import Any

from numba_swap import native
from numba_swap.driver import abi
from numba_swap.driver.base import DriverBase
from numba_swap.errors import DriverCallError

_QUERIED = (
    abi.POINTER_MEMORY_TYPE,
    abi.POINTER_IS_MANAGED,
    abi.POINTER_DEVICE_ORDINAL,
    abi.POINTER_DEVICE_POINTER,
    abi.POINTER_RANGE_START,
    abi.POINTER_RANGE_SIZE,
)
_QUERY_CODES = (c_int * len(_QUERIED))(*_QUERIED)
_QUERY_CODES_ADDRESS = ctypes.addressof(_QUERY_CODES)


_BATCH_ATTRIBUTES = abi.MemcpyAttributes(src_access_order=abi.SRC_ACCESS_ORDER_STREAM)
_BATCH_ATTRIBUTE_INDEX = c_size_t(0)


class WorkCalls(DriverBase):
    """Typed calls that submit work; see `calls.Driver`."""

    def memcpy_batch_async(
        self, dst: int, src: int, sizes: int, count: int, stream: int
    ) -> tuple[int, int | None]:
        """Submit many copies in one call.

        Parameters
        ----------
        dst, src, sizes : int
            Addresses of arrays of `count` 64-bit destinations, sources and lengths in bytes.
        count : int
            Number of copies, at least 1.
        stream : int
            Any stream but the legacy default one.

        Returns
        -------
        code : int
            The driver's return code.
        failing_index : int or None
            The copy at fault; None unless the driver wrote a usable index.
        """
        fail_index = c_size_t(abi.SIZE_MAX)
        code = self._cuMemcpyBatchAsync(
            dst,
            src,
            sizes,
            count,
            byref(_BATCH_ATTRIBUTES),
            byref(_BATCH_ATTRIBUTE_INDEX),
            1,
            byref(fail_index),
            stream,
        )
        return code, fail_index.value if code and fail_index.value < count else None

    def memcpy_loop(
        self, dst: Any, src: Any, sizes: Any, uniform: int, stream: int
    ) -> tuple[int, int]:
        """Submit copies one by one, in one compiled loop; see `native.driver_calls.memcpy_loop`."""
        code, index = native.driver_calls.memcpy_loop(
            self.address("cuMemcpyAsync"), dst, src, sizes, uniform, stream
        )
        return code, index

    def memcpy_boxes_loop(
        self, dst: Any, src: Any, forms: Any, which: Any, stream: int
    ) -> tuple[int, int]:
        """Submit boxes one by one, in one compiled loop; see `native.boxes.memcpy_loop`."""
        code, index = native.boxes.memcpy_loop(*self.box_functions, dst, src, forms, which, stream)
        return code, index

    def boxes_and_record(
        self, context: int, dst: Any, src: Any, forms: Any, which: Any, stream: int, event: int
    ) -> tuple[bool, int, int]:
        """Do what `memcpy_boxes_loop` does, and record an event, if all is as it was.

        See `native.prepared_boxes.boxes_and_record`.

        Returns
        -------
        done : bool
            Whether anything was submitted.
        code, index : int
            As of `memcpy_boxes_loop`.
        """
        step, code, index = native.prepared_boxes.boxes_and_record(
            self.launch_functions,
            *self.box_functions,
            context,
            dst,
            src,
            forms,
            which,
            stream,
            event,
        )
        if step > 1:
            self._check(code, "cuEventRecord")
        return step >= 0, code if step == 1 else 0, index

    def copy_box(
        self, words: Any, form: Any, src: int, dst: int, memory: Any, table: int, event: int
    ) -> tuple[bool, int]:
        """Copy a box like one before, and record an event; see `native.prepared_boxes.copy_box`.

        Returns
        -------
        done : bool
            Whether it was submitted; if not, nothing was done.
        code : int
            The driver's, if it refused to copy.
        """
        step, code = native.prepared_boxes.copy_box(words, form, src, dst, memory, table, event)
        if step > 1:
            self._check(code, "cuEventRecord")
        return step >= 0, code if step == 1 else 0

    @functools.cached_property
    def box_functions(self) -> tuple[int, int]:
        """Addresses of what copies one box, and one row."""
        return self.address("cuMemcpy3DAsync"), self.address("cuMemcpyAsync")

    def memcpy_boxes_batch(
        self, operations: int, count: int, stream: int
    ) -> tuple[int, int | None]:
        """Submit many strided copies in one call.

        Parameters
        ----------
        operations : int
            Address of `count` operations, as `native.boxes.fill_operations` writes them.
        count : int
            Their number, at least 1.
        stream : int
            Any stream but the legacy default one.

        Returns
        -------
        code : int
            The driver's return code.
        failing_operation : int or None
            The operation at fault; None unless the driver wrote a usable index.
        """
        fail_index = c_size_t(abi.SIZE_MAX)
        first = abi.Memcpy3DBatchOp.from_address(operations)
        code = self._cuMemcpy3DBatchAsync(count, byref(first), byref(fail_index), 0, stream)
        return code, fail_index.value if code and fail_index.value < count else None

    def memcpy_async(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        """Enqueue one copy."""
        self._check(self._cuMemcpyAsync(dst, src, nbytes, stream), "cuMemcpyAsync")

    @functools.cached_property
    def launch_functions(self) -> tuple[int, int, int, int, int, int]:
        """Addresses that `native.driver_calls.launch_and_record` needs."""
        return (
            self.address("cuCtxGetCurrent"),
            self.address("cuCtxSetCurrent"),
            self.address("cuStreamGetCtx"),
            self.address("cuStreamIsCapturing"),
            self.address("cuLaunchKernel"),
            self.address("cuEventRecord"),
        )

    @property
    def query_functions(self) -> tuple[int, int]:
        """Address of the pointer query, and of the codes it is asked with."""
        return self.address("cuPointerGetAttributes"), _QUERY_CODES_ADDRESS

    def launch_kernel(
        self,
        function: int,
        blocks: int,
        threads: int,
        stream: int,
        arguments: tuple[int, ...],
        context: int = 0,
        event: int = 0,
    ) -> bool:
        """Launch a kernel of seven 64-bit parameters, and record an event (if not 0) behind it.

        Parameters
        ----------
        function, blocks, threads, stream, arguments
            The launch.
        context : int, optional
            If not 0, nothing is done unless this is the current context and the stream's, and
            the stream is not being captured.
        event : int, optional
            Event to record; by default none is.

        Returns
        -------
        bool
            Whether it was launched.
        """
        step, code = native.driver_calls.launch_and_record(
            self.launch_functions, context, function, blocks, threads, stream, arguments, event
        )
        return self._launched(step, code)

    def copy_rows(
        self, words: Any, mapping: Any, memory: Any, table: int, blocks: int, event: int
    ) -> bool:
        """Place rows and launch a kernel on them if all is as before; see `prepared.copy_rows`.

        Returns
        -------
        bool
            Whether it was launched; if not, nothing was done.
        """
        return self._launched(
            *native.prepared.copy_rows(words, mapping, memory, table, blocks, event)
        )

    def exchange_rows(
        self,
        words: Any,
        out_rows: Any,
        in_rows: Any,
        memory: Any,
        table: int,
        blocks: int,
        event: int,
    ) -> int:
        """Do what `copy_rows` does for pairs of rows; see `prepared.exchange_rows`.

        Returns
        -------
        int
            0 if nothing was done; 2 if slots and blocks are both read and overwritten, else 1.
        """
        step, code = native.prepared.exchange_rows(
            words, out_rows, in_rows, memory, table, blocks, event
        )
        return self._launched(step, code) and (2 if code else 1)

    def _launched(self, step: int, code: int) -> bool:
        if step == 1:
            raise self.launch_refused(code)
        if step > 0:
            self._check(code, "cuEventRecord")
        return step == 0

    def launch_refused(self, code: int) -> DriverCallError:
        """Make the error of a launch that the driver refused."""
        note = "Nothing was copied."
        name = self.error_name(code)
        return DriverCallError(
            "cuLaunchKernel", code, name, note=note, submitted=0, submitted_rows=()
        )
