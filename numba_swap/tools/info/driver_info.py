"""What this machine's driver is, what it offers, and what would be chosen: `driver_info`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from numba_swap._version import __version__
from numba_swap.device.devices import devices_of
from numba_swap.device.peers import Link
from numba_swap.dispatch.conditions import driver_capabilities
from numba_swap.dispatch.settings import Mode, Settings, current_settings
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver
from numba_swap.driver.library import DriverLibrary, NvidiaLibrary
from numba_swap.driver.search.candidates import (
    Candidate,
    classify,
    find_candidates,
    find_release,
    predict,
)
from numba_swap.driver.search.elf import find_flaw
from numba_swap.driver.search.machine import find_toolkit, look_at_machine
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import DriverUnavailableError, NumbaSwapError
from numba_swap.tools.info.diagnosis import (
    choose_mode,
    costs_of,
    describe_batch_copy,
    describe_kernel,
    explain_newer_driver,
    find_oddities,
    list_typical_swaps,
)

_PACKAGES = ("numba", "numba-cuda", "cuda-bindings", "numpy")
# Wheels that bring parts of the CUDA toolkit; listed only if installed, the others always.
_TOOLKIT_PACKAGES = (
    "cuda-toolkit",
    "cuda-pathfinder",
    *(
        f"nvidia-{part}{suffix}"
        for part in ("cuda-nvrtc", "nvjitlink", "cuda-runtime")
        for suffix in ("", "-cu12", "-cu11")
    ),
)


def driver_info(*, try_kernel: bool = False) -> dict[str, Any]:
    """Describe the driver, ready for JSON. Never raises for want of a driver or a GPU.

    Parameters
    ----------
    try_kernel : bool
        Compile and load the kernel, if this process has not done so, to see whether that can be.
        It makes the context of the first GPU, and takes seconds where Numba's cache has nothing.

    Returns
    -------
    dict
        ``available`` : whether copies can run: a driver with a device.
        ``simulated`` : whether the driver is simulated.
        ``library``, ``found_via`` : path of the driver library, and how it was found.
        ``library_kind`` : what its folder says that it is: "ordinary", "toolkit stub",
        "forward-compatibility package" or "WSL driver".
        ``driver_release``, ``driver_release_source`` : the release of the library, "580.159.04"
        for example (what ``nvidia-smi`` calls the driver version), and where it was read.
        ``driver_version`` : the CUDA version it supports, "13.0" for example (what ``nvidia-smi``
        calls the CUDA version).
        ``pretended_version`` : the lower version that `override` or the environment pretends.
        ``proc_address`` : which ``cuGetProcAddress`` it has.
        ``entry_points`` : for each: ``name``, ``requested_version``, ``code``, ``status``,
        ``found``, ``hidden`` if the pretended version would not have it, and ``explanation``.
        ``batch_copy`` : ``usable``, whether the driver's batch copy is there and can be used, and
        ``reason``, why not.
        ``kernel`` : ``usable``, whether the kernel can be used on the first GPU (None if this
        process has not tried to load it), and ``reason``, why not.
        ``devices`` : name, compute capability and multiprocessors of each, and whether it reaches
        pageable memory in place (``pageable_access``).
        ``peers`` : of every GPU and every other one, ``device`` and ``peer``, their numbers,
        ``access``, whether kernels of the one can reach the memory of the other, and ``link``:
        "NVLink", "PCIe" or "no peer access". The driver names no links: it is called NVLink where
        atomic operations work across it.
        ``mode``, ``reason`` : what would be chosen for many blocks of 1 MiB from pinned to device
        memory, and why. None where there is no driver.
        ``typical`` : the same for swaps of several sizes, a dict of ``swap``, ``mode`` and
        ``reason`` each.
        ``newer_driver`` : how ``mode`` would change with a newer driver.
        ``candidates`` : where there is no driver, or it finds no device: what was tried, and why
        it failed.
        ``libraries`` : every driver library on the loader's path and in well-known folders, in
        the loader's order: ``path``, ``file`` (links followed), ``origin``, ``kind``,
        ``release``, ``searched`` (the loader looks there), ``by_default`` (the loader takes this
        one by itself), ``used`` (this is about it), ``problem``.
        ``machine`` : ``nvidia_gpus`` and ``amd_gpus`` on the PCI bus, ``amd_driver`` (running),
        ``module_release`` (of NVIDIA's kernel module; None if it is not loaded), ``wsl``,
        ``is_amd`` (what is here to compute with is AMD's).
        ``toolkit`` : ``version`` and ``nvcc``, the path of its compiler; None if there is none.
        ``versions`` : of Python and the packages that take part. Parts of the toolkit stand here
        if they are installed as packages.
        ``notes`` : what is odd about all this, a sentence each.

    Raises
    ------
    ValueError
        If ``NUMBA_SWAP_MODE`` or ``NUMBA_SWAP_DRIVER_VERSION`` cannot be read.
    """
    return _gather(current_driver, NvidiaLibrary, given=None, try_kernel=try_kernel)


def library_info(path: str) -> dict[str, Any]:
    """As `driver_info`, for one library, which is loaded into this process whatever it is.

    A process keeps the first driver library that it loads, and a damaged one may end it: run
    this in a process of its own.
    """

    def library() -> NvidiaLibrary:
        return NvidiaLibrary(path)

    given = os.path.abspath(path)
    return _gather(lambda: Driver(library()), library, given=given, try_kernel=False)


def _gather(
    make_driver: Callable[[], Driver],
    make_library: Callable[[], DriverLibrary],
    given: str | None,
    try_kernel: bool,
) -> dict[str, Any]:
    settings = current_settings()
    toolkit = find_toolkit()
    machine = look_at_machine()
    info: dict[str, Any] = {
        "available": False,
        "simulated": False,
        "library": given,
        "library_kind": None,
        "found_via": None,
        "driver_release": None,
        "driver_release_source": None,
        "driver_version": None,
        "pretended_version": None,
        "proc_address": None,
        "entry_points": [],
        "batch_copy": {"usable": False, "reason": "there is no driver"},
        "kernel": {"usable": False, "reason": "there is no driver"},
        "devices": [],
        "peers": [],
        "mode": None,
        "reason": None,
        "typical": [],
        "newer_driver": None,
        "candidates": [],
        "libraries": [],
        "machine": {**asdict(machine), "is_amd": machine.is_amd},
        "toolkit": toolkit and {"version": toolkit[0], "nvcc": toolkit[1]},
        "versions": _versions(),
        "notes": [],
    }
    version: DriverVersion | None = None
    advice = ""
    kernel_failure: str | None = None
    try:
        driver = make_driver()
        version = driver.version
        info.update(_describe_library(driver.library))
        info.update(_describe_driver(driver, settings, try_kernel))
        kernel_failure = devices_of(driver)[0].kernel_failures.get("copy")
        info["devices"] = [_describe_device(driver, i) for i in range(driver.device_count())]
        info["peers"] = _describe_peers(driver)
        info["available"] = bool(info["devices"])
    except DriverUnavailableError as error:
        info["candidates"] = [
            {"candidate": candidate, "error": why} for candidate, why in error.candidates
        ]
        info["reason"] = info["reason"] or str(error)
        advice = error.advice
    except NumbaSwapError as error:
        if info["found_via"] is None:
            with contextlib.suppress(NumbaSwapError):
                info.update(_describe_library(make_library()))
        info["candidates"] = [{"candidate": info["library"], "error": str(error)}]
        info["reason"] = info["reason"] or str(error)
    mode = Mode(info["mode"]) if info["mode"] else None
    info["newer_driver"] = explain_newer_driver(version, mode, settings, kernel_failure)
    if info["library"] and not info["simulated"]:
        info["library_kind"] = str(classify(info["library"]))
        release = find_release(info["library"])
        if release is not None:
            info["driver_release"], info["driver_release_source"] = release
    info["libraries"] = _list_libraries(info["library"], given)
    info["notes"] = find_oddities(info)
    if advice:
        info["notes"].insert(0, f"{advice[0].upper()}{advice[1:]}.")
    return info


def _describe_library(library: DriverLibrary) -> dict[str, Any]:
    return {
        "simulated": library.simulated,
        "library": library.path,
        "found_via": library.found_via,
        "proc_address": library.proc_address.prototype.name,
    }


def _describe_driver(driver: Driver, settings: Settings, try_kernel: bool) -> dict[str, Any]:
    capabilities, costs = driver_capabilities(driver, settings), costs_of(driver)
    device = devices_of(driver)[0]
    kernel = describe_kernel(capabilities, device, try_it=try_kernel)
    kernel_failure = device.kernel_failures.get("copy")
    mode, reason = choose_mode(capabilities, costs, kernel_failure=kernel_failure)
    return {
        "driver_version": str(driver.version),
        "pretended_version": str(capabilities.version) if capabilities.pretended else None,
        "entry_points": [
            {
                "name": answer.name,
                "requested_version": answer.version,
                "code": answer.code,
                "status": answer.status,
                "found": answer.found,
                "hidden": answer.version > capabilities.version.encoded,
                "explanation": answer.explanation,
            }
            for answer in driver.entry_points.answers.values()
        ],
        "batch_copy": describe_batch_copy(capabilities),
        "kernel": kernel,
        "mode": mode and str(mode),
        "reason": reason,
        "typical": list_typical_swaps(capabilities, costs, kernel_failure),
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
        "pageable_access": bool(driver.device_attribute(abi.DEVICE_PAGEABLE_MEMORY_ACCESS, device)),
    }


def _describe_peers(driver: Driver) -> list[dict[str, Any]]:
    devices = devices_of(driver)
    pairs = itertools.permutations(range(driver.device_count()), 2)
    links = {pair: devices.link(*pair) for pair in pairs}
    return [
        {"device": device, "peer": peer, "access": link is not Link.NONE, "link": str(link)}
        for (device, peer), link in links.items()
    ]


def _list_libraries(used: str | None, given: str | None) -> list[dict[str, Any]]:
    candidates = find_candidates()
    by_default = predict(candidates)
    file = used and os.path.realpath(used)
    if given is not None and file not in [os.path.realpath(c.path) for c in candidates]:
        candidates.insert(0, Candidate(given, "given", searched=False, flaw=find_flaw(given)))
    return [
        _describe_candidate(c, c is by_default, os.path.realpath(c.path) == file)
        for c in candidates
    ]


def _describe_candidate(candidate: Candidate, predicted: bool, used: bool) -> dict[str, Any]:
    release = find_release(candidate.path)
    problem = candidate.why_not
    if predicted and candidate.flaw is not None:
        problem = f"{problem}, and the loader looks no further"
    elif used and candidate.flaw is None:
        problem = None
    return {
        "path": candidate.path,
        "file": os.path.realpath(candidate.path),
        "origin": candidate.origin,
        "kind": str(candidate.kind),
        "release": release and release[0],
        "searched": candidate.searched,
        "by_default": predicted and candidate.flaw is None,
        "used": used,
        "problem": problem,
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "numba-swap": __version__,
    }
    for package in (*_PACKAGES, *_TOOLKIT_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in _PACKAGES:
                versions[package] = None
    return versions
