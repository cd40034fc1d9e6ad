"""Measuring what copies cost on this machine: `calibrate`."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numba_swap.copies.ends import Direction
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import (
    SCHEMA,
    costs_as_json,
    find_costs,
    key_of,
    load_document,
    path_of,
    shared_as_json,
    use_costs,
)
from numba_swap.dispatch.cost_model import ROUTES, CostModel, SharedCost, route_key
from numba_swap.dispatch.settings import DRIVER_VERSION_VARIABLE, current_settings
from numba_swap.driver import abi
from numba_swap.driver.current import current_driver
from numba_swap.errors import CalibrationError, DriverCallError
from numba_swap.tools.bench.costs.fit import TimedSwap, fit_costs
from numba_swap.tools.bench.costs.found import Calibration, format_calibration
from numba_swap.tools.bench.costs.measure import FULL, SIMULATED, SwapTimer, grid_that_fits
from numba_swap.tools.bench.costs.shared import measure_shared
from numba_swap.tools.bench.gpu import gpu_of


class Progress(NamedTuple):
    """How far a calibration is.

    Attributes
    ----------
    done, total : int
        Swaps measured, and swaps in all.
    what : str
        What is measured now.
    """

    done: int
    total: int
    what: str


def calibrate(
    *,
    store: bool = True,
    progress: Callable[[Progress], object] | None = None,
) -> Calibration:
    """Measure what copies cost in each mode here, and choose by that from now on.

    Parameters
    ----------
    store : bool
        Whether to write the result to the user's cache, where every later process finds it. It
        holds for this GPU, driver and version of numba_swap, and is ignored for any other.
    progress : callable, optional
        Gets a `Progress` before each measurement.

    Returns
    -------
    Calibration
        The fitted costs, and what was measured.

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
    It takes about a minute (48 s on an H100 with 16 cores), 512 MiB of pinned memory and 1 GiB on
    the GPU, and should have the GPU to itself. Where there is less memory, it does without the
    longest swaps. On a simulated driver it only goes through the motions, with a few short swaps;
    nothing is stored or used then.
    """
    start = time.perf_counter()
    driver = current_driver()
    driver.current_context()
    device = devices_of(driver)[driver.current_device()]
    key = key_of(device)
    path = None
    if store and not driver.simulated:
        version = current_settings().cap(driver.version)
        if version < driver.version:
            raise CalibrationError(
                f"the driver is treated as {version} (by override or {DRIVER_VERSION_VARIABLE}), "
                "and what is measured so would hold without that too: lift it, or do not store"
            )
        path = path_of(key)
        if os.path.lexists(path):
            load_document(path)  # a broken one is not overwritten unseen
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    before = find_costs(device)
    cells: list[TimedSwap] = []
    blocks: dict[str, float] = {}
    grid = SIMULATED if driver.simulated else FULL
    gpu = gpu_of(driver)
    try:
        grid = grid_that_fits(gpu, grid)
    except DriverCallError as error:
        if error.code != abi.ERROR_OUT_OF_MEMORY:
            raise
        raise CalibrationError(f"there is too little memory to measure with: {error}") from None
    timer = SwapTimer(gpu, grid)
    swaps = list(grid.swaps())
    both = list(grid.shared_swaps())
    total = len(swaps) + len(both)
    for done, swap in enumerate(swaps):
        if progress is not None:
            progress(Progress(done, total, str(swap)))
        cells += timer.measure(swap)
    for direction in (Direction.H2D, Direction.D2H, Direction.D2D):
        route, needed = route_key(direction), timer.full_blocks(direction)
        blocks |= dict.fromkeys((name for name in ROUTES if name.split()[0] == route), needed)
    tuning = before.tuning
    # Costs of what is staged hold for the threads that they were measured with.
    tuning = tuning._replace(host_threads=tuning.threads(current_settings().threads))
    costs = fit_costs(cells, blocks, f"{key.device}, {key.driver}, measured now", tuning)
    shared: dict[tuple[str, int], SharedCost] = {}
    for done, swap in enumerate(both, len(swaps)):
        if progress is not None:
            progress(Progress(done, total, f"{swap}, both engines at once"))
        shared |= measure_shared(timer, device, costs, swap)
    costs = costs._replace(shared=shared)
    if not driver.simulated:
        use_costs(device, costs)
    if path is not None:
        _write(path, _document(key._asdict(), costs, cells))
    return Calibration(
        costs, tuple(cells), before, path, time.perf_counter() - start, driver.simulated
    )


def run_with_progress(*, store: bool) -> Calibration:
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

        found = calibrate(store=store, progress=show)
    console.print(format_calibration(found), soft_wrap=True)
    return found


def _document(key: dict[str, str], costs: CostModel, cells: Sequence[TimedSwap]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "key": key,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "costs": costs_as_json(costs),
        "shared": shared_as_json(costs),
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
