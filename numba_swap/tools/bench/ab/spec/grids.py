"""Which arms run in which cases: what was asked for, or a grid that is known by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.spec.arms import Arm, parse_arms
from numba_swap.tools.bench.ab.spec.cases import DEFAULT_SPAN_BYTES, Case, make_cases
from numba_swap.tools.units import KIB, MIB


@dataclass(frozen=True)
class Cell:
    """A case and the arms that run it; the first is the baseline.

    Attributes
    ----------
    case : Case
        What is copied.
    arms : tuple of Arm
        Who copies.
    """

    case: Case
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Grid:
    """A set of cells.

    Attributes
    ----------
    directions, sizes, counts : tuple
        All combinations are cases.
    arms : tuple of str
        Run in every case; the first is the baseline.
    peers : tuple of str
        Run beside them where the size is in `peer_sizes` and the count in `peer_counts`.
    peer_sizes, peer_counts : tuple of int
        Where the peers run.
    most_bytes : int
        Cases of more bytes are recorded as skipped.
    rounds, sample_ms, most_arm_s : float
        As the options of the command, where they are not given.
    """

    directions: tuple[str, ...]
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    arms: tuple[str, ...]
    peers: tuple[str, ...]
    peer_sizes: tuple[int, ...]
    peer_counts: tuple[int, ...]
    most_bytes: int
    rounds: int
    sample_ms: float
    most_arm_s: float


GRIDS = {
    # Sized to take some 7 minutes on an H200 machine, where calls of the driver for each of 16384
    # blocks take up to 0.12 s a run, and most of the rest is the check of every byte.
    "full": Grid(
        ("h2d", "d2h", "d2d"),
        (512, 2 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, MIB),
        (16, 64, 256, 1024, 4096, 16384),
        ("auto", "kernel", "batch", "loop", "contiguous"),
        ("torch-staging", "cuda.core", "cupy-loop", "numba-loop"),
        (512, 8 * KIB, 32 * KIB, 256 * KIB),
        (16, 256, 4096),
        256 * MIB,
        20,
        1.0,
        7.0,
    ),
    # Small enough for a simulated GPU.
    "tiny": Grid(
        ("h2d", "d2h"),
        (512, 2 * KIB, 8 * KIB),
        (4, 16, 64),
        ("auto", "batch", "loop", "contiguous"),
        ("numba-loop",),
        (512,),
        (4,),
        256 * KIB,
        20,
        0.2,
        3.0,
    ),
}


def find_grid(name: str) -> Grid:
    """Return a grid by its name.

    Raises
    ------
    BadArgumentError
        If there is no such grid.
    """
    if name not in GRIDS:
        raise BadArgumentError(f"{name!r} is no grid: choose of {', '.join(GRIDS)}")
    return GRIDS[name]


def cells_of_grid(
    name: str, seed: int = 0, span_bytes: int = DEFAULT_SPAN_BYTES
) -> tuple[list[Cell], list[tuple[Case, str]]]:
    """Return the cells of a grid, and the cases that are too large with the reason.

    Raises
    ------
    BadArgumentError
        If there is no such grid.
    """
    grid = find_grid(name)
    cases = make_cases(grid.directions, grid.sizes, grid.counts, seed=seed, span_bytes=span_bytes)
    kept, large = drop_large(cases, grid.most_bytes)
    arms, peers = tuple(parse_arms(list(grid.arms))), tuple(parse_arms(list(grid.peers)))
    cells = []
    for case in kept:
        with_peers = case.block_bytes in grid.peer_sizes and case.count in grid.peer_counts
        cells.append(Cell(case, arms + peers if with_peers else arms))
    return cells, large


def drop_large(cases: Sequence[Case], most_bytes: int) -> tuple[list[Case], list[tuple[Case, str]]]:
    """Separate the cases of more than so many bytes, with the reason why they are left out."""
    kept = [case for case in cases if case.nbytes <= most_bytes]
    large = [
        (case, f"{case.nbytes} bytes in all are more than the limit of {most_bytes}")
        for case in cases
        if case.nbytes > most_bytes
    ]
    return kept, large
