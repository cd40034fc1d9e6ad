# ruff: noqa: T201 -- printing is what it is run for
"""Execute the notebooks from a clean kernel and write them, outputs and all.

Volatile metadata (times, versions of the kernel) is left out, and a notebook whose outputs name
this machine (its folders, its host name) is refused.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 120


def execute(path: Path) -> Any:
    """Run all cells of a notebook in its own folder; return it, cleaned."""
    import matplotlib.font_manager  # noqa: F401 -- else the kernel may report that it lists fonts
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT_S,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute()
    return clean(notebook)


def clean(notebook: Any) -> Any:
    """Take out what differs from run to run or machine to machine."""
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{number:02}"
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
    return notebook


def write(notebook: Any, path: Path) -> None:
    """Write a notebook, line by line as diffs like it."""
    import nbformat

    nbformat.write(nbformat.from_dict(notebook), path)


def text_of(output: Any) -> str:
    """All text of an output; pictures have none."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *output.get("traceback", [])]
    if "image/png" not in data:
        parts += [data[kind] for kind in data if kind.startswith("text/")]
    return "\n".join("".join(part) for part in parts)


def machine_words(notebook: Any) -> list[str]:
    """List what in the outputs names a machine: folders, addresses, its own name."""
    tops = "home|root|tmp|usr|opt|var|work|mnt|etc|Users"
    folders = re.compile(rf"/(?:{tops})/\S*|\S*site-packages\S*")
    hosts = re.compile(r"https?://\S+")
    own = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            text = text_of(output)
            words = [match for pattern in (folders, hosts, own) for match in pattern.findall(text)]
            found += [f"{cell['id']}: {word}" for word in words]
    return found


def main() -> int:
    """Execute the notebooks named, or all; return the exit status."""
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="folder to write to (default: in place)")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    options = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory(prefix="ipython-") as private:
        # The kernel is to leave nothing behind, and to read no one's settings.
        os.environ["IPYTHONDIR"] = os.environ["JUPYTER_CONFIG_DIR"] = private
        for name in ("NUMBA_SWAP_MODE", "NUMBA_SWAP_DRIVER_VERSION", "MPLBACKEND"):
            os.environ.pop(name, None)
        for path in options.notebooks:
            start = time.perf_counter()
            try:
                notebook = execute(path.resolve())
            except CellExecutionError as error:
                plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))
                print(f"{path.name}: {plain.strip()}", file=sys.stderr)
                status = 1
                continue
            words = machine_words(notebook)
            for word in words:
                print(f"{path.name}: names this machine: {word}", file=sys.stderr)
            if words:
                status = 1
                continue
            write(notebook, (options.into or path.parent) / path.name)
            print(f"{path.name}: executed in {time.perf_counter() - start:.1f} s")
    return status


def run() -> int:
    """Run the script; where nobody reads its output any more, end quietly, as by SIGPIPE."""
    try:
        try:
            return main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # Python flushes once more when it ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(run())
