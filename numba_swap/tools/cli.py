"""The command ``numba-swap``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from numba_swap._version import __version__
from numba_swap.tools.bench.ab.command import add_parser as add_ab
from numba_swap.tools.streams import run_command

_INFO_EPILOG = """\
exit status:
  0  there is a driver with a device: copies can run
  1  there is no usable driver, or it finds no device; the report says why
  2  error: bad arguments or environment, no such PATH, or PATH crashes or hangs
"""
_MOST_SECONDS = 86_400
_MOST_DIGITS = 9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.

    Returns
    -------
    int
        Exit status: 0 if all is well; 1 if ``info`` finds no usable driver or no device, or
        ``demo`` a wrong byte; 2 for an error, which is printed; 141 if nobody reads what is
        printed, 130 after Ctrl-C; of ``ab``, see its help.
    """
    return run_command("numba-swap", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="numba-swap", description="Move scattered memory blocks between host and GPU."
    )
    parser.add_argument("--version", action="version", version=f"numba-swap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser(
        "info",
        help="the driver, its entry points, and the mode chosen",
        description="Say which CUDA driver is here, what it offers, and which mode will run.",
        epilog=_INFO_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("--json", action="store_true", help="for machines")
    about = info.add_mutually_exclusive_group()
    about.add_argument(
        "--driver", metavar="PATH", help="examine this libcuda instead, in a process of its own"
    )
    about.add_argument(
        "--try-kernel",
        action="store_true",
        help="see whether the kernel can be compiled and loaded; takes seconds",
    )
    info.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long --driver may take (default: 60)",
    )
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="swap a field's tiles out and in through every mode")
    demo.add_argument(
        "--size", type=_field_size, help="points along an axis (default: 4096, simulated 1024)"
    )
    demo.add_argument("--simulate", action="store_true", help="even if there is a GPU")
    demo.set_defaults(run=_demo)
    _add_explain(commands)
    _add_cache_sim(commands)
    _add_calibrate(commands)
    add_ab(commands)
    parsed = parser.parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="which mode a copy would get, and why",
        description="Say which mode a copy would get, and why: every mode, whether it is allowed, "
        "and its predicted time. Nothing is copied, and no GPU is needed.",
    )
    explain.add_argument(
        "--sizes", required=True, metavar="LIST", help="lengths of the copies: 4KiB,1MiB"
    )
    explain.add_argument("--count", type=int, default=1024, help="copies in all (default: 1024)")
    explain.add_argument("--direction", choices=("h2d", "d2h", "d2d", "p2p"), default="h2d")
    explain.add_argument(
        "--memory",
        choices=("pinned", "pageable", "managed"),
        default="pinned",
        help="what the host side is (default: pinned)",
    )
    explain.add_argument(
        "--driver-version", metavar="VERSION", help="answer for this driver: 12.4 for example"
    )
    explain.add_argument("--capturing", action="store_true", help="into a CUDA graph")
    explain.add_argument(
        "--mode",
        help="force this mode; auto: choose, whatever NUMBA_SWAP_MODE says (default: what it says)",
    )
    explain.add_argument(
        "--policy",
        choices=("throughput", "overlap", "latency"),
        help="what the choice is to be good for (default: what NUMBA_SWAP_POLICY says, else "
        "throughput)",
    )
    explain.add_argument("--max-blocks", type=int, help="the most thread blocks of a kernel")
    explain.set_defaults(run=_explain)


def _add_cache_sim(commands: Any) -> None:
    sim = commands.add_parser(
        "cache-sim",
        help="what a cache of blocks would hit, for a trace of block ids",
        description="Replay a trace of block ids through caches of several sizes, for every policy "
        "and for one that knows the future (belady), and print the share of blocks that were "
        "there. No GPU is needed.",
    )
    sim.add_argument(
        "trace", metavar="TRACE.npy", help="ids, or a row of ids a request (negative: none)"
    )
    sim.add_argument("--slots", required=True, metavar="LIST", help="numbers of slots: 256,1024")
    sim.add_argument(
        "--request", type=int, metavar="N", help="ids that make one request (default: 1)"
    )
    sim.add_argument("--plot", metavar="FILE", help="draw hit rate against slots (matplotlib)")
    sim.add_argument("--json", action="store_true", help="for machines")
    sim.set_defaults(run=_cache_sim)


