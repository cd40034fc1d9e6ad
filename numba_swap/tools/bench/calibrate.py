"""Measuring what copies cost on this machine: `calibrate`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import (
    SCHEMA,
    find_costs,
    key_of,
    load_document,
    pair_key,
    path_of,
    routes_as_json,
    shared_as_json,
    use_costs,
)
from numba_swap.dispatch.cost_model import CostModel, SharedCost
from numba_swap.dispatch.settings import DRIVER_VERSION_VARIABLE, current_settings
from numba_swap.dispatch.workload import OWN_ROUTES, PEER_ROUTES, ROUTES, route_key
from numba_swap.driver import abi
from numba_swap.driver.current import current_driver
from numba_swap.errors import CalibrationError, DriverCallError
from numba_swap.tools.bench.costs.fit import TimedSwap, fit_costs
from numba_swap.tools.bench.costs.found import Calibration, format_calibration
from numba_swap.tools.bench.costs.measure import FULL, SIMULATED, SwapTimer, grid_that_fits
from numba_swap.tools.bench.costs.shared import measure_shared
from numba_swap.tools.bench.gpu import gpu_of, on_device


class Progress(NamedTuple):
    """How far a calibration is.

    Attributes
    ----------
    done, total : int
        Swaps measured, and swaps in all, of one GPU or pair of GPUs.
    what : str
        What is measured now.
    """

    done: int
    total: int
    what: str


def calibrate(
    *,
    store: bool = True,
    pairs: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> Calibration:
    """Measure what copies cost in each mode here, and choose by that from now on.

    Every GPU is measured, those of one name once: the one of the calling thread's context, or the
    first.

    Parameters
    ----------
    store : bool
        Whether to write the result to the user's cache, where every later process finds it. It
        holds for GPUs of this name, this driver and version of numba_swap, and is ignored for any
        other.
    pairs : bool
        Whether to measure copies from one GPU to another, too: one pair of each kind, that is of
        names and of how the two are linked. What was measured of pairs before is kept otherwise.
    progress : callable, optional
        Gets a `Progress` before each measurement.

    Returns
    -------
    Calibration
        The fitted costs, and what was measured; in ``others`` the same of GPUs of other names, and
        of pairs.

    Raises
    ------
    CalibrationError
        The file of an earlier calibration is broken (delete it), or the new one cannot be written;
        or an older driver is pretended, so that a mode is missing which later processes may have;
        or there is too little memory to measure with.
    DriverUnavailableError
        No CUDA driver or device.

    Notes
    -----
    It takes about a minute a GPU (48 s on an H100 with 16 cores), 512 MiB of pinned memory and 1
    GiB on the GPU, and should have the GPU to itself. Where there is less memory, it does without
    the longest swaps. On a simulated driver it only goes through the motions, with a few short
    swaps; nothing is stored or used then.
    """
    driver = current_driver()
    driver.current_context()
    devices = devices_of(driver)
    current = driver.current_device()
    names: dict[str, list[Device]] = {}
    for ordinal in sorted(range(driver.device_count()), key=lambda ordinal: ordinal != current):
        names.setdefault(devices[ordinal].name, []).append(devices[ordinal])
    store = store and not driver.simulated
    paths = {name: _path_to_write(same[0]) if store else None for name, same in names.items()}
    found: list[Calibration] = []
    for name, same in names.items():
        found += _calibrate(same, paths[name], progress, pairs=pairs)
    return dataclasses.replace(found[0], others=tuple(found[1:]))


def _path_to_write(device: Device) -> Path:
    """Return the file of a calibration, that can be written, and may be overwritten."""
    driver = device.driver
    version = current_settings().cap(driver.version)
    if version < driver.version:
        raise CalibrationError(
            f"the driver is treated as {version} (by override or {DRIVER_VERSION_VARIABLE}), "
            "and what is measured so would hold without that too: lift it, or do not store"
        )
    path = path_of(key_of(device))
    if os.path.lexists(path):
        load_document(path)  # a broken one is not overwritten unseen
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    return path


def _calibrate(
    same: Sequence[Device],
    path: Path | None,
    progress: Callable[[Progress], object] | None,
    *,
    pairs: bool,
) -> list[Calibration]:
    """Measure one of the GPUs of a name, and, if asked, a pair of each kind that one is part of."""
    device, start = same[0], time.perf_counter()
    driver, key, before = device.driver, key_of(device), find_costs(device)
    with on_device(driver, device.ordinal):
        cells, costs = _measure(device, None, progress)
    costs = costs._replace(peers=before.peers)
    first = Calibration(
        costs,
        tuple(cells),
        before,
        path,
        time.perf_counter() - start,
        driver.simulated,
        device.name,
    )
    found = [first]
    for one, peer in _one_pair_of_each_kind(same) if pairs else ():
        start, kind = time.perf_counter(), pair_key(one, peer)
        with on_device(driver, one.ordinal):
            cells, fitted = _measure(one, peer.ordinal, progress)
        measured = {route: fitted.routes[route] for route in PEER_ROUTES}
        costs = costs._replace(peers={**costs.peers, kind: measured})
        found.append(
            Calibration(
                costs.between(kind),
                tuple(cells),
                before.between(kind),
                path,
                time.perf_counter() - start,
                driver.simulated,
                f"{device.name} from {kind}",
            )
        )
    if not driver.simulated:
        for each in same:
            use_costs(each, costs)
    if path is not None:
        _write(path, _document(key._asdict(), costs, [c for each in found for c in each.cells]))
    found[0] = dataclasses.replace(first, costs=costs)
    return found


def _one_pair_of_each_kind(same: Sequence[Device]) -> Iterator[tuple[Device, Device]]:
    """Yield a GPU of a name and another one, for each kind of pair."""
    driver, seen = same[0].driver, set()
    for device, ordinal in itertools.product(same, range(driver.device_count())):
        if ordinal != device.ordinal:
            peer = devices_of(driver)[ordinal]
            if pair_key(device, peer) not in seen:
                seen.add(pair_key(device, peer))
                yield device, peer


def _measure(
    device: Device, peer: int | None, progress: Callable[[Progress], object] | None
) -> tuple[list[TimedSwap], CostModel]:
    """Time all swaps of a GPU, or those that it makes from another one; it is the current one.

    Returns
    -------
    cells : list of TimedSwap
        What was measured.
    costs : CostModel
        What follows from it.
    """
    driver, key = device.driver, key_of(device)
    grid = SIMULATED if driver.simulated else FULL
    gpu = gpu_of(driver, peer)
    try:
        grid = grid_that_fits(gpu, grid)
    except DriverCallError as error:
        if error.code != abi.ERROR_OUT_OF_MEMORY:
            raise
        raise CalibrationError(f"there is too little memory to measure with: {error}") from None
    timer = SwapTimer(gpu, grid)
    swaps = list(grid.swaps() if peer is None else grid.swaps_between())
    both = list(grid.shared_swaps()) if peer is None else []
    total = len(swaps) + len(both)
    cells: list[TimedSwap] = []
    for done, swap in enumerate(swaps):
        if progress is not None:
            progress(Progress(done, total, str(swap)))
        cells += timer.measure(swap)
    blocks: dict[str, float] = {}
    for direction in dict.fromkeys(swap.direction for swap in swaps):
        route, needed = route_key(direction), timer.full_blocks(direction)
        blocks |= dict.fromkeys((name for name in ROUTES if name.split()[0] == route), needed)
    tuning = find_costs(device).tuning
    # Costs of what is staged hold for the threads that they were measured with.
    tuning = tuning._replace(host_threads=tuning.threads(current_settings().threads))
    costs = fit_costs(cells, blocks, f"{key.device}, {key.driver}, measured now", tuning)
    shared: dict[tuple[str, int], SharedCost] = {}
    for done, swap in enumerate(both, len(swaps)):
        if progress is not None:
            progress(Progress(done, total, f"{swap}, both engines at once"))
        shared |= measure_shared(timer, device, costs, swap)
    return cells, costs._replace(shared=shared)


def run_with_progress(*, store: bool, pairs: bool = False) -> Calibration:
    """Calibrate with a progress bar in the terminal, and print what was found."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(highlight=False)
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                description=progress.what,
            )

        found = calibrate(store=store, pairs=pairs, progress=show)
    console.print(format_calibration(found), soft_wrap=True)
    return found


def _document(key: dict[str, str], costs: CostModel, cells: Sequence[TimedSwap]) -> dict[str, Any]:
    own = {route: costs.routes[route] for route in OWN_ROUTES}
    return {
        "schema": SCHEMA,
        "key": key,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "costs": routes_as_json(own),
        "shared": shared_as_json(costs),
        "pairs": {pair: routes_as_json(routes) for pair, routes in costs.peers.items()},
        "tuning": costs.tuning._asdict(),
        "measured": [
            {
                "mode": str(mode),
                "route": load.route,
                "copies": load.copies,
                "nbytes": load.nbytes,
                "median_us": round(measured_us, 2),
            }
            for mode, load, measured_us in cells
        ],
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write a file in one step: no reader ever sees half of it."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell of a file that it cannot be written."""
    try:
        yield
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written: {error}") from None
