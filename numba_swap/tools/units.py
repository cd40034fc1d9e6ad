"""Bytes, times and fractions as people write them."""

from __future__ import annotations

import re

from numba_swap.errors import BadArgumentError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"GiB": GIB, "MiB": MIB, "KiB": KIB, "B": 1}
_FACTORS = {"": 1} | {name.lower(): factor for name, factor in _UNITS.items()}
_WRITTEN = re.compile(r"(\d{1,18})\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"\d{1,18}", re.ASCII)
MOST_BYTES = 1 << 40


def parse_bytes(text: str, *, short: bool = False) -> int:
    """Read a number of bytes: ``4096``, ``"4KiB"``, ``"1 MiB"``; at least 1.

    Parameters
    ----------
    text : str
        What was written.
    short : bool
        Whether ``4K`` may stand for ``4KiB``.

    Raises
    ------
    BadArgumentError
        If it is none.
    """
    match = _WRITTEN.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    factor = _FACTORS.get(f"{unit}ib" if short and unit in ("k", "m", "g") else unit, 0)
    nbytes = int(match[1]) * factor if match else 0
    if not 0 < nbytes <= MOST_BYTES:
        raise BadArgumentError(
            f"{text!r} is no size up to 1024GiB: write 4096, 4KiB, 1MiB for example"
        )
    return nbytes


def parse_count(text: str) -> int:
    """Read a positive number below 10**18.

    Raises
    ------
    BadArgumentError
        If it is none.
    """
    if not _COUNT.fullmatch(text.strip()) or int(text) < 1:
        raise BadArgumentError(f"{text!r} is no positive number below 10**18")
    return int(text)


def parse_percent(text: str) -> float:
    """Read a fraction, ``5%`` or ``0.05``, above 0 and at most 1.

    Raises
    ------
    BadArgumentError
        If it is none.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:  # false for NaN, too
        raise BadArgumentError(f"{text!r} is no fraction: write 5% or 0.05")
    return value


def format_bytes(nbytes: int) -> str:
    """Write bytes in the largest unit that divides them: ``8 KiB``."""
    unit, factor = next(
        (pair for pair in _UNITS.items() if nbytes and nbytes % pair[1] == 0), ("B", 1)
    )
    return f"{nbytes // factor} {unit}"


def format_ns(value_ns: float) -> str:
    """Write a time with three digits, more if it takes more to write it whole: ``41.2 us``."""
    for factor, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if value_ns >= factor:
            scaled = value_ns / factor
            return f"{scaled:.0f} {name}" if scaled >= 999.5 else f"{scaled:.3g} {name}"
    return f"{value_ns:.0f} ns"
