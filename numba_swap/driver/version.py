"""CUDA driver versions as people write them, and as the driver encodes them."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from numba_swap.errors import BadArgumentError

# A leading zero is refused: 12.04 is no 12.4.
_WRITTEN = re.compile(r"([1-9]\d{0,2})\.(0|[1-9]\d?)", re.ASCII)
# Those that drivers have had, and one more to come. No minor version has had two digits.
_MAJORS, _MINORS = range(1, 15), range(10)


class DriverVersion(NamedTuple):
    """The CUDA version that a driver supports, for example 12.8.

    This is what ``cuDriverGetVersion`` tells (12080 for 12.8), not the release of the driver
    package (570.124.06). It compares as a tuple does.

    Attributes
    ----------
    major, minor : int
        The two numbers of the version.
    """

    major: int
    minor: int

    @classmethod
    def from_encoded(cls, encoded: int) -> DriverVersion:
        """Decode the driver's own integer: ``1000 * major + 10 * minor``."""
        return cls(encoded // 1000, encoded % 1000 // 10)

    @classmethod
    def parse(cls, value: DriverVersionLike) -> DriverVersion:
        """Read a version as a user may give it.

        Parameters
        ----------
        value : DriverVersion, tuple of two int, or str
            ``(12, 4)`` or ``"12.4"``.

        Raises
        ------
        BadArgumentError
            If it is anything else, or a version that no driver has had; the message names the
            value.
        """
        if isinstance(value, str):
            match = _WRITTEN.fullmatch(value.strip())
            parts: object = tuple(map(int, match.groups())) if match else None
        else:
            parts = value
        if (
            isinstance(parts, tuple)
            and len(parts) == 2
            and all(isinstance(part, int) and not isinstance(part, bool) for part in parts)
        ):
            if parts[0] in _MAJORS and parts[1] in _MINORS:
                return cls(*parts)
            wrong = "no driver has had it"
        else:
            wrong = "it is not written as one"
        raise BadArgumentError(
            f"{value!r} is not a driver version: {wrong}. Give the CUDA version that the driver "
            f'supports (not its release, 580.65 for example), as a tuple (12, 4) or a string "12.4"'
        )

    @property
    def encoded(self) -> int:
        """The driver's own integer, 12080 for 12.8."""
        return 1000 * self.major + 10 * self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


DriverVersionLike: TypeAlias = DriverVersion | tuple[int, int] | str

# The first driver with ``cuGetProcAddress``; with an older one nothing of this package runs.
OLDEST = DriverVersion(11, 3)
