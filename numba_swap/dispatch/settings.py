"""What a user can force: mode, policy, how new the driver may pretend to be, the batch's length.

From the strongest to the weakest: the ``mode=`` argument of a call, `override`, the environment.
``mode="auto"`` is such an argument, too: it lifts a mode that the others force.
"""

from __future__ import annotations

import contextlib
import enum
import operator
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from numba_swap.driver.version import OLDEST, DriverVersion, DriverVersionLike
from numba_swap.errors import BadArgumentError, brief

MODE_VARIABLE = "NUMBA_SWAP_MODE"
POLICY_VARIABLE = "NUMBA_SWAP_POLICY"
DRIVER_VERSION_VARIABLE = "NUMBA_SWAP_DRIVER_VERSION"
BATCH_DESCRIPTORS_VARIABLE = "NUMBA_SWAP_BATCH_DESCRIPTORS"
THREADS_VARIABLE = "NUMBA_SWAP_THREADS"

# Calls of 128 copies each, over several streams in turn, keep them all busy to the end: measured
# on an H200, driver 580. (A call of 51,828 copies crashed on another machine: vLLM issue 49276.)
DEFAULT_BATCH_DESCRIPTORS = 128


class Mode(enum.StrEnum):
    """How the bytes are moved.

    Attributes
    ----------
    BATCH
        The driver's ``cuMemcpyBatchAsync`` (CUDA 12.8 and later): many copies a call, in chunks of
        `Settings.batch_descriptors` over up to eight streams.
    LOOP
        One call of ``cuMemcpyAsync`` a copy.
    KERNEL
        A Numba kernel that reads and writes both sides from the GPU.
    STAGED
        Of pageable memory: threads of the host move rows to or from a ring of pinned memory, and
        pieces of many rows cross the link, by the kernel or the loop.
    """

    BATCH = "batch"
    LOOP = "loop"
    KERNEL = "kernel"
    STAGED = "staged"


# Those for pinned, managed and device memory; what is staged is pageable.
DIRECT_MODES = tuple(mode for mode in Mode if mode is not Mode.STAGED)


class Policy(enum.StrEnum):
    """What a choice of the mode is to be good for.

    Attributes
    ----------
    THROUGHPUT
        The least predicted time from call to completion, with all means: private streams, and
        several parts at once.
    OVERLAP
        Leave the GPU's multiprocessors to other kernels: copy engines where they are nearly as
        fast, else a kernel of few thread blocks.
    LATENCY
        The least predicted time for a swap submitted in its own stream, as one piece: no private
        streams, no parts.
    """

    THROUGHPUT = "throughput"
    OVERLAP = "overlap"
    LATENCY = "latency"


@dataclass(frozen=True)
class Settings:
    """What is forced; None where nothing is.

    Attributes
    ----------
    mode : Mode or None
        The mode to use where a call says none.
    driver_version : DriverVersion or None
        The newest driver to pretend; a newer one is treated as this version.
    batch_descriptors : int
        The most copies that one call of ``cuMemcpyBatchAsync`` is given.
    policy : Policy
        What the choice is to be good for, where a call does not say.
    threads : int or None
        How many threads of the host move rows of pageable memory; None for as many as are useful
        here, `Tuning.host_threads` at most.
    """

    mode: Mode | None = None
    driver_version: DriverVersion | None = None
    batch_descriptors: int = DEFAULT_BATCH_DESCRIPTORS
    policy: Policy = Policy.THROUGHPUT
    threads: int | None = None

    def cap(self, version: DriverVersion) -> DriverVersion:
        """Return the version that counts for a driver of this version."""
        return min(version, self.driver_version or version)


def parse_mode(value: Mode | str, source: str = "mode") -> Mode | None:
    """Read a mode as a user may give it; None for ``"auto"``.

    Raises
    ------
    BadArgumentError
        If it names no mode; the message says where the value came from.
    """
    name = value.strip().lower() if isinstance(value, str) else ""
    if name == "auto":
        return None
    try:
        return Mode(name)
    except ValueError:
        choices = ", ".join(repr(str(mode)) for mode in Mode)
        raise BadArgumentError(
            f"{source}={brief(value)} is no mode: choose 'auto' or one of {choices}"
        ) from None


def mode_in_force(mode: Mode | str | None) -> tuple[Mode | None, str]:
    """Return the mode that a call has to use, and who says so; None and nothing if it may choose.

    Parameters
    ----------
    mode : Mode, str or None
        What the call says; ``"auto"`` is a word of its own, None leaves it to `override` and the
        environment.

    Raises
    ------
    BadArgumentError
        If it names no mode.
    """
    if mode is None:
        forced, by = current_settings().mode, mode_source
    else:
        forced, by = parse_mode(mode), lambda: "the mode argument"
    return forced, "" if forced is None else by()


def parse_policy(value: Policy | str, source: str = "policy") -> Policy:
    """Read a policy as a user may give it.

    Raises
    ------
    BadArgumentError
        If it names no policy; the message says where the value came from.
    """
    try:
        return Policy(value.strip().lower() if isinstance(value, str) else "")
    except ValueError:
        choices = ", ".join(repr(str(policy)) for policy in Policy)
        raise BadArgumentError(
            f"{source}={brief(value)} is no policy: choose one of {choices}"
        ) from None