def _add_calibrate(commands: Any) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="measure what copies cost here, to choose modes by it",
        description="Measure what copies cost in each mode on this machine, and choose by that "
        "from now on. It takes about a minute and should have the GPU to itself.",
    )
    calibrate.add_argument(
        "--no-store", action="store_true", help="only show it; later processes do not use it"
    )
    calibrate.add_argument(
        "--pairs", action="store_true", help="also copies from one GPU to another"
    )
    calibrate.set_defaults(run=_calibrate)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:  # false for NaN, too
        raise argparse.ArgumentTypeError(f"{text!r} is no time up to {_MOST_SECONDS} seconds")
    return seconds


def _field_size(text: str) -> int:
    size = int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else 0
    if size < 1024 or size % 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of 256 from 1024 up")
    return size


def _info(parsed: argparse.Namespace) -> int:
    from numba_swap.tools.info.driver_info import driver_info
    from numba_swap.tools.info.examine import examine

    if parsed.driver is None:
        info = driver_info(try_kernel=parsed.try_kernel)
    else:
        info = examine(parsed.driver, parsed.timeout)
    if parsed.json:
        json.dump(info, sys.stdout, indent=2)
        print()
    else:
        from numba_swap.tools.info.report import print_report

        print_report(info)
    return 0 if info["available"] else 1


def _demo(parsed: argparse.Namespace) -> int:
    from numba_swap.tools.demo import format_demo, run_demo

    rows = run_demo(parsed.size, force_simulation=parsed.simulate)
    print(format_demo(rows))
    wrong = [row for row in rows if not row.correct]
    if wrong:
        print(f"{len(wrong)} of {len(rows)} swaps came back wrong", file=sys.stderr)
        return 1
    if rows[0].decision.simulated:
        print("No GPU was used: every driver above is simulated, and its time measures nothing.")
    return 0


def _explain(parsed: argparse.Namespace) -> int:
    from numba_swap.device.memory import MemoryKind
    from numba_swap.dispatch.settings import check_positive
    from numba_swap.tools.explain import DIRECTIONS, explain_copy
    from numba_swap.tools.units import parse_bytes

    check_positive(parsed.count, "--count")
    if parsed.max_blocks is not None:
        check_positive(parsed.max_blocks, "--max-blocks")
    decision = explain_copy(
        DIRECTIONS[parsed.direction],
        [parse_bytes(size) for size in parsed.sizes.split(",")],
        parsed.count,
        driver_version=parsed.driver_version,
        host_memory=MemoryKind(parsed.memory),
        capturing=parsed.capturing,
        mode=parsed.mode,
        policy=parsed.policy,
        max_blocks=parsed.max_blocks,
    )
    print(decision.table())
    return 0


def _cache_sim(parsed: argparse.Namespace) -> int:
    from pathlib import Path

    from numba_swap.dispatch.settings import check_positive
    from numba_swap.errors import BadArgumentError
    from numba_swap.tools.cache_sim import format_table, plot, read_trace, run_cache_sim
    from numba_swap.tools.checks import check_writable

    if parsed.request is not None:
        check_positive(parsed.request, "--request")
    try:
        slots = [int(count) for count in parsed.slots.split(",")]
    except ValueError:
        raise BadArgumentError(f"--slots {parsed.slots!r} is no list of integers") from None
    for count in slots:
        check_positive(count, "--slots")
    if parsed.plot:
        check_writable(Path(parsed.plot))
    rows = run_cache_sim(read_trace(parsed.trace, parsed.request), slots)
    if parsed.plot:
        plot(rows, Path(parsed.plot))
    if parsed.json:
        json.dump([{**row._asdict(), "hit_rate": row.hit_rate} for row in rows], sys.stdout)
        print()
    else:
        print(format_table(rows))
    return 0


def _calibrate(parsed: argparse.Namespace) -> int:
    from numba_swap.tools.bench.calibrate import run_with_progress

    run_with_progress(store=not parsed.no_store, pairs=parsed.pairs)
    return 0
