"""Everything that numba_swap raises on purpose, in one tree."""

from __future__ import annotations

from typing import Any


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
        not name one. Copies before it may have been done, later ones were not submitted.
    """

    def __init__(
        self, function: str, code: int, name: str, failing_index: int | None = None, note: str = ""
    ) -> None:
        message = f"[{code}] Call to {function} results in {name}"
        if failing_index is not None:
            message += f" at copy {failing_index}"
        super().__init__(f"{message}. {note}" if note else message)
        self.function = function
        self.code = code
        self.name = name
        self.failing_index = failing_index
        self._note = note

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, self.code, self.name, self.failing_index, self._note)


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


class CalibrationError(NumbaSwapError):
    """A calibration cannot be made, or the file of one is broken."""
