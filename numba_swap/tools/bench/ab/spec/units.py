"""Bytes, times and percentages as people write them."""

from __future__ import annotations

import re

from numba_swap.errors import BadArgumentError

# What a run is, where nothing is said: rounds, the time of a sample, the longest arm.
DEFAULT_ROUNDS, DEFAULT_SAMPLE_MS, DEFAULT_MOST_ARM_S = 24, 2.0, 120.0

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_WRITTEN = re.compile(r"(\d+)\s*(B|K|KiB|M|MiB|G|GiB)?", re.IGNORECASE)
_FACTORS = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB}


def parse_bytes(text: str) -> int:
    """Read a number of bytes, ``512``, ``8K``, ``8KiB`` or ``1MiB``; at least 1.

    Raises
    ------
    BadArgumentError
        If it is none.
    """
    match = _WRITTEN.fullmatch(text.strip())
    nbytes = int(match[1]) * _FACTORS[(match[2] or "").lower()] if match else 0
    if nbytes < 1:
        raise BadArgumentError(f"{text!r} is no size: write 512, 8KiB or 1MiB")
    return nbytes


def parse_count(text: str) -> int:
    """Read a positive number.

    Raises
    ------
    BadArgumentError
        If it is none.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise BadArgumentError(f"{text!r} is no positive number")
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
    for factor, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if nbytes >= factor and nbytes % factor == 0:
            return f"{nbytes // factor} {name}"
    return f"{nbytes} B"


def format_ns(value_ns: float) -> str:
    """Write a time with three digits, more if it takes more to write it whole: ``41.2 us``."""
    for factor, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if value_ns >= factor:
            scaled = value_ns / factor
            return f"{scaled:.0f} {name}" if scaled >= 999.5 else f"{scaled:.3g} {name}"
    return f"{value_ns:.0f} ns"
