"""What a run leaves: raw values and all that they depend on, as a file and as objects."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from numba_swap.dispatch.schema import name_of, one_line, read_json
from numba_swap.tools.bench.ab.results.schema import SCHEMA_NAME, check_file
from numba_swap.tools.bench.ab.spec.cases import Case
from numba_swap.tools.bench.ab.spec.errors import ResultFileError

# What is measured in hours: a full grid gives some 1 MiB.
_MOST_BYTES = 64 << 20
_MOST_DIGITS = 30


@dataclass
class Series:
    """The samples of one arm in a cell, in the order taken: two for each round.

    Attributes
    ----------
    warmups_ns : list of int
        Completion times before the rounds: three single runs, the first of which may compile,
        then samples until they settle.
    settled : bool
        Whether they did.
    runs_a_sample : int
        How many runs a sample is the median of.
    enqueue_ns, completion_ns : list of int
        Host times; see `sampling` for what they are.
    gpu_ns : list of int or None
        Times between events; None where the GPU is simulated.
    """

    warmups_ns: list[int] = field(default_factory=list)
    settled: bool = False
    runs_a_sample: int = 1
    enqueue_ns: list[int] = field(default_factory=list)
    completion_ns: list[int] = field(default_factory=list)
    gpu_ns: list[int] | None = None

    def keep_rounds(self, rounds: int) -> None:
        """Drop what is beyond so many whole rounds."""
        for values in (self.enqueue_ns, self.completion_ns, self.gpu_ns):
            if values is not None:
                del values[2 * rounds :]


@dataclass(kw_only=True)
class ArmResult(Series):
    """The raw values of one arm in one cell, and what ran.

    Attributes
    ----------
    arm : str
        The arm as written.
    control : bool
        Whether it is the baseline's second entry.
    mode, reason : str or None
        Which mode of this package ran, and why.
    planted_ns : int
        How long the host spun before each run, to plant a slowdown; 0 for all honest arms.
    """

    arm: str
    control: bool
    mode: str | None
    reason: str | None
    planted_ns: int


@dataclass
class CellResult:
    """One case: the baseline, its control, and the other arms.

    Attributes
    ----------
    case : Case
        What was copied.
    arms : list of ArmResult
        The baseline first, then its control.
    orders : list of list of int
        For each round, the arms of its first half; the second half is the same backwards.
    skipped : list of dict
        ``arm`` and ``reason`` of the arms that were asked for and not measured.
    """

    case: Case
    arms: list[ArmResult]
    orders: list[list[int]]
    skipped: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Result:
    """One run; what a file holds.

    Attributes
    ----------
    simulated : bool
        Whether there was no GPU, so that no time says anything about one.
    complete : bool
        Whether it ran to its end.
    arguments : list of str
        Those of the command.
    machine : dict
        As `bench.machine.describe_machine` gives it, with the versions of the peers.
    clocks : list of dict
        Clocks, temperature and power of the GPU at some moments of the run.
    method : dict
        As `sampling.Method`, and ``flush_bytes``.
    cells : list of CellResult
        What was measured.
    skipped : list of dict
        ``case`` and ``reason`` of the cases that were asked for and not measured.
    """

    simulated: bool
    complete: bool
    arguments: list[str]
    machine: dict[str, Any]
    clocks: list[dict[str, Any]]
    method: dict[str, int]
    cells: list[CellResult]
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Seed of the orders and of the bootstrap."""
        return self.method["seed"]


def write_result(result: Result, path: Path) -> None:
    """Write a file, one cell a line.

    Raises
    ------
    ResultFileError
        If it cannot be written; or if it does not follow the schema, when it is written all the
        same.
    """
    value = {"schema": SCHEMA_NAME, **asdict(result)}
    lines = []
    for name, item in value.items():
        if name in ("cells", "skipped") and item:
            rows = ",\n".join(_compact(row) for row in item)
            lines.append(f"{_compact(name)}:[\n{rows}\n]")
        else:
            lines.append(f"{_compact(name)}:{_compact(item)}")
    try:
        path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    except OSError as error:
        raise ResultFileError(f"{name_of(path.name)} cannot be written: {error.strerror}") from None
    check_file(value)  # afterwards: what took minutes to measure is not thrown away


def load_result(path: str | Path) -> Result:
    """Read a file and check it.

    Raises
    ------
    ResultFileError
        If it cannot be read or does not follow the schema; the message names file and field.
    """
    path = Path(path)
    try:
        value = read_json(path, _MOST_BYTES, _MOST_DIGITS, _refuse)
        check_file(value)
    except ValueError as error:
        raise ResultFileError(f"{name_of(path.name or path)}: {one_line(error)}") from None
    del value["schema"]
    cells = [_cell(cell) for cell in value.pop("cells")]
    skipped = [{**skip, "case": Case(**skip["case"])} for skip in value.pop("skipped")]
    return Result(cells=cells, skipped=skipped, **value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _cell(value: dict[str, Any]) -> CellResult:
    return CellResult(
        Case(**value["case"]),
        [ArmResult(**arm) for arm in value["arms"]],
        value["orders"],
        value["skipped"],
    )


def select_cells(cells: Iterable[CellResult], **wanted: Any) -> list[CellResult]:
    """Return the cells whose cases have one of the values wanted in each field named.

    Parameters
    ----------
    cells : iterable of CellResult
        To choose from.
    **wanted : collection or None
        Values of a field of `Case`; None or nothing for any.
    """
    return [
        cell
        for cell in cells
        if all(not values or getattr(cell.case, name) in values for name, values in wanted.items())
    ]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
