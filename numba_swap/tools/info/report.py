"""The report of ``numba-swap info`` for people, in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Wide enough that nothing is folded in a file or a pipe.
_WIDTH_ELSEWHERE = 500


def print_report(info: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the report.

    Parameters
    ----------
    info : mapping
        As `numba_swap.driver_info` returns it.
    console : Console, optional
        Where to; by default the standard output. Where that is no terminal, lines are not folded.
    """
    if console is not None:
        _print(info, console)
    elif sys.stdout.isatty():
        _print(info, Console(highlight=False))
    else:
        console = Console(width=_WIDTH_ELSEWHERE, highlight=False)
        with console.capture() as capture:
            _print(info, console)
        # The tables fill their lines with blanks.
        sys.stdout.write("\n".join(line.rstrip() for line in capture.get().split("\n")))


def _print(info: Mapping[str, Any], console: Console) -> None:
    console.print(_verdict(info))
    for heading, body in (
        ("Driver", _facts(_driver_facts(info))),
        ("Mode", _facts(_mode_facts(info))),
        ("Installed beside the driver", _facts(_installed_facts(info))),
        ("Driver libraries on this machine", _entries(_libraries(info))),
        ("What failed", _entries(_failures(info))),
        ("Notes", _facts(("-", note, "") for note in info["notes"])),
    ):
        if body is not None:
            console.print()
            console.print(Text(heading, style="bold"))
            console.print(Padding(body, (0, 0, 0, 2), expand=False))


def _verdict(info: Mapping[str, Any]) -> Text:
    simulated = "simulated " if info["simulated"] else ""
    if info["available"]:
        mode = (
            f"many long ones in mode {info['mode']}"
            if info["mode"]
            else "but not in the mode forced"
        )
        words = f"A {simulated}driver with a device: copies can run, {mode}."
        return Text(words, style="bold green" if info["mode"] else "bold red")
    if info["driver_version"]:
        return Text("A driver, but no device that it can use: copies cannot run.", "bold yellow")
    return Text("No usable NVIDIA driver: copies cannot run.", style="bold red")


def _driver_facts(info: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Yield label, value and explanation; those without a value are not shown."""
    origin = f"{info['library_kind']}, {info['found_via']}" if info["found_via"] else ""
    yield "library", info["library"], origin if not info["simulated"] else "no GPU is used"
    source = info["driver_release_source"]
    yield (
        "release",
        info["driver_release"],
        f"nvidia-smi's Driver Version; from the {source}",
    )
    yield (
        "supports CUDA up to",
        info["driver_version"],
        "nvidia-smi's CUDA Version: decides which functions there are",
    )
    yield "treated as", info["pretended_version"], "pretended, by override or the environment"
    if not info["simulated"]:
        yield "kernel module", info["machine"]["module_release"], "/proc/driver/nvidia/version"
    batch = info["batch_copy"]
    if info["driver_version"]:
        yield "batch copy", "yes" if batch["usable"] else "no", batch["reason"] or ""
        kernel = info["kernel"]
        usable = {True: "yes", False: "no", None: "not known"}[kernel["usable"]]
        yield "kernel", usable, kernel["reason"] or ""
    missing = [
        f"{entry['name']} ({entry['explanation']})"
        for entry in info["entry_points"]
        if not entry["found"]
    ]
    if info["entry_points"]:
        found = f"{len(info['entry_points']) - len(missing)} of {len(info['entry_points'])}"
        yield "entry points", found, f"by {info['proc_address']}"
    for name in missing:
        yield "missing", name, ""
    for device in info["devices"]:
        yield (
            f"device {device['ordinal']}",
            device["name"],
            f"compute capability {device['compute_capability']}, "
            f"{device['multiprocessors']} multiprocessors"
            + (", reaches pageable memory in place" if device["pageable_access"] else ""),
        )
    for pair in info["peers"]:
        reach = "its kernels reach that memory" if pair["access"] else "the driver copies"
        yield f"device {pair['device']} to {pair['peer']}", pair["link"], reach


def _mode_facts(info: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    words = "for many long blocks; others stand below" if info["typical"] else ""
    yield "mode", info["mode"] or "none", words
    yield "because", info["reason"], ""
    yield "newer driver", info["newer_driver"], ""
    for row in info["typical"]:
        yield row["swap"], row["mode"] or "none", ""


def _installed_facts(info: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    toolkit = info["toolkit"]
    yield (
        "CUDA toolkit",
        toolkit["version"] if toolkit else "none",
        toolkit["nvcc"] if toolkit else "no nvcc found; numba_swap needs none",
    )
    for package, version in info["versions"].items():
        yield package, version or "not installed", ""


def _facts(facts: Iterable[tuple[str, str | None, str]]) -> RenderableType | None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", justify="right", overflow="fold")
    table.add_column(overflow="fold")
    for label, value, explanation in facts:
        if value is not None:
            cell = Text(value)
            if explanation:
                cell.append(f"  ({explanation})", style="dim")
            table.add_row(Text(label), cell)
    return table if table.row_count else None


def _libraries(info: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for library in info["libraries"]:
        remarks = [library["kind"]]
        if library["release"]:
            remarks.append(f"release {library['release']}")
        remarks.append(f"found in: {library['origin']}")
        if library["file"] != library["path"]:
            remarks.append(f"links to {library['file']}")
        if library["by_default"] and not library["used"]:
            remarks.append("the loader takes this one by itself")
        if library["problem"]:
            remarks.append(library["problem"])
        yield "used" if library["used"] else "-", library["path"], "; ".join(remarks)


def _failures(info: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for candidate in info["candidates"]:
        yield "-", str(candidate["candidate"]), candidate["error"]


def _entries(entries: Iterable[tuple[str, str, str]]) -> RenderableType | None:
    """Lay out marks, and beside each a line with what it marks and a line that explains it."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold green", justify="right")
    table.add_column(overflow="fold")
    for mark, title, explanation in entries:
        table.add_row(Text(mark), Text(title).append(f"\n{explanation}", style="dim"))
    return table if table.row_count else None
