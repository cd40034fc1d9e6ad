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
from typing import Any, NamedTuple, cast

from numba_swap._version import __version__
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.device.tuning import Tuning, why_not_figure
from numba_swap.dispatch.cost_model import CostModel, ModeCost, SharedCost
from numba_swap.dispatch.schema import (
    SchemaError,
    exactly,
    fields,
    is_anything,
    list_of,
    map_of,
    name_of,
    number,
    one_line,
    read_json,
    rule_of,
)
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import CLASSES, OWN_ROUTES, PEER_ROUTES, ROUTES
from numba_swap.driver.search.candidates import find_release
from numba_swap.errors import CalibrationError

_log = logging.getLogger("numba_swap")

SCHEMA = "numba_swap calibration 2"
CACHE_VARIABLE = "NUMBA_SWAP_CACHE_DIR"
REFERENCE = "reference_costs.json"
_DATA = resources.files("numba_swap.dispatch").joinpath("data")


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


# Microseconds, or thread blocks: no cost comes near, and sums of costs stay finite.
_is_cost = number(below=1e15)
_is_column = list_of(_is_cost, CLASSES)
_is_table = map_of(
    fields(
        {
            **dict.fromkeys(("start_us", "fork_us", "full_blocks", "call_us"), _is_cost),
            **dict.fromkeys(("copy_us", "megabyte_us"), _is_column),
        },
        more=True,
    ),
    known=ROUTES,
    wrong="is no route",
)
_check_costs = map_of(_is_table, known=list(Mode), wrong="is no mode")
# Of pairs of GPUs, the same by kinds of pairs: what always runs must have its price, too.
_is_pairs = map_of(
    fields({str(Mode.LOOP): fields({"p2p": is_anything}, more=True)}, more=True),
)
_is_string = rule_of(lambda value: isinstance(value, str), "is no text")
_check_document = fields(
    {
        "schema": exactly(SCHEMA),
        "key": fields(dict.fromkeys(Key._fields, _is_string), more=True),
        "date": _is_string,
        "costs": _check_costs,
    },
    more=True,
)


_check_shared = map_of(
    map_of(
        fields(
            {
                "share": number(below=1.0),
                **dict.fromkeys(("start_us", "megabyte_us"), _is_cost),
            }
        ),
        known=[str(i) for i in range(CLASSES)],
        wrong="is no class of lengths",
    ),
    known=ROUTES,
    wrong="is no route",
)


def _check_tuning(tuning: Any, steps: tuple[str | int, ...]) -> None:
    map_of(is_anything)(tuning, steps)
    for name, value in tuning.items():
        wrong = why_not_figure(name, value)
        if wrong is not None:
            raise SchemaError((*steps, name), wrong, *([value] if name in Tuning._fields else []))


# What always runs must have its price.
_check_loop = fields(
    {str(Mode.LOOP): fields(dict.fromkeys(OWN_ROUTES, is_anything), more=True)}, more=True
)


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


def key_of(device: Device) -> Key:
    """Return what a calibration made here would hold for."""
    driver = device.driver
    release = None if driver.simulated else find_release(driver.library.path)
    words = f"CUDA {driver.version}" + (f", release {release[0]}" if release else "")
    return Key(device.name, words)


def path_of(key: Key) -> Path:
    """Return where the calibration of a device is kept."""
    return cache_folder() / f"calibration_{_slug(key.device)}.json"


def load_document(path: Path) -> dict[str, Any]:
    """Read a calibration, and check all of it.

    Raises
    ------
    CalibrationError
        If it cannot be read, or is none; the message says what is wrong with it.
    """
    try:
        document = read_json(path)
    except ValueError as error:
        raise CalibrationError(
            f"{name_of(path)} cannot be read: {one_line(error)}. Delete it."
        ) from None
    try:
        _check(document)
    except SchemaError as error:
        raise CalibrationError(
            f"{name_of(path)} is no calibration: {one_line(_in_words(error))}. Delete it."
        ) from None
    checked: dict[str, Any] = document
    return checked


def costs_from(document: Mapping[str, Any]) -> CostModel:
    """Return the costs that a checked calibration holds."""
    routes = _routes_from(document["costs"])
    fill_peer_routes(routes)
    return CostModel(
        {route: routes[route] for route in ROUTES},
        _source_of(document),
        Tuning(**document.get("tuning", {})),
        _source_of(document["boxes"]) if "boxes" in document else "",
        {
            (route, int(class_)): SharedCost(**cost)
            for route, classes in document.get("shared", {}).items()
            for class_, cost in classes.items()
        },
        document.get("estimated", ""),
        _source_of(document["p2p"]) if "p2p" in document else reference_costs().peers_source,
        {pair: _routes_from(costs) for pair, costs in document.get("pairs", {}).items()},
    )


def fill_peer_routes(routes: dict[str, dict[Mode, ModeCost]]) -> None:
    """Add the routes between GPUs that were not measured: the shipped one, boxes as within one."""
    if "p2p" not in routes:
        routes["p2p"] = dict(reference_costs().routes["p2p"])
    for route in PEER_ROUTES:
        routes.setdefault(route, routes[route.replace("p2p", "d2d")])


