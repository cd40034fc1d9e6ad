"""What a user waits on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeAlias

from numba_swap.device.in_flight import InFlight
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.decision import Decision
from numba_swap.driver import abi
from numba_swap.errors import (
    BadArgumentError,
    CapturedTransferError,
    NumbaSwapError,
    TransferTimeoutError,
    brief,
)
from numba_swap.swap.running import watcher

# Between two looks at a transfer that is waited for with a time limit: at first, and at most.
_SHORTEST_S, _LONGEST_S = 10e-6, 1e-3


class Transfer:
    """A swap that has been enqueued.

    The arrays and descriptors in use are kept alive by this object, and by the library should it
    be dropped, until the copy is over. Memory must not be written (or, for the destination, read)
    before that.

    ``await transfer`` waits in a coroutine of `asyncio`, whose other tasks run meanwhile.

    Attributes
    ----------
    nbytes : int
        Bytes that are copied.
    decision : Decision
        Which mode copies them, and why.
    """

    __slots__ = ("__weakref__", "_captured", "_work", "decision", "nbytes")

    def __init__(self, work: InFlight | None, decision: Decision, captured: bool) -> None:
        self._work = work
        self._captured = captured
        self.decision = decision
        self.nbytes = decision.nbytes

    def wait(self, timeout: float | None = None) -> None:
        """Block until the copy is over. Other threads run meanwhile.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which to give up. By default there is no limit.

        Raises
        ------
        DriverCallError
            If the copy failed on the GPU.
        CapturedTransferError
            If it was captured into a graph.
        TransferTimeoutError
            If it was not over in time; it goes on, and may be waited for again.
        BadArgumentError
            If the time is no number from 0 on.
        """
        if self._captured:
            raise _captured_error()
        if timeout is not None:
            self._wait_until(time.monotonic() + _seconds(timeout), timeout)
        elif self._work is not None:
            self._work.wait()

    def _wait_until(self, end: float, timeout: float) -> None:
        pause = _SHORTEST_S
        while not self.done():
            left = end - time.monotonic()
            if left <= 0:
                raise TransferTimeoutError(f"{self!r} is not over after {timeout} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_S)

    def wait_on(self, stream: Any = None) -> None:
        """Let work that is enqueued in a stream from now on come after the copy.

        The stream waits, on the GPU; the host does not.

        Parameters
        ----------
        stream : stream, int or None, optional
            As for `numba_swap.swap_blocks`; of any device.

        Raises
        ------
        DriverCallError
            If the copy failed on the GPU, or the driver refuses.
        CapturedTransferError
            If the copy was captured into a graph, or the stream is being captured: neither can
            wait for the other.

        Examples
        --------
        >>> import numba_swap as ns
        >>> with ns.simulate() as gpu:
        ...     host, device = gpu.pinned_array((8, 64)), gpu.device_array((8, 64))
        ...     compute, copies = gpu.stream(), gpu.stream()
        ...     transfer = ns.swap_blocks(host, device, [[0, 5]], stream=copies)
        ...     transfer.wait_on(compute)  # a kernel launched in `compute` now finds block 5
        ...     compute.synchronize()
        """
        if self._captured:
            raise _captured_error()
        if self._work is not None:
            self._work.make_wait(stream_handle(stream))

    def done(self) -> bool:
        """Whether the copy is over, without waiting.

        Raises
        ------
        DriverCallError
            If the copy failed on the GPU.
        CapturedTransferError
            If it was captured into a graph.
        """
        if self._captured:
            raise _captured_error()
        return self._work is None or self._work.poll()

    def add_done_callback(self, function: Callable[[Transfer], object]) -> None:
        """Call a function with this transfer when it is over, or has failed.

        It is called in a thread of the library, or at once if the copy is known to be over. What
        it raises goes to the log. `wait` tells whether the copy failed. At the end of the process
        functions may not be called any more.

        Parameters
        ----------
        function : callable
            Gets the transfer.

        Raises
        ------
        CapturedTransferError
            If the copy was captured into a graph.
        """
        if self._captured:
            raise _captured_error()
        if self._work is None or self._work.over:
            watcher.call(lambda: function(self))
        else:
            watcher.watcher.watch(self._work, lambda: function(self))

    def __await__(self) -> Generator[Any, None, None]:
        import asyncio

        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not over.done():  # else nobody waits any more
                over.set_result(None)

        def callback(_: Transfer) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell)

        self.add_done_callback(callback)
        yield from over.__await__()
        self.done()  # raises if it failed

    def __del__(self) -> None:
        if self._work is not None and self._work.event:
            self._work.abandon()

    def __repr__(self) -> str:
        if self._captured:
            state = "captured"
        elif self._work is None or self._work.over:
            state = "done"
        else:
            state = "in flight"
        return f"<Transfer {state}: {self.decision}>"


After: TypeAlias = "Transfer | Iterable[Transfer] | None"


def wait_all(transfers: Iterable[Transfer], timeout: float | None = None) -> None:
    """Block until all transfers are over, also if some of them fail.

    Parameters
    ----------
    transfers : iterable of Transfer
        What to wait for.
    timeout : float, optional
        Seconds for all together after which to give up. By default there is no limit.

    Raises
    ------
    NumbaSwapError
        The first error of those that `Transfer.wait` raises.

    Examples
    --------
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     host, device = gpu.pinned_array((8, 64)), gpu.device_array((8, 64))
    ...     ns.wait_all([ns.swap_blocks(host, device, [[i, i]]) for i in range(3)])
    """
    listed = transfers_of(transfers, "transfers")
    end = None if timeout is None else time.monotonic() + _seconds(timeout)
    errors = []
    for transfer in listed:
        try:
            transfer.wait(None if end is None else max(0.0, end - time.monotonic()))
        except NumbaSwapError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def transfers_of(after: After, name: str = "after") -> list[Transfer]:
    """Read what a user says is to come first.

    Raises
    ------
    BadArgumentError
        If it is no transfer and no iterable of transfers.
    """
    if isinstance(after, Transfer):
        return [after]
    try:
        listed: list[Any] = [] if after is None else list(after)
    except TypeError:
        listed = [after]
    for some in listed:
        if not isinstance(some, Transfer):
            raise BadArgumentError(
                f"{name} holds {brief(some)}, which is no Transfer: give what swap_blocks, "
                "exchange, or the run of a plan returned"
            )
    return listed


def wait_early(after: After, stream: int) -> list[Transfer]:
    """Let a stream wait for transfers; return those that are left for when its context is known.

    A default stream belongs to whatever context is current, and which one that will be follows
    from the data.
    """
    listed = transfers_of(after)
    if stream <= abi.STREAM_PER_THREAD:
        return listed
    for transfer in listed:
        transfer.wait_on(stream)
    return []


def _seconds(timeout: float) -> float:
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0:
        return timeout
    raise BadArgumentError(f"timeout={brief(timeout)} is no number of seconds from 0 on")


def _captured_error() -> CapturedTransferError:
    return CapturedTransferError(
        "this swap was captured into a CUDA graph and runs when the graph is launched: wait for "
        "the stream of the launch"
    )
