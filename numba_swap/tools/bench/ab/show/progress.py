"""A progress bar with the time left; lines instead where nobody watches a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from numba_swap.tools.bench.ab.show.tables import SIMULATED_NOTE

_REFRESH_S = 0.2


@contextlib.contextmanager
def show_progress(cells: int, simulated: bool) -> Iterator[Callable[[float, str], None]]:
    """Show progress on standard error while the body runs.

    Parameters
    ----------
    cells : int
        How many there are.
    simulated : bool
        Whether to say that nothing is measured.

    Yields
    ------
    callable
        To be called with the cells done, a fraction included, and what is done now.
    """
    note = f"  ({SIMULATED_NOTE})" if simulated else ""
    if not sys.stderr.isatty():
        yield _Lines(cells, note)
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %, left"),
        TimeRemainingColumn(),
        TextColumn("after"),
        TimeElapsedColumn(),
    )
    # Refreshed between rounds and never by a thread of its own, which would run within samples.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("starting" + note, total=cells)
        shown_s = 0.0

        def show(done: float, what: str) -> None:
            nonlocal shown_s
            now_s = time.monotonic()
            due = now_s - shown_s >= _REFRESH_S
            shown_s = now_s if due else shown_s
            bar.update(task, completed=done, description=what + note, refresh=due)

        yield show


class _Lines:
    """A line on standard error for each cell, with an estimate of the time left."""

    def __init__(self, cells: int, note: str) -> None:
        self._cells, self._note = cells, note
        self._start = time.monotonic()
        self._shown = -1

    def __call__(self, done: float, what: str) -> None:
        if int(done) == self._shown:
            return
        self._shown = int(done)
        elapsed_s = time.monotonic() - self._start
        left = f", about {elapsed_s / done * (self._cells - done):.0f} s left" if done else ""
        print(
            f"[{int(done) + 1}/{self._cells}, {elapsed_s:.0f} s{left}] {what}{self._note}",
            file=sys.stderr,
            flush=True,
        )