def _routes_from(costs: Mapping[str, Any]) -> dict[str, dict[Mode, ModeCost]]:
    routes: dict[str, dict[Mode, ModeCost]] = {}
    for mode, measured in costs.items():
        for route, cost in measured.items():
            values = {name: cost[name] for name in ModeCost._fields}
            values |= {name: tuple(values[name]) for name in ("copy_us", "megabyte_us")}
            routes.setdefault(route, {})[Mode(mode)] = ModeCost(**values)
    return routes


def _source_of(document: Mapping[str, Any]) -> str:
    key = document["key"]
    return f"{key['device']}, {key['driver']}, measured {document['date']}"


def routes_as_json(routes: Mapping[str, Mapping[Mode, ModeCost]]) -> dict[str, Any]:
    """Return the costs of routes as a calibration holds them: by mode, then by route."""
    table: dict[str, Any] = {}
    for route, modes in routes.items():
        for mode, cost in modes.items():
            table.setdefault(str(mode), {})[route] = cost._asdict()
    return table


def shared_as_json(costs: CostModel) -> dict[str, Any]:
    """Return the costs of both engines at once as a calibration holds them."""
    table: dict[str, Any] = {}
    for (route, class_), cost in costs.shared.items():
        table.setdefault(route, {})[str(class_)] = cost._asdict()
    return table


def _check(document: Any) -> None:
    _check_document(document, ())
    _check_loop(document["costs"], ("costs",))
    _check_tuning(document.get("tuning", {}), ("tuning",))
    _check_shared(document.get("shared", {}), ("shared",))
    pairs = document.get("pairs", {})
    _is_pairs(pairs, ("pairs",))
    for pair, costs in pairs.items():
        _check_costs(costs, ("pairs", pair))


def _in_words(error: SchemaError) -> str:
    where = ".".join(step for step in error.steps if isinstance(step, str)) or "the file"
    if not error.values:
        return f"{where} {error.wrong}"
    return f"{where} is {error.values[0]!r}, {error.wrong.removeprefix('is ')}"


def reference_costs(device: str = "") -> CostModel:
    """Return the costs that are shipped with the package.

    Parameters
    ----------
    device : str, optional
        Name of a GPU. There are figures of some; for all others, and by default, those of an H200
        count; of boxes, said under ``boxes`` in the file, and of what is staged, those of an H100.
        Those between two GPUs, said under ``p2p``, were worked out from what two H100 took.
    """
    own = f"{_slug(device)}.json"
    return _shipped_costs(own if device and own in shipped_files() else REFERENCE)


@cache
def _shipped_costs(name: str) -> CostModel:
    return costs_from(shipped_document(name))


@cache
def shipped_files() -> tuple[str, ...]:
    """Return the names of the calibrations that are shipped with the package."""
    return tuple(sorted(file.name for file in _DATA.iterdir() if file.name.endswith(".json")))


def shipped_document(name: str = REFERENCE) -> dict[str, Any]:
    """Return a calibration that is shipped with the package."""
    document: dict[str, Any] = json.loads(_DATA.joinpath(name).read_text(encoding="utf-8"))
    return document


def _slug(device: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", device).strip("_") or "unnamed"


def find_costs(device: Device) -> CostModel:
    """Return the costs to choose by: those measured here, else the shipped ones.

    A simulated driver gets the shipped ones: the choice is that of the GPU they were measured on.
    """
    found = device.costs
    if found is None:  # of several threads that look it up, all get that of one
        found = _look_up(device)
        if device.costs is None:
            use_costs(device, found)
        found = device.costs
    return cast("CostModel", found)


def pair_key(device: Device, peer: Device) -> str:
    """Return the kind of a pair of GPUs: what the other one is, and how it is reached."""
    link = devices_of(device.driver).link(device.ordinal, peer.ordinal)
    return f"{peer.name}, {link}"


def costs_between(device: Device, peer: Device) -> CostModel:
    """Return the costs of copies that a GPU makes between its memory and that of another one."""
    own = find_costs(device)
    kept = device.costs_between.get(peer.ordinal)
    if kept is None or kept[0] is not own:
        found = own.between(pair_key(device, peer)) if own.peers else own
        kept = device.costs_between[peer.ordinal] = own, found
    return cast("CostModel", kept[1])


def use_costs(device: Device, costs: CostModel) -> None:
    """Choose by other costs from now on."""
    device.costs = costs
    device.choices = {}
    device.tuning = costs.tuning


def _look_up(device: Device) -> CostModel:
    if device.driver.simulated:
        return reference_costs()._replace(tuning=device.tuning)
    key = key_of(device)
    try:
        path = path_of(key)
        if not os.path.lexists(path):  # nor is one that may not be looked at
            _log.info("no calibration of %s: run numba-swap calibrate for one", key.device)
            return reference_costs(key.device)
        document = load_document(path)
    except CalibrationError as error:
        _log.warning("calibration ignored: %s", error)
        return reference_costs(key.device)
    kept = Key(*(document["key"][name] for name in Key._fields))
    if kept != key:
        _log.warning(
            "calibration ignored: %s holds for %s; this is %s. Run numba-swap calibrate.",
            path,
            ", ".join(kept),
            ", ".join(key),
        )
        return reference_costs(key.device)
    return costs_from(document)