def check_positive(value: Any, name: str) -> None:
    """Refuse what is no positive integer.

    Raises
    ------
    BadArgumentError
        Naming the argument and its value.
    """
    try:
        positive = not isinstance(value, bool) and operator.index(value) > 0
    except TypeError:  # no integer, or an array of several
        positive = False
    if not positive:
        raise BadArgumentError(f"{name}={brief(value)} is no positive integer")


def settings_from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the variables; empty ones count as not set.

    Raises
    ------
    BadArgumentError
        If one of them cannot be read; the message names the variable.
    """
    mode = environment.get(MODE_VARIABLE) or "auto"
    version = environment.get(DRIVER_VERSION_VARIABLE)
    try:
        cap = _parse_cap(version) if version else None
    except BadArgumentError as error:
        raise BadArgumentError(f"{DRIVER_VERSION_VARIABLE}: {error}") from None
    descriptors = _positive_from(environment, BATCH_DESCRIPTORS_VARIABLE)
    policy = environment.get(POLICY_VARIABLE) or Policy.THROUGHPUT
    return Settings(
        parse_mode(mode, MODE_VARIABLE),
        cap,
        descriptors or DEFAULT_BATCH_DESCRIPTORS,
        parse_policy(policy, POLICY_VARIABLE),
        _positive_from(environment, THREADS_VARIABLE),
    )


def _positive_from(environment: Mapping[str, str], variable: str) -> int | None:
    """Read a number; None if the variable is not set."""
    text = environment.get(variable)
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18 or int(text) == 0:
        raise BadArgumentError(f"{variable}={text!r} is no positive number")
    return int(text)


def _parse_cap(value: DriverVersionLike) -> DriverVersion:
    """Read the version of a driver to pretend: of one that this package could run on."""
    version = DriverVersion.parse(value)
    if version < OLDEST:
        raise BadArgumentError(
            f"driver {version} cannot be pretended: numba_swap needs {OLDEST}, and would not run"
        )
    return version


@cache
def _environment_settings() -> Settings:
    return settings_from_environment(os.environ)


_override: ContextVar[Settings | None] = ContextVar("numba_swap_override", default=None)


def current_settings() -> Settings:
    """Return what is in force here: `override`, else the environment as first read."""
    return _override.get() or _environment_settings()


def mode_source() -> str:
    """Say who forces the mode that is in force here, for reasons and messages."""
    overridden = _override.get()
    if overridden is None or overridden.mode is _environment_settings().mode:
        return f"the environment variable {MODE_VARIABLE}"
    return "override"


@contextlib.contextmanager
def override(
    *,
    mode: Mode | str | None = None,
    driver_version: DriverVersionLike | None = None,
    batch_descriptors: int | None = None,
    policy: Policy | str | None = None,
    threads: int | None = None,
) -> Iterator[Settings]:
    """Force a mode, or pretend an older driver, for the calls inside.

    Parameters
    ----------
    mode : Mode or str, optional
        The mode for calls that say no ``mode=``; ``"auto"`` lifts an outer override, as it does
        in a call. A forced mode that cannot run raises `ModeUnavailableError`, it is never
        replaced by another.
    driver_version : tuple of int, str or DriverVersion, optional
        Treat a newer driver as this version: entry points that such a driver would not have are
        hidden. A version above the real one changes nothing; one below 11.3 is refused, for
        nothing runs there.
    batch_descriptors : int, optional
        The most copies to give to one call of ``cuMemcpyBatchAsync``; 128 if nothing is said.
    policy : Policy or str, optional
        What the choice is to be good for: ``"throughput"``, ``"overlap"`` or ``"latency"``.
    threads : int, optional
        How many threads of the host move rows of pageable memory, the calling one among them. If
        nothing is said, as many as there are processors for this process, and 16 at most.

    Yields
    ------
    Settings
        What is in force inside.

    Notes
    -----
    The override belongs to the current context (`contextvars`): other threads are not affected,
    and a thread started inside does not inherit it before Python 3.14. What is not given is
    inherited from an enclosing override or the environment. Plans obey the override in force
    when they *run*, not when they are made.

    Examples
    --------
    >>> with override(mode="loop", driver_version=(12, 4)) as settings:
    ...     settings.mode, str(settings.driver_version)
    (<Mode.LOOP: 'loop'>, '12.4')
    """
    outer = current_settings()
    if batch_descriptors is not None:
        check_positive(batch_descriptors, "batch_descriptors")
    if threads is not None:
        check_positive(threads, "threads")
    settings = Settings(
        outer.mode if mode is None else parse_mode(mode),
        outer.driver_version if driver_version is None else _parse_cap(driver_version),
        outer.batch_descriptors if batch_descriptors is None else batch_descriptors,
        outer.policy if policy is None else parse_policy(policy),
        outer.threads if threads is None else threads,
    )
    token = _override.set(settings)
    try:
        yield settings
    finally:
        _override.reset(token)
