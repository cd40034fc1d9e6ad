"""What can go wrong in A/B timing besides bad arguments."""

from __future__ import annotations

from numba_swap.errors import NumbaSwapError


class ArmUnavailableError(NumbaSwapError):
    """An arm cannot run a case here: a package is missing, or the arm does not do such a case."""


class WrongBytesError(NumbaSwapError):
    """An arm did not copy what it was to copy, so it is not timed."""


class ResultFileError(NumbaSwapError, ValueError):
    """A result file cannot be read or written, or does not follow the schema; it says where."""


class DifferentMachinesError(NumbaSwapError):
    """Two results were measured on different devices or drivers."""
