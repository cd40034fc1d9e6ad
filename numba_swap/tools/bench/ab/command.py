"""The command line of ``numba-swap ab``; cheap to import, what it does comes from `verbs`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba_swap.tools.bench.ab.spec import defaults

_DESCRIPTION = """\
Time ways to move the same blocks against each other: in turn, with a control in each report.

Arms are auto, kernel, batch and loop, with options (kernel:max_blocks=8, auto:driver_version=12.4,
auto:fresh), and, where they are installed, contiguous, numba-loop, cuda.core, cupy-loop and
torch-staging. The first arm is the baseline. A ratio is an arm's time over the baseline's.
"""
_EPILOG = """\
verdicts:
  FASTER, SLOWER  the 95 % interval of the ratio lies wholly beyond 2 % of 1
  SAME            it lies wholly within
  INCONCLUSIVE    neither, or fewer than 20 rounds
  The control is the baseline against itself. Where it is not SAME, no verdict stands.

exit status:
  0    done; with --fail-on-slower: nothing is SLOWER
  1    --fail-on-slower, and an arm is SLOWER in a case with a stable control
  2    error: bad arguments, no such file, wrong bytes, an arm that cannot run
  3    --fail-on-slower, and it cannot be told: a control is not SAME, or nothing was measured
  130  Ctrl-C; what was measured until then is shown, and written if --json says where
  141  nobody reads what is shown; a result that --json keeps is written before
"""


def add_parser(commands: Any) -> None:
    """Add ``ab`` to the commands of ``numba-swap``."""
    parser = commands.add_parser(
        "ab",
        help="time ways of moving blocks against each other",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_run(actions)
    _add_show(actions)
    _add_compare(actions)
    _add_plot(actions)


def _add_action(actions: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=help_text,
        description=help_text.capitalize() + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_run(actions: Any) -> None:
    parser = _add_action(actions, "run", "measure arms in cases, and show the report")
    parser.add_argument("arms", nargs="*", metavar="ARM", help="the first is the baseline")
    parser.add_argument("--grid", metavar="NAME", help="a grid with arms and cases: full, or tiny")
    cases = parser.add_argument_group("cases (every combination)")
    cases.add_argument("--direction", nargs="+", metavar="D", help="h2d (default), d2h, d2d")
    cases.add_argument("--block", nargs="+", metavar="SIZE", help="default: 8KiB")
    cases.add_argument("--count", nargs="+", metavar="N", help="default: 1024")
    cases.add_argument(
        "--memory",
        nargs="+",
        metavar="KIND",
        help="of the host side: pinned (default), registered, pageable, managed",
    )
    cases.add_argument("--cache", nargs="+", metavar="C", help="warm (default), cold")
    cases.add_argument("--seed", type=int, default=0, help="of blocks, orders and bootstrap")
    cases.add_argument(
        "--span",
        default="64MiB",
        metavar="SIZE",
        help="memory over which blocks are scattered, at least twice theirs (default: 64MiB)",
    )
    cases.add_argument(
        "--mapping", metavar="FILE", help="rows of source and destination block, .npy or text"
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--rounds", type=int, help=f"at least 20 (default: {defaults.ROUNDS}; a --grid has its own)"
    )
    method.add_argument(
        "--sample-ms",
        type=float,
        metavar="MS",
        help=f"repeat runs to fill this (default: {defaults.SAMPLE_MS:g}; a --grid has its own)",
    )
    method.add_argument(
        "--most-arm-s",
        type=float,
        metavar="S",
        help="most time of one arm's rounds in one case "
        f"(default: {defaults.MOST_ARM_S:g}; a --grid has its own)",
    )
    method.add_argument("--most-s", type=float, metavar="S", help="start no case later than this")
    method.add_argument(
        "--skip",
        action="store_true",
        help="record arms that cannot run a case as skipped (--grid does so always)",
    )
    method.add_argument(
        "--simulate",
        nargs="?",
        const="13.0",
        metavar="VERSION",
        help="run on a simulated driver even if there is a GPU; its times measure nothing",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    _add_judgement(parser)
    parser.set_defaults(run=_later("run"))


def _add_judgement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="completion",
        choices=["completion", "enqueue", "gpu"],
        help="the time that ratios are of (default: completion)",
    )
    parser.add_argument("--fail-on-slower", action="store_true", help="see exit status")


def _add_show(actions: Any) -> None:
    parser = _add_action(actions, "show", "show the report of a result again")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--baseline", metavar="ARM", help="compare with this arm instead")
    parser.add_argument("--direction", nargs="+", metavar="D", help="only these cases")
    parser.add_argument("--block", nargs="+", metavar="SIZE", help="only these cases")
    parser.add_argument("--count", nargs="+", metavar="N", help="only these cases")
    _add_judgement(parser)
    parser.set_defaults(run=_later("show"))


def _add_compare(actions: Any) -> None:
    parser = _add_action(actions, "compare", "compare two results, of two commits for example")
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    parser.add_argument(
        "--despite-differences", action="store_true", help="even if devices or drivers differ"
    )
    _add_judgement(parser)
    parser.set_defaults(run=_later("compare"))


def _add_plot(actions: Any) -> None:
    parser = _add_action(actions, "plot", "draw a result; needs matplotlib")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("picture", metavar="PICTURE", help="what to write, .png or .svg")
    parser.add_argument(
        "--kind",
        default="throughput",
        choices=["throughput", "ratio", "fastest"],
        help="GB/s by block size with crossover lines, or a map of size by count",
    )
    parser.add_argument("--count", metavar="N", help="throughput: for this many blocks")
    parser.add_argument("--over", default="batch", metavar="ARM", help="ratio: time of this arm")
    parser.add_argument("--under", default="loop", metavar="ARM", help="ratio: over that of this")
    parser.set_defaults(run=_later("plot"))


def _later(verb: str) -> Callable[[argparse.Namespace], int]:
    """Return a verb that is imported when it is called."""

    def run(parsed: argparse.Namespace) -> int:
        from numba_swap.tools.bench.ab import verbs

        status: int = getattr(verbs, verb)(parsed)
        return status

    return run
