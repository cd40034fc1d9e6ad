"""The command ``numba-swap``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from numba_swap._version import __version__
from numba_swap.errors import NumbaSwapError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.

    Returns
    -------
    int
        Exit status: 0 if all is well; 1 if ``info`` finds no usable driver, or ``demo`` a wrong
        byte; 2 for an error, which is printed.
    """
    parser = argparse.ArgumentParser(
        prog="numba-swap", description="Move scattered memory blocks between host and GPU."
    )
    parser.add_argument("--version", action="version", version=f"numba-swap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="the driver, its entry points, and the mode chosen")
    info.add_argument("--json", action="store_true", help="for machines")
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="swap a field's tiles out and in through every mode")
    demo.add_argument(
        "--size", type=_field_size, default=1024, help="points along an axis (default: 1024)"
    )
    demo.add_argument("--simulate", action="store_true", help="even if there is a GPU")
    demo.set_defaults(run=_demo)
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except (NumbaSwapError, ValueError) as error:
        parser.exit(2, f"numba-swap: error: {error}\n")
    return status


def _field_size(text: str) -> int:
    size = int(text)
    if size < 128 or size % 64:
        raise argparse.ArgumentTypeError(f"{size} is not a multiple of 64 from 128 up")
    return size


def _info(parsed: argparse.Namespace) -> int:
    from numba_swap.info import driver_info

    info = driver_info()
    if parsed.json:
        json.dump(info, sys.stdout, indent=2)
        print()
        return 0 if info["available"] else 1
    for key in ("library", "found_via", "driver_version", "pretended_version", "proc_address"):
        if info[key] is not None:
            print(f"{key.replace('_', ' '):>18}: {info[key]}")
    for device in info["devices"]:
        print(
            f"{'device ' + str(device['ordinal']):>18}: {device['name']}, compute capability "
            f"{device['compute_capability']}, {device['multiprocessors']} multiprocessors"
        )
    missing = [e["name"] for e in info["entry_points"] if not e["found"] or e["hidden"]]
    if info["entry_points"]:
        found = len(info["entry_points"]) - len(missing)
        print(f"{'entry points':>18}: {found} of {len(info['entry_points'])} found")
    for name in missing:
        print(f"{'missing':>18}: {name}")
    for candidate in info["candidates"]:
        print(f"{'tried':>18}: {candidate['candidate']}: {candidate['error']}")
    print(f"{'mode':>18}: {info['mode'] or 'none'}")
    print(f"{'because':>18}: {info['reason']}")
    for package, version in info["versions"].items():
        print(f"{package:>18}: {version or 'not installed'}")
    return 0 if info["available"] else 1


def _demo(parsed: argparse.Namespace) -> int:
    from numba_swap.demo import format_demo, run_demo

    rows = run_demo(parsed.size, force_simulation=parsed.simulate)
    print(format_demo(rows))
    wrong = [row for row in rows if not row.correct]
    if wrong:
        print(f"{len(wrong)} of {len(rows)} swaps came back wrong", file=sys.stderr)
        return 1
    if rows[0].decision.simulated:
        print("No GPU was used: every driver above is simulated, and its time measures nothing.")
    return 0
