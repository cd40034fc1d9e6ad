"""The speed targets: ceilings and products in one run, target against measured.

Run it with ``scripts/speed_targets`` or ``python -m numba_swap.tools.bench.speed.suite``. All
ratios are to a ceiling measured in the same run; the mode is ``"auto"`` unless a row says
otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from numba_swap.dispatch.settings import check_positive
from numba_swap.tools.bench.gpu import open_gpu
from numba_swap.tools.bench.machine import describe_machine
from numba_swap.tools.bench.speed.boxes import measure_boxes
from numba_swap.tools.bench.speed.cache import measure_cache
from numba_swap.tools.bench.speed.exchange import measure_duplex, measure_exchange
from numba_swap.tools.bench.speed.latency import measure_capture, measure_latency, measure_planning
from numba_swap.tools.bench.speed.overlap import measure_overlap
from numba_swap.tools.bench.speed.pageable import measure_pageable
from numba_swap.tools.bench.speed.peers import measure_peers
from numba_swap.tools.bench.speed.regret import measure_choosing, measure_regret
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.speed.streaming import measure_streaming
from numba_swap.tools.bench.speed.throughput import (
    measure_few_blocks,
    measure_modes,
    measure_numba_loop,
    measure_throughput,
)
from numba_swap.tools.checks import check_writable
from numba_swap.tools.streams import run_command

# A new section is a function and a line here.
SECTIONS: dict[str, Callable[[SpeedRun], None]] = {
    "throughput": measure_throughput,
    "few-blocks": measure_few_blocks,
    "latency": measure_latency,
    "planning": measure_planning,
    "duplex": measure_duplex,
    "numba-loop": measure_numba_loop,
    "modes": measure_modes,
    "choosing": measure_choosing,
    "regret": measure_regret,
    "exchange": measure_exchange,
    "capture": measure_capture,
    "overlap": measure_overlap,
    "boxes": measure_boxes,
    "pageable": measure_pageable,
    "peers": measure_peers,
    "cache": measure_cache,
    "streaming": measure_streaming,
}


def measure_sections(run: SpeedRun, only: Sequence[str] | None = None) -> None:
    """Measure everything, or only some sections."""
    run.measure_ceilings()
    for name, section in SECTIONS.items():
        if only is None or name in only:
            section(run)
    # Once more at the end: both count, so that a drift of the machine shows and evens out.
    run.measure_ceilings()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; exit status 1 if a target is missed.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.

    Returns
    -------
    int
        The exit status; where output cannot be written, that of `run_command`.
    """
    return run_command("speed_targets", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="speed_targets", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all raw values there")
    parser.add_argument("--repeats", type=int, default=15, help="of each throughput (default: 15)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections, all by default")
    parsed = parser.parse_args(arguments)
    check_positive(parsed.repeats, "--repeats")
    if parsed.json:
        check_writable(parsed.json)
    with open_gpu(None) as gpu:
        run = SpeedRun(gpu, parsed.repeats, lambda line: print(line, flush=True))
        measure_sections(run, parsed.only)
    if parsed.json:
        parsed.json.write_text(json.dumps(run.as_json()) + "\n")
    machine = describe_machine()
    device = machine["devices"][0]["name"]
    print(f"\n{device}, driver {machine['driver_release']} (CUDA {machine['driver_version']})")
    targets = [row for row in run.rows if row.target is not None]
    missed = [row for row in targets if not row.met]
    for row in targets:
        print(row)
    shares = [row.value / row.target for row in targets if row.at_least and row.target]
    print(f"{len(targets) - len(missed)} of {len(targets)} targets met", end="")
    print(f"; median of value over target {statistics.median(shares):.3f}" if shares else "")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
