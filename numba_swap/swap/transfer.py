"""What a user waits on."""

from __future__ import annotations

from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.decision import Decision
from numba_swap.errors import CapturedTransferError


class Transfer:
    """A swap that has been enqueued.

    The arrays and descriptors in use are kept alive by this object, and by the library should it
    be dropped, until the copy is over. Memory must not be written (or, for the destination, read)
    before that.

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

    def wait(self) -> None:
        """Block until the copy is over. Other threads run meanwhile.

        Raises
        ------
        DriverCallError
            If the copy failed on the GPU.
        CapturedTransferError
            If it was captured into a graph.
        """
        if self._captured:
            raise _captured_error()
        if self._work is not None:
            self._work.wait()

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


def _captured_error() -> CapturedTransferError:
    return CapturedTransferError(
        "this swap was captured into a CUDA graph and runs when the graph is launched: wait for "
        "the stream of the launch"
    )
