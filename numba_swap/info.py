"""What this machine's driver is, what it offers, and what would be chosen: `driver_info`."""

from __future__ import annotations

import importlib.metadata
import platform
from types import ModuleType
from typing import Any

from numba_swap._version import __version__
from numba_swap.copies import no_copies
from numba_swap.dispatch import Situation, choose
from numba_swap.driver import abi
from numba_swap.driver.api import Driver
from numba_swap.errors import DriverUnavailableError, ModeUnavailableError, NumbaSwapError
from numba_swap.modes import batch, kernel, loop
from numba_swap.settings import Mode, Settings, current_settings
from numba_swap.simulate import current_driver

_PACKAGES = ("numba", "numba-cuda", "cuda-bindings", "numpy")


def driver_info() -> dict[str, Any]:
    """Describe the driver, ready for JSON. Never raises for want of a driver or a GPU.

    Returns
    -------
    dict
        ``available`` : whether copies can run: a driver with a device.
        ``library``, ``found_via`` : path of the driver library, and how it was found.
        ``driver_version`` : the CUDA version it supports, "13.0" for example.
        ``pretended_version`` : the lower version that `override` or the environment pretends.
        ``proc_address`` : which ``cuGetProcAddress`` it has.
        ``entry_points`` : for each: ``name``, ``requested_version``, ``code``, ``status``,
        ``found``, and ``hidden`` if the pretended version would not have it.
        ``devices`` : name, compute capability and multiprocessors of each.
        ``mode``, ``reason`` : what would be chosen between pinned and device memory, and why.
        (The kernel is not compiled for this.) None where there is no driver.
        ``candidates`` : where there is no driver, or it finds no device: what was tried, and why
        it failed.
        ``versions`` : of Python and the packages that take part.

    Raises
    ------
    ValueError
        If ``NUMBA_SWAP_MODE`` or ``NUMBA_SWAP_DRIVER_VERSION`` cannot be read.
    """
    settings = current_settings()
    info: dict[str, Any] = {
        "available": False,
        "simulated": False,
        "library": None,
        "found_via": None,
        "driver_version": None,
        "pretended_version": None,
        "proc_address": None,
        "entry_points": [],
        "devices": [],
        "mode": None,
        "reason": None,
        "candidates": [],
        "versions": _versions(),
    }
    try:
        driver = current_driver()
        info.update(_describe(driver, settings))
        info["devices"] = [_describe_device(driver, i) for i in range(driver.device_count())]
        info["available"] = bool(info["devices"])
    except DriverUnavailableError as error:
        info["candidates"] = [
            {"candidate": candidate, "error": why} for candidate, why in error.candidates
        ]
        info["reason"] = info["reason"] or str(error)
    except NumbaSwapError as error:
        info["reason"] = str(error)
    return info


def _describe(driver: Driver, settings: Settings) -> dict[str, Any]:
    cap = settings.driver_version
    pretended = cap is not None and cap < driver.version
    version = cap if cap is not None and pretended else driver.version
    situation = Situation(version, pretended, stream=0, capturing=False, device=0)
    modules: dict[Mode, ModuleType] = {Mode.BATCH: batch, Mode.LOOP: loop}

    def why_not(mode: Mode) -> str | None:
        # No copies: nothing about memory stands in the way, only the driver speaks.
        if mode is Mode.KERNEL:
            return kernel.why_not_in_principle(driver, no_copies(), situation)
        obstacle: str | None = modules[mode].why_not(driver, no_copies(), situation)
        return obstacle

    try:
        mode, reason, _ = choose(settings.mode, "override or the environment", why_not)
    except ModeUnavailableError as error:
        mode, reason = None, str(error)
    return {
        "simulated": driver.simulated,
        "library": driver.library.path,
        "found_via": driver.library.found_via,
        "driver_version": str(driver.version),
        "pretended_version": str(version) if pretended else None,
        "proc_address": driver.library.proc_address.prototype.name,
        "entry_points": [
            {
                "name": answer.name,
                "requested_version": answer.version,
                "code": answer.code,
                "status": answer.status,
                "found": answer.found,
                "hidden": answer.version > version.encoded,
            }
            for answer in driver.entry_points.answers.values()
        ],
        "mode": mode and str(mode),
        "reason": reason,
    }


def _describe_device(driver: Driver, device: int) -> dict[str, Any]:
    capability = [
        driver.device_attribute(attribute, device)
        for attribute in (abi.DEVICE_COMPUTE_CAPABILITY_MAJOR, abi.DEVICE_COMPUTE_CAPABILITY_MINOR)
    ]
    return {
        "ordinal": device,
        "name": driver.device_name(device),
        "compute_capability": ".".join(map(str, capability)),
        "multiprocessors": driver.device_attribute(abi.DEVICE_MULTIPROCESSOR_COUNT, device),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "numba-swap": __version__,
    }
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
