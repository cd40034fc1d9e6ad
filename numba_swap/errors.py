"""Everything that numba_swap raises on purpose, in one tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Codes that break a context for good: every later call in it fails, and nothing runs any more.
STICKY_CODES = frozenset(
    (
        214,  # ECC_UNCORRECTABLE
        700,  # ILLEGAL_ADDRESS
        702,  # LAUNCH_TIMEOUT
        709,  # CONTEXT_IS_DESTROYED
        710,  # ASSERT
        714,  # HARDWARE_STACK_ERROR
        715,  # ILLEGAL_INSTRUCTION
        716,  # MISALIGNED_ADDRESS
        717,  # INVALID_ADDRESS_SPACE
        718,  # INVALID_PC
        719,  # LAUNCH_FAILED
        999,  # UNKNOWN
    )
)
_STICKY_NOTE = (
    "The error is sticky: this context is broken for good, nothing runs in it any more, and every "
    "later call fails. Only a new process can use the GPU again."
)


class NumbaSwapError(Exception):
    """Base of every error of this package."""


class DriverUnavailableError(NumbaSwapError):
    """No CUDA driver library could be loaded, or it has no usable device.

    Attributes
    ----------
    candidates : list of tuple of str
        What was tried, each with the reason why it failed.
    """

    def __init__(self, message: str, candidates: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.candidates = candidates or []


class EntryPointNotFoundError(NumbaSwapError):
    """The driver has no function of that name at the requested version."""


class DriverCallError(NumbaSwapError):
    """A driver function returned an error code.

    Attributes
    ----------
    function : str
        The driver's name of the function.
    code : int
        Its return code.
    name : str
        The driver's name of that code, ``CUDA_ERROR_INVALID_VALUE`` for example.
    failing_index : int or None
        Index, within the copies of the plan, of the copy at fault; None where the driver did
        not name one.
    copy : str or None
        That copy in the user's terms: its row and block ids, or its addresses.
    submitted : int or None
        How many copies, the first ones in the plan's order, had been submitted before; these are
        done unless the error is sticky. None where it is not known, or where the function that
        failed submits no copies: a query, or a wait.
    submitted_rows : sequence of int or None
        The rows of the mapping (or indices of the pointers) of which anything was, or may have
        been, submitted: whatever the order of the plan, the destinations of all others are as
        they were. None where it is not known, or the function submits no copies.
    """

    def __init__(
        self,
        function: str,
        code: int,
        name: str,
        failing_index: int | None = None,
        note: str = "",
        copy: str | None = None,
        submitted: int | None = None,
        submitted_rows: Sequence[int] | None = None,
    ) -> None:
        message = f"[{code}] Call to {function} results in {name}"
        if failing_index is not None:
            message += f" at copy {failing_index}"
        notes = " ".join(filter(None, (note, _STICKY_NOTE if code in STICKY_CODES else "")))
        super().__init__(f"{message}. {notes}" if notes else message)
        self.function = function
        self.code = code
        self.name = name
        self.failing_index = failing_index
        self.copy = copy
        self.submitted = submitted
        self.submitted_rows = submitted_rows
        self._note = note

    def in_part(self, number: int) -> DriverCallError:
        """Return this error for a swap that ran in parts, of which so many were submitted before.

        Parts run side by side, so which rows were submitted is not known.
        """
        note = f"This swap ran in parts; the {number} before this one were submitted. {self._note}"
        return type(self)(
            self.function, self.code, self.name, self.failing_index, note.strip(), self.copy
        )

    @property
    def sticky(self) -> bool:
        """Whether the context is broken for good: only a new process can use the GPU again."""
        return self.code in STICKY_CODES

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.function,
            self.code,
            self.name,
            self.failing_index,
            self._note,
            self.copy,
            self.submitted,
            self.submitted_rows,
        )


class ModeUnavailableError(NumbaSwapError):
    """A mode was asked for by name, and it cannot run this copy here.

    Attributes
    ----------
    mode : str
        The mode asked for.
    reason : str
        Why it cannot run.
    """

    def __init__(self, mode: str, reason: str) -> None:
        super().__init__(f"mode {str(mode)!r} cannot run this copy: {reason}")
        self.mode = mode
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mode, self.reason)


class BadPlanError(NumbaSwapError, ValueError):
    """The copies asked for are not possible or not well defined; nothing was copied.

    Attributes
    ----------
    index : int or None
        Row of the mapping, or index of the copy, at fault.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class BadArgumentError(NumbaSwapError, ValueError):
    """An argument, or a variable of the environment, has a value that means nothing here."""


class UnsupportedArrayError(NumbaSwapError, TypeError):
    """An argument is no array (or no stream) of a kind that can be used here."""


class CapturedTransferError(NumbaSwapError):
    """A transfer that was captured into a CUDA graph was waited for.

    It runs when the graph is launched, as often as it is launched: wait for the launch.
    """


def forked_error() -> DriverUnavailableError:
    """Make the error of every use, in a forked process, of a driver of its parent."""
    return DriverUnavailableError(
        "this process was forked from one that had used CUDA, and CUDA does not survive a fork. "
        "Start processes with multiprocessing's 'spawn' (or 'forkserver') method, or use CUDA "
        "only after the fork."
    )


class CalibrationError(NumbaSwapError):
    """A calibration cannot be made, or the file of one is broken."""
