"""The schema of result files, written as a table, and the check of a file against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.spec.arms import Arm
from numba_swap.tools.bench.ab.spec.cases import CACHES, DIRECTIONS, MEMORY_KINDS
from numba_swap.tools.bench.ab.spec.errors import ResultFileError

SCHEMA_NAME = "numba-swap ab 1"

# A rule is a function of a value that returns what is wrong with it, or None; a dict of rules for
# an object that has exactly these fields; or a list of one rule for a list.
Rule: TypeAlias = "Callable[[Any], str | None] | dict[str, Any] | list[Any]"


def _is_text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "is no text"


def _is_flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "is neither true nor false"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> str | None:
    return None if _is_whole(value) and value > 0 else "is no positive integer"


def _is_count(value: Any) -> str | None:
    return None if _is_whole(value) and value >= 0 else "is no integer from 0 up"


def _is_number(value: Any) -> str | None:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return None if numeric and value >= 0 else "is no number from 0 up"


def _is_arm(value: Any) -> str | None:
    if not isinstance(value, str):
        return "is no text"
    try:
        Arm.parse(value)
    except BadArgumentError as error:
        return f"is no arm: {error}"
    return None


def _is_anything(value: Any) -> str | None:
    return None


def one_of(*words: str) -> Callable[[Any], str | None]:
    """Make a rule for one of these words."""
    return lambda value: None if value in words else f"is none of {', '.join(words)}"


def exactly(word: str) -> Callable[[Any], str | None]:
    """Make a rule for one word."""
    return lambda value: None if value == word else f"is not {word!r}"


class Or:
    """A rule for null, or what another rule says."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule


class MapOf:
    """A rule for an object of any names, each with a value of one rule."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule


CLOCKS: Rule = {
    "at_s": _is_number,
    "sm_mhz": Or(_is_number),
    "memory_mhz": Or(_is_number),
    "temperature_c": Or(_is_number),
    "power_w": Or(_is_number),
}
CASE: Rule = {
    "direction": one_of(*DIRECTIONS),
    "block_bytes": _is_positive,
    "count": _is_positive,
    "memory": one_of(*MEMORY_KINDS, "device"),
    "cache": one_of(*CACHES),
    "seed": _is_count,
    "span_bytes": _is_positive,
    "mapping_name": Or(_is_text),
    "mapping_digest": Or(_is_text),
}
ARM: Rule = {
    "arm": _is_arm,
    "control": _is_flag,
    "mode": Or(one_of("batch", "kernel", "loop")),
    "reason": Or(_is_text),
    "planted_ns": _is_count,
    "settled": _is_flag,
    "runs_a_sample": _is_positive,
    "warmups_ns": [_is_positive],
    "enqueue_ns": [_is_positive],
    "completion_ns": [_is_positive],
    "gpu_ns": Or([_is_positive]),
}
CELL: Rule = {
    "case": CASE,
    "arms": [ARM],
    "orders": [[_is_count]],
    "skipped": [{"arm": _is_arm, "reason": _is_text}],
}
FILE: Rule = {
    "schema": exactly(SCHEMA_NAME),
    "simulated": _is_flag,
    "complete": _is_flag,
    "arguments": [_is_text],
    "machine": {
        "date": _is_text,
        "devices": [MapOf(_is_anything)],
        "driver_version": Or(_is_text),
        "driver_release": Or(_is_text),
        "pretended_version": Or(_is_text),
        "versions": MapOf(Or(_is_text)),
        "system": _is_text,
        "cores": Or(_is_positive),
        "commit": Or(_is_text),
        "uncommitted_changes": Or(_is_flag),
    },
    "clocks": [CLOCKS],
    "method": {
        "rounds": _is_positive,
        "seed": _is_count,
        "sample_ns": _is_positive,
        "most_arm_ns": _is_positive,
        "flush_bytes": _is_positive,
    },
    "cells": [CELL],
    "skipped": [{"case": CASE, "reason": _is_text}],
}


def check_file(value: Any) -> None:
    """Check what was read from a result file.

    Raises
    ------
    ResultFileError
        Naming the first field that is wrong, as ``cells[3].arms[1].completion_ns[7]``.
    """
    if isinstance(value, Mapping) and value.get("schema") != SCHEMA_NAME:
        raise ResultFileError(f"schema: {value.get('schema')!r} is not {SCHEMA_NAME!r}")
    _check(value, FILE, "")
    for number, cell in enumerate(value["cells"]):
        _check_cell(cell, f"cells[{number}]")


def _check(value: Any, rule: Any, path: str) -> None:
    if isinstance(rule, Or):
        if value is None:
            return
        rule = rule.rule
    if isinstance(rule, MapOf):
        _require(isinstance(value, Mapping), path, "is no object")
        for name, item in value.items():
            _check(item, rule.rule, _join(path, name))
    elif isinstance(rule, Mapping):
        _require(isinstance(value, Mapping), path, "is no object")
        for name in rule:
            _require(name in value, _join(path, name), "is missing")
        for name, item in value.items():
            _require(name in rule, _join(path, name), "is not known to this schema")
            _check(item, rule[name], _join(path, name))
    elif isinstance(rule, Sequence):
        _require(isinstance(value, list), path, "is no list")
        for index, item in enumerate(value):
            _check(item, rule[0], f"{path}[{index}]")
    else:
        wrong = rule(value)
        _require(wrong is None, path, f"{value!r} {wrong}")


def _check_cell(cell: Any, path: str) -> None:
    """Check what no single field shows: that the series of a cell belong together."""
    arms, orders = cell["arms"], cell["orders"]
    controls = [i for i, arm in enumerate(arms) if arm["control"]]
    _require(
        controls == [1] and arms[1]["arm"] == arms[0]["arm"],
        f"{path}.arms",
        "do not start with the baseline and its control",
    )
    names = [arm["arm"] for arm in arms if not arm["control"]]
    _require(len(set(names)) == len(names), f"{path}.arms", "name one arm twice")
    _require(bool(orders), f"{path}.orders", "holds no round")
    for number, order in enumerate(orders):
        _require(
            sorted(order) == list(range(len(arms))),
            f"{path}.orders[{number}]",
            f"{order} is no order of {len(arms)} arms",
        )
    for number, arm in enumerate(arms):
        for name in ("enqueue_ns", "completion_ns", "gpu_ns"):
            _require(
                arm[name] is None or len(arm[name]) == 2 * len(orders),
                f"{path}.arms[{number}].{name}",
                f"holds {arm[name] and len(arm[name])} samples for {len(orders)} rounds",
            )


def _require(fulfilled: bool, path: str, wrong: str) -> None:
    if not fulfilled:
        raise ResultFileError(f"{path or 'the file'}: {wrong}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)
