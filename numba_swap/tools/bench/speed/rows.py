"""What a suite measured: one row a thing, with its target and every single value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numba_swap.tools.bench.timing import Samples


@dataclass
class Row:
    """One measured thing.

    Attributes
    ----------
    name : str
        What it is.
    value : float
        What was measured, in `unit`.
    unit : str
        A ratio, seconds, or bytes a second.
    target : float or None
        What it should be; None for what is only shown.
    at_least : bool
        Whether the target is a lower bound; else an upper one.
    details : dict
        Parameters of the case.
    samples : Samples
        Every single measurement.
    """

    name: str
    value: float
    unit: str
    target: float | None
    at_least: bool
    details: dict[str, Any]
    samples: Samples = field(repr=False)

    @property
    def met(self) -> bool:
        """Whether the target was met; true if there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        value = _format(self.value, self.unit)
        if self.target is None:
            return f"{self.name:<58} {value:>10}"
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "MISSED"
        return f"{self.name:<58} {value:>10}  {sign} {_format(self.target, self.unit):<9} {verdict}"


def _format(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e6:.1f} us" if value < 1e-2 else f"{value * 1e3:.2f} ms"
    if unit == "B/s":
        return f"{value / 1e9:.2f} GB/s"
    return f"{value:.4f}" if value < 100 else f"{value:.0f}"
