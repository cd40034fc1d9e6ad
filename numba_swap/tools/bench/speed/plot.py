"""The picture of a speed suite's result: throughput against block size, every mode.

``python -m numba_swap.tools.bench.speed.plot RESULT.json PICTURE.png``; needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numba_swap.dispatch.schema import name_of, one_line, read_json
from numba_swap.dispatch.settings import DIRECT_MODES
from numba_swap.errors import BadArgumentError
from numba_swap.tools.checks import check_writable
from numba_swap.tools.streams import run_command

_MOST_BYTES = 64 << 20
_STYLES: dict[str, dict[str, Any]] = {
    "auto": {"color": "black", "linewidth": 3.5, "alpha": 0.25},
    "kernel": {"color": "#1b6ca8", "marker": "o"},
    "batch": {"color": "#c8553d", "marker": "s"},
    "loop": {"color": "#6a994e", "marker": "^"},
}


def draw_speed(result: dict[str, Any]) -> Any:
    """Draw both directions of a host link, one panel each.

    Parameters
    ----------
    result : dict
        As ``scripts/speed_targets --json`` writes it, with the section ``modes``.

    Returns
    -------
    matplotlib figure
        Gigabytes a second against block size, with the contiguous copy as ceiling.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, direction in zip(panels, ("host to device", "device to host"), strict=True):
        rows = [row for row in result["rows"] if row["details"].get("direction") == direction]
        plotted = [
            row["details"] | {"value": row["value"]} for row in rows if "plot" in row["details"]
        ]
        for mode in dict.fromkeys((*_STYLES, *DIRECT_MODES)):
            style = _STYLES.get(mode, {})
            points = sorted((row["block"], row["value"]) for row in plotted if row["mode"] == mode)
            panel.plot(
                [block for block, _ in points],
                [value / 1e9 for _, value in points],
                label=mode,
                markersize=4,
                **style,
            )
        ceilings = [row["value"] for row in rows if row["name"].startswith("contiguous")]
        panel.axhline(
            max(ceilings) / 1e9, color="grey", linestyle="--", label="one contiguous copy"
        )
        panel.set_xscale("log", base=2)
        ticks = [1024 << i for i in range(0, 11, 2)]
        names = [f"{tick >> 10} KiB" for tick in ticks[:-1]] + ["1 MiB"]
        panel.set_xticks(ticks, names)
        panel.set_title(direction.capitalize())
        panel.set_xlabel("block size (8192 blocks, or 256 MiB in all if that is less)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GB/s, call to completion")
    panels[0].legend(loc="center left")
    machine = result["machine"]
    figure.suptitle(
        f"Random blocks on {machine['devices'][0]['name']}, driver {machine['driver_release']}, "
        "pinned memory"
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one result into one picture."""
    parser = argparse.ArgumentParser(prog="plot", description=__doc__)
    parser.add_argument("source", type=Path, metavar="RESULT")
    parser.add_argument("target", type=Path, metavar="PICTURE")

    def draw() -> int:
        parsed = parser.parse_args(arguments)
        check_writable(parsed.target)
        try:
            result = read_json(parsed.source, _MOST_BYTES)
        except ValueError as error:
            raise BadArgumentError(f"{name_of(parsed.source)}: {one_line(error)}") from None
        try:
            figure = draw_speed(result)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise BadArgumentError(
                f"{name_of(parsed.source)} is no result of a speed suite: {one_line(repr(error))}"
            ) from None
        figure.savefig(parsed.target, dpi=110)
        return 0

    return run_command("plot", draw)


if __name__ == "__main__":
    sys.exit(main())
