"""What the facts about a driver mean: the mode chosen, what a newer driver brings, what is odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numba_swap.copies.copies import no_copies
from numba_swap.copies.ends import Direction
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import find_costs, reference_costs
from numba_swap.dispatch.choice import decide
from numba_swap.dispatch.conditions import Capabilities, Conditions
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.settings import Mode, Settings
from numba_swap.dispatch.workload import route_key, uniform_workload
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.entry_points import LookupResult
from numba_swap.driver.search.candidates import Kind
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import ModeUnavailableError, NumbaSwapError
from numba_swap.modes import MODES

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


def choose_mode(
    capabilities: Capabilities,
    costs: CostModel,
    swap: str = _TELLING,
    kernel_failure: str | None = None,
) -> tuple[Mode | None, str]:
    """Return the mode that a typical swap of pinned and device memory would run, and why.

    No mode means that the one forced cannot run. Nothing is compiled, and no driver is asked:
    why the kernel could not be loaded, if so, must be given.
    """
    direction, copies, nbytes = _TYPICAL[swap]
    conditions = Conditions(capabilities)

    def why_not(mode: Mode) -> str | None:
        # Nothing about memory stands in the way, only the driver and the compiler speak.
        return MODES[mode].why_not(no_copies().ends, conditions) or (
            kernel_failure if mode is Mode.KERNEL else None
        )

    workload = uniform_workload(route_key(direction), copies, nbytes)
    try:
        decision, *_ = decide(workload, direction, costs, conditions, None, why_not)
    except ModeUnavailableError as error:
        return None, str(error)
    return decision.mode, decision.reason


def costs_of(driver: Driver) -> CostModel:
    """Return the costs to choose by; the shipped ones where there is no device to look up."""
    try:
        driver.initialize()
        return find_costs(devices_of(driver)[0])
    except NumbaSwapError:
        return reference_costs()


def list_typical_swaps(
    capabilities: Capabilities, costs: CostModel, kernel_failure: str | None
) -> list[dict[str, Any]]:
    """Return what would run for swaps of several sizes."""
    rows = []
    for swap in _TYPICAL:
        mode, reason = choose_mode(capabilities, costs, swap, kernel_failure)
        rows.append({"swap": swap, "mode": mode and str(mode), "reason": reason})
    return rows


def describe_batch_copy(capabilities: Capabilities) -> dict[str, Any]:
    """Return whether the driver's batch copy can be used, and why not."""
    reason = MODES[Mode.BATCH].why_not(no_copies().ends, Conditions(capabilities))
    return {"usable": reason is None, "reason": reason}


def describe_kernel(
    capabilities: Capabilities, device: Device, *, try_it: bool
) -> dict[str, bool | str | None]:
    """Return whether the kernel can be used, as far as this process knows or is to try, and why."""
    mode = MODES[Mode.KERNEL]
    reason = mode.why_not(no_copies().ends, Conditions(capabilities))
    if reason is not None:
        return {"usable": False, "reason": reason}
    if try_it:
        try:
            device.driver.initialize()
            with device.driver.activate(device.primary_context):
                mode.load(device, no_copies().ends)
        except NumbaSwapError as error:  # no device, or no context on it
            return {"usable": None, "reason": str(error)}
    reason = device.kernel_failures.get("copy")
    if reason is None and "copy" not in device.kernels:
        reason = "not loaded in this process so far; numba-swap info --try-kernel tries"
        return {"usable": None, "reason": reason}
    return {"usable": reason is None, "reason": reason}


def explain_newer_driver(
    version: DriverVersion | None,
    mode: Mode | None,
    settings: Settings,
    kernel_failure: str | None = None,
) -> str:
    """Return in one sentence what would change with a newer driver, for many long copies.

    Parameters
    ----------
    version : DriverVersion or None
        The CUDA version that the driver supports; None where there is none that can be used.
    mode : Mode or None
        The mode chosen now.
    settings : Settings
        What is forced.
    kernel_failure : str, optional
        Why the kernel could not be loaded.
    """
    changes = []
    for newer in _VERSIONS:
        if version is not None and newer < version:
            continue
        capabilities = _capabilities_at(newer, settings)
        then, _ = choose_mode(capabilities, reference_costs(), _TELLING, kernel_failure)
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


def _capabilities_at(version: DriverVersion, settings: Settings) -> Capabilities:
    """Return what a driver of a version can do, by what each function is new in."""
    capped = settings.cap(version)
    lookups = {
        prototype.name: LookupResult(
            prototype.name,
            prototype.version,
            0,
            address=int(prototype.version <= version.encoded),
            status=int(prototype.version > version.encoded),
        )
        for prototype in abi.PROTOTYPES.values()
    }
    return Capabilities(capped, capped < version, lookups)


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
