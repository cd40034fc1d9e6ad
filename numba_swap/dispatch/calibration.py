"""Where the costs of the modes come from: shipped with the package, or measured on this machine.

`numba_swap.calibrate` measures, and leaves a file in the user's cache. It holds for one device, one
driver and one version of this package; for any other it is ignored.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from numba_swap._version import __version__
from numba_swap.dispatch.cost_model import CLASSES, ORDER, ROUTES, Cost, Costs
from numba_swap.dispatch.settings import Mode
from numba_swap.driver.calls import Driver
from numba_swap.driver.search.candidates import find_release
from numba_swap.errors import CalibrationError

_log = logging.getLogger("numba_swap")

SCHEMA = "numba_swap calibration 1"
CACHE_VARIABLE = "NUMBA_SWAP_CACHE_DIR"
REFERENCE = "reference_costs.json"
# Microseconds, or thread blocks: no cost comes near, and sums of costs stay finite.
_LARGEST = 1e15


class Key(NamedTuple):
    """What a calibration holds for.

    Attributes
    ----------
    device : str
        Name of the GPU.
    driver : str
        The CUDA version that the driver supports and, if it is known, its release.
    library : str
        Version of this package.
    """

    device: str
    driver: str
    library: str = __version__


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of calibrations: ``NUMBA_SWAP_CACHE_DIR``, or one in the user's cache.

    Raises
    ------
    CalibrationError
        If the user has no home folder.
    """
    given = environment.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    if sys.platform == "win32" and environment.get("LOCALAPPDATA"):
        return Path(environment["LOCALAPPDATA"]) / "numba_swap"
    base = environment.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "numba_swap"
    except RuntimeError as error:
        raise CalibrationError(
            f"no folder for calibrations: {error} Set {CACHE_VARIABLE}"
        ) from None


def key_of(driver: Driver, device: int) -> Key:
    """Return what a calibration made here would hold for."""
    release = None if driver.simulated else find_release(driver.library.path)
    words = f"CUDA {driver.version}" + (f", release {release[0]}" if release else "")
    return Key(driver.device_name(device), words)


def path_of(key: Key) -> Path:
    """Return where the calibration of a device is kept."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", key.device).strip("_") or "unnamed"
    return cache_folder() / f"calibration_{name}.json"


def load_document(path: Path) -> dict[str, Any]:
    """Read a calibration, and check all of it.

    Raises
    ------
    CalibrationError
        If it cannot be read, or is none; the message says what is wrong with it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read: {error}. Delete it.") from None
    try:
        _check(document)
    except ValueError as error:
        raise CalibrationError(f"{path} is no calibration: {error}. Delete it.") from None
    checked: dict[str, Any] = document
    return checked


def costs_from(document: Mapping[str, Any]) -> Costs:
    """Return the costs that a checked calibration holds."""

    def cost(mode: Mode, route: str) -> Cost | None:
        found = document["costs"].get(str(mode), {}).get(route)
        if found is None:
            return None
        copy_us, megabyte_us = tuple(found["copy_us"]), tuple(found["megabyte_us"])
        return Cost(found["start_us"], found["fork_us"], copy_us, megabyte_us, found["full_blocks"])

    loop, batch, kernel = ORDER
    key = document["key"]
    return Costs(
        {route: (cost(loop, route), cost(batch, route), cost(kernel, route)) for route in ROUTES},
        f"{key['device']}, {key['driver']}, measured {document['date']}",
    )


def costs_as_json(costs: Costs) -> dict[str, Any]:
    """Return costs as a calibration holds them."""
    table: dict[str, Any] = {}
    for route, modes in costs.routes.items():
        for mode, cost in zip(ORDER, modes, strict=True):
            if cost is not None:
                table.setdefault(str(mode), {})[route] = cost._asdict()
    return table


def _check(document: Any) -> None:
    schema = _field(document, "schema", str)
    if schema != SCHEMA:
        raise ValueError(f"schema is {schema!r}, not {SCHEMA!r}")
    key = _field(document, "key", dict)
    for name in Key._fields:
        _field(key, name, str, "key")
    _field(document, "date", str)
    costs = _field(document, "costs", dict)
    for mode in costs:
        if mode not in list(Mode):
            raise ValueError(f"costs.{mode} is no mode")
        routes = _field(costs, mode, dict, "costs")
        for route in routes:
            where = f"costs.{mode}.{route}"
            if route not in ROUTES:
                raise ValueError(f"{where} is no route")
            cost = _field(routes, route, dict, f"costs.{mode}")
            for name in ("start_us", "fork_us", "full_blocks"):
                _check_number(_field(cost, name, (int, float), where), f"{where}.{name}")
            for name in ("copy_us", "megabyte_us"):
                values = _field(cost, name, list, where)
                if len(values) != CLASSES:
                    raise ValueError(f"{where}.{name} has {len(values)} values, not {CLASSES}")
                for value in values:
                    _check_number(value, f"{where}.{name}")
    loop = _field(costs, str(Mode.LOOP), dict, "costs")
    for route in ROUTES:  # what always runs must have its price
        _field(loop, route, dict, f"costs.{Mode.LOOP}")


def _field(table: Any, name: str, kind: type | tuple[type, ...], where: str = "") -> Any:
    """Return an entry of a table that must be there, and of a type."""
    path = f"{where}.{name}" if where else name
    if not isinstance(table, dict) or name not in table:
        raise ValueError(f"{path} is missing")
    if not isinstance(table[name], kind):
        raise ValueError(f"{path} is {table[name]!r}, a {type(table[name]).__name__}")
    return table[name]


def _check_number(value: Any, where: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < _LARGEST:
        raise ValueError(f"{where} is {value!r}, no number from 0 up")


@cache
def reference_document() -> dict[str, Any]:
    """Return the calibration that is shipped with the package, made on an H200."""
    text = (
        resources.files("numba_swap.dispatch")
        .joinpath("data", REFERENCE)
        .read_text(encoding="utf-8")
    )
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def reference_costs() -> Costs:
    """Return the costs that are shipped with the package."""
    return costs_from(reference_document())


def find_costs(driver: Driver, device: int) -> Costs:
    """Return the costs to choose by: those measured here, else the shipped ones.

    A simulated driver gets the shipped ones: the choice is that of the GPU they were measured on.
    """
    found: Costs | None = driver.costs.get(device)
    if found is None:  # of several threads that look it up, all get that of the first
        found = driver.costs.setdefault(device, _look_up(driver, device))
    return found


def use_costs(driver: Driver, device: int, costs: Costs) -> None:
    """Choose by other costs from now on."""
    driver.costs[device] = costs


def _look_up(driver: Driver, device: int) -> Costs:
    if driver.simulated:
        return reference_costs()
    key = key_of(driver, device)
    try:
        path = path_of(key)
        if not os.path.exists(path):  # nor is one that may not be looked at
            _log.info("no calibration of %s: run numba-swap calibrate for one", key.device)
            return reference_costs()
        document = load_document(path)
    except CalibrationError as error:
        _log.warning("calibration ignored: %s", error)
        return reference_costs()
    kept = Key(*(document["key"][name] for name in Key._fields))
    if kept != key:
        _log.warning(
            "calibration ignored: %s holds for %s; this is %s. Run numba-swap calibrate.",
            path,
            ", ".join(kept),
            ", ".join(key),
        )
        return reference_costs()
    return costs_from(document)
