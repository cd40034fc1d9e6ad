"""The schema of result files, and the check of a file against it."""

from __future__ import annotations

from typing import Any

from numba_swap.dispatch.schema import (
    SchemaError,
    Steps,
    exactly,
    fields,
    is_anything,
    is_count,
    is_flag,
    is_positive,
    is_text,
    list_of,
    map_of,
    number,
    one_of,
    or_null,
)
from numba_swap.dispatch.settings import Mode
from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.spec.arms import Arm
from numba_swap.tools.bench.ab.spec.cases import CACHES, DIRECTIONS, MEMORY_KINDS
from numba_swap.tools.bench.ab.spec.errors import ResultFileError

SCHEMA_NAME = "numba-swap ab 1"

_is_number = number()
_is_sample = list_of(is_positive)


def _is_arm(value: Any, steps: Steps) -> None:
    is_text(value, steps)
    try:
        Arm.parse(value)
    except BadArgumentError as error:
        raise SchemaError(steps, f"is no arm: {error}", value) from None


CLOCKS = fields(
    {
        "at_s": _is_number,
        **dict.fromkeys(("sm_mhz", "memory_mhz", "temperature_c", "power_w"), or_null(_is_number)),
    }
)
CASE = fields(
    {
        "direction": one_of(*DIRECTIONS),
        "block_bytes": is_positive,
        "count": is_positive,
        "memory": one_of(*MEMORY_KINDS, "device"),
        "cache": one_of(*CACHES),
        "seed": is_count,
        "span_bytes": is_positive,
        "mapping_name": or_null(is_text),
        "mapping_digest": or_null(is_text),
    }
)
ARM = fields(
    {
        "arm": _is_arm,
        "control": is_flag,
        "mode": or_null(one_of(*Mode)),
        "reason": or_null(is_text),
        "planted_ns": is_count,
        "settled": is_flag,
        "runs_a_sample": is_positive,
        **dict.fromkeys(("warmups_ns", "enqueue_ns", "completion_ns"), _is_sample),
        "gpu_ns": or_null(_is_sample),
    }
)
CELL = fields(
    {
        "case": CASE,
        "arms": list_of(ARM),
        "orders": list_of(list_of(is_count)),
        "skipped": list_of(fields({"arm": _is_arm, "reason": is_text})),
    }
)
MACHINE = fields(
    {
        "date": is_text,
        "devices": list_of(map_of(is_anything)),
        "driver_version": or_null(is_text),
        "driver_release": or_null(is_text),
        "pretended_version": or_null(is_text),
        "versions": map_of(or_null(is_text)),
        "system": is_text,
        "cores": or_null(is_positive),
        "commit": or_null(is_text),
        "uncommitted_changes": or_null(is_flag),
    }
)
METHOD = fields(
    {
        "rounds": is_positive,
        "seed": is_count,
        **dict.fromkeys(("sample_ns", "most_arm_ns", "flush_bytes"), is_positive),
    }
)
FILE = fields(
    {
        "schema": exactly(SCHEMA_NAME),
        "simulated": is_flag,
        "complete": is_flag,
        "arguments": list_of(is_text),
        "machine": MACHINE,
        "clocks": list_of(CLOCKS),
        "method": METHOD,
        "cells": list_of(CELL),
        "skipped": list_of(fields({"case": CASE, "reason": is_text})),
    }
)


def check_file(value: Any) -> None:
    """Check what was read from a result file.

    Raises
    ------
    ResultFileError
        Naming the first field that is wrong, as ``cells[3].arms[1].completion_ns[7]``.
    """
    try:
        if isinstance(value, dict):  # before all else, which another schema may have otherwise
            exactly(SCHEMA_NAME)(value.get("schema"), ("schema",))
        FILE(value, ())
        for place, cell in enumerate(value["cells"]):
            _check_cell(cell, ("cells", place))
    except SchemaError as error:
        raise ResultFileError(_in_words(error)) from None


def _in_words(error: SchemaError) -> str:
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.steps
    ).removeprefix(".")
    # What should be one value is shown, but not what is a list or an object.
    shown = "".join(f"{v!r} " for v in error.values if not isinstance(v, (list, dict)))
    return f"{path or 'the file'}: {shown}{error.wrong}"


def _check_cell(cell: Any, steps: Steps) -> None:
    """Check what no single field shows: that the series of a cell belong together."""
    arms, orders = cell["arms"], cell["orders"]
    controls = [i for i, arm in enumerate(arms) if arm["control"]]
    if controls != [1] or arms[1]["arm"] != arms[0]["arm"]:
        raise SchemaError((*steps, "arms"), "do not start with the baseline and its control")
    names = [arm["arm"] for arm in arms if not arm["control"]]
    if len(set(names)) < len(names):
        raise SchemaError((*steps, "arms"), "name one arm twice")
    if not orders:
        raise SchemaError((*steps, "orders"), "holds no round")
    for place, order in enumerate(orders):
        if sorted(order) != list(range(len(arms))):
            wrong = f"{order} is no order of {len(arms)} arms"
            raise SchemaError((*steps, "orders", place), wrong)
    for place, arm in enumerate(arms):
        for name in ("enqueue_ns", "completion_ns", "gpu_ns"):
            if arm[name] is not None and len(arm[name]) != 2 * len(orders):
                wrong = f"holds {len(arm[name])} samples for {len(orders)} rounds"
                raise SchemaError((*steps, "arms", place, name), wrong)
