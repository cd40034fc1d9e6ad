"""What the facts about a driver mean: the mode chosen, what a newer driver brings, what is odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from numba_swap.copies.copies import Direction, no_copies
from numba_swap.dispatch.calibration import find_costs, reference_costs
from numba_swap.dispatch.cost_model import Costs, route_key, uniform_load
from numba_swap.dispatch.ranking import Decision, Situation, choose, rank
from numba_swap.dispatch.settings import Mode, Settings, mode_source
from numba_swap.driver.calls import Driver
from numba_swap.driver.search.candidates import Kind
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import ModeUnavailableError, NumbaSwapError
from numba_swap.modes import batch, loop
from numba_swap.modes.kernel import launch as kernel

# Every CUDA version with a driver that numba_swap can use, up to the newest that is simulated.
_VERSIONS = [
    DriverVersion(major, minor)
    for major, minors in ((11, range(3, 9)), (12, range(10)), (13, range(1)))
    for minor in minors
]
# Typical swaps: direction, number of copies, and bytes of each.
_TYPICAL = {
    "one block, host to GPU": (Direction.H2D, 1, 4 << 10),
    "many blocks of 4 KiB, host to GPU": (Direction.H2D, 8192, 4 << 10),
    "many blocks of 1 MiB, host to GPU": (Direction.H2D, 1024, 1 << 20),
    "many blocks of 64 KiB, within the GPU": (Direction.D2D, 1024, 64 << 10),
}
# The one for which the driver makes the greatest difference.
_TELLING = "many blocks of 1 MiB, host to GPU"
_COMPILER_PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-nvjitlink")


def situation_of(driver: Driver, settings: Settings) -> Situation:
    """Return the situation of a copy in the default stream, no capture."""
    version = settings.cap(driver.version)
    return Situation(
        version, version < driver.version, stream=0, context=0, capturing=False, device=0
    )


def choose_mode(
    driver: Driver, settings: Settings, swap: str = _TELLING
) -> tuple[Mode | None, str]:
    """Return the mode that a typical swap of pinned and device memory would run, and why.

    No mode means that the one forced cannot run. The kernel is not compiled for this.
    """
    situation = situation_of(driver, settings)
    modules: dict[Mode, ModuleType] = {Mode.BATCH: batch, Mode.LOOP: loop}

    def why_not(mode: Mode) -> str | None:
        # No copies: nothing about memory stands in the way, only the driver speaks.
        if mode is Mode.KERNEL:
            return kernel.why_not_in_principle(driver, no_copies(), situation)
        obstacle: str | None = modules[mode].why_not(driver, no_copies(), situation)
        return obstacle

    direction, copies, nbytes = _TYPICAL[swap]
    ranked = rank(_costs(driver), uniform_load(route_key(direction), copies, nbytes), situation)
    try:
        mode, rejected = choose(settings.mode, ranked, why_not)
    except ModeUnavailableError as error:
        return None, str(error)
    decision = Decision(
        mode,
        situation.driver_version,
        direction,
        copies,
        copies * nbytes,
        ranked,
        rejected,
        "" if settings.mode is None else mode_source(),
        situation.policy,
    )
    return mode, decision.reason


def _costs(driver: Driver) -> Costs:
    """Return the costs to choose by; the shipped ones where there is no device to look up."""
    try:
        driver.initialize()
    except NumbaSwapError:
        return reference_costs()
    return find_costs(driver, 0)


def list_typical_swaps(driver: Driver, settings: Settings) -> list[dict[str, Any]]:
    """Return what would run for swaps of several sizes."""
    rows = []
    for swap in _TYPICAL:
        mode, reason = choose_mode(driver, settings, swap)
        rows.append({"swap": swap, "mode": mode and str(mode), "reason": reason})
    return rows


def describe_batch_copy(driver: Driver, settings: Settings) -> dict[str, Any]:
    """Return whether the driver's batch copy can be used, and why not."""
    reason = batch.why_not(driver, no_copies(), situation_of(driver, settings))
    return {"usable": reason is None, "reason": reason}


def explain_newer_driver(
    version: DriverVersion | None, mode: Mode | None, settings: Settings
) -> str:
    """Return in one sentence what would change with a newer driver, for many long copies.

    The rules are those of a swap: it asks simulated drivers which mode they would run.

    Parameters
    ----------
    version : DriverVersion or None
        The CUDA version that the driver supports; None where there is none that can be used.
    mode : Mode or None
        The mode chosen now.
    settings : Settings
        What is forced.
    """
    changes = []
    for newer in _VERSIONS:
        if version is not None and newer < version:
            continue
        then, _ = choose_mode(Driver(SimulatedLibrary(newer)), settings)
        if then is not None and then is not mode:
            changes.append(f"{newer} or newer: {then}")
            mode = then
    if changes:
        return "; ".join(changes)
    cap = settings.driver_version
    if cap is not None and version is not None and cap < version:
        return f"nothing, as long as driver {cap} is pretended"
    if settings.mode is not None:
        return f"nothing, as long as mode {settings.mode} is forced"
    return f"nothing: {mode} is the first choice already"


def find_oddities(info: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the facts should know besides them, a sentence each.

    Parameters
    ----------
    info : mapping
        As `driver_info` returns it, complete but for these.
    """
    if info["simulated"]:
        return []
    return [*_oddities_of_release(info), *_oddities_of_compiler(info)]


def _oddities_of_release(info: Mapping[str, Any]) -> Iterator[str]:
    used = next((library for library in info["libraries"] if library["used"]), None)
    release, module = info["driver_release"], info["machine"]["module_release"]
    if release and module and release != module:
        if used and used["origin"] == "given":
            yield (
                f"This library ({release}) is not that of the kernel module running here "
                f"({module}), so it finds no device."
            )
        elif info["library_kind"] == Kind.COMPAT:
            yield (
                f"The library ({release}) is a forward-compatibility package over the kernel "
                f"module {module}: it works on data-centre GPUs only."
            )
        else:
            yield (
                f"The library is of release {release}, the kernel module of {module}: after an "
                "update of the driver, reboot."
            )
    if info["library"] and not (info["available"] or module or info["machine"]["wsl"]):
        yield "NVIDIA's kernel module is not loaded: there is no /proc/driver/nvidia."
        if info["machine"]["is_amd"]:
            yield "This is an AMD machine, and numba_swap needs an NVIDIA GPU."
    if used and used["origin"] != "given" and not used["by_default"]:
        yield "The loader by itself would take another library than this one."


def _oddities_of_compiler(info: Mapping[str, Any]) -> Iterator[str]:
    supported = int((info["driver_version"] or "0").split(".")[0])
    wheels = [
        f"{package} {info['versions'][package]}"
        for package in _COMPILER_PACKAGES
        if int((info["versions"].get(package) or "0").split(".")[0]) > supported >= 12
    ]
    if wheels:
        yield (
            f"{' and '.join(wheels)} are of a newer CUDA than this driver supports "
            f"({info['driver_version']}): the kernel mode may not compile or load. Install "
            f"numba-swap[cu{supported}] instead."
        )
