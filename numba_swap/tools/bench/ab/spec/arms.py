"""Arms: what is timed, as text. ``kernel:max_blocks=8``, ``auto:driver_version=12.4,fresh``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba_swap.dispatch.settings import Mode, parse_policy
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import BadArgumentError
from numba_swap.tools.units import parse_count, parse_percent

# The fastest on most machines first; new ones follow.
_KNOWN = (Mode.KERNEL, Mode.BATCH, Mode.LOOP)
MODES = ("auto", *map(str, dict.fromkeys((*_KNOWN, *Mode))))
# In the order of the issue that asked for them; each has a file in `peers`.
PEERS = ("contiguous", "numba-loop", "cuda.core", "cupy-loop", "torch-staging")


@dataclass(frozen=True)
class Option:
    """One thing that can be said of an arm.

    Attributes
    ----------
    goes_to : {"run", "override", "timing"}
        A keyword of `CopyPlan.run`, a keyword of `override`, or a matter of how it is timed.
    parse : callable or None
        Reads the value; None for an option without one.
    arms : tuple of str
        Which arms take it.
    listed : bool
        Whether help and messages name it.
    """

    goes_to: str
    parse: Callable[[str], Any] | None
    arms: tuple[str, ...] = MODES
    listed: bool = True


# A new keyword of `CopyPlan.run` or of `override` is one line here.
OPTIONS = {
    "max_blocks": Option("run", parse_count, ("auto", "kernel")),
    "policy": Option("run", parse_policy, ("auto",)),
    "driver_version": Option("override", DriverVersion.parse),
    "batch_descriptors": Option("override", parse_count, ("auto", "batch")),
    "threads": Option("override", parse_count, ("auto", "staged")),
    # Time the whole of `swap_blocks` instead of a plan's `run`.
    "fresh": Option("timing", None),
    # An artificial slowdown: before each run the host spins for this fraction of the arm's own
    # median time. It is there to see whether a known slowdown is found.
    "plant": Option("timing", parse_percent, (*MODES, *PEERS), listed=False),
}


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes
    ----------
    name : str
        A mode of this package, or a peer.
    options : tuple of (str, str)
        Names and values as written, in the order of `OPTIONS`.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Read an arm as it is written on a command line.

        Raises
        ------
        BadArgumentError
            Naming what is unknown, and what could stand there.
        """
        name, _, rest = text.strip().partition(":")
        if name not in (*MODES, *PEERS):
            raise BadArgumentError(f"{name!r} is no arm: choose of {', '.join((*MODES, *PEERS))}")
        given: dict[str, str] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = (word.strip() for word in part.partition("="))
            option = OPTIONS.get(key)
            if option is None or name not in option.arms:
                known = [k for k, o in OPTIONS.items() if o.listed and name in o.arms]
                raise BadArgumentError(
                    f"{text!r}: {name} has no option {key!r}"
                    + (f"; it has {', '.join(known)}" if known else "")
                )
            if bool(equals) != (option.parse is not None):
                needs = "needs a value" if option.parse else "takes no value"
                raise BadArgumentError(f"{text!r}: {key} {needs}")
            if key in given:
                raise BadArgumentError(f"{text!r}: {key} is given twice")
            if option.parse is not None:
                try:
                    option.parse(value)
                except BadArgumentError as error:
                    raise BadArgumentError(f"{text!r}: {key}: {error}") from None
            given[key] = value
        if rest == "" and ":" in text:
            raise BadArgumentError(f"{text!r}: an option is missing behind the colon")
        return cls(name, tuple((key, given[key]) for key in OPTIONS if key in given))

    def values(self, goes_to: str) -> dict[str, Any]:
        """Return the parsed options of one destination."""
        return {
            key: True if parse is None else parse(text)
            for key, text in self.options
            for parse in (OPTIONS[key].parse,)
            if OPTIONS[key].goes_to == goes_to
        }

    @property
    def is_own(self) -> bool:
        """Whether it is a mode of this package, not a peer."""
        return self.name in MODES

    def __str__(self) -> str:
        words = [key if OPTIONS[key].parse is None else f"{key}={v}" for key, v in self.options]
        return f"{self.name}:{','.join(words)}" if words else self.name


def parse_arms(texts: list[str]) -> list[Arm]:
    """Read several arms; the first is the baseline.

    Raises
    ------
    BadArgumentError
        If one cannot be read, or two are the same.
    """
    arms = [Arm.parse(text) for text in texts]
    for i, arm in enumerate(arms):
        if arm in arms[:i]:
            raise BadArgumentError(
                f"{arm} is given twice; the control measures the first arm against itself anyway"
            )
    return arms
