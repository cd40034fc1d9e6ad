# ruff: noqa: S603 -- it runs Python and gcc without a shell
"""What the notebooks need beside numba_swap: child processes, a C compiler, headers, tables.

The museum is a set of real NVIDIA driver libraries; ``scripts/fetch_drivers`` brings them.
"""

from __future__ import annotations

import ctypes
import html
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import textwrap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Where a result comes from. Every table and picture says one of these.
REAL = "Asked of real driver libraries, no GPU."
MEASURED = "Measured on a GPU: H200, driver 580.159.04."
REAL_AND_MEASURED = (
    "Drivers 470 to 555: asked of the real libraries, no GPU. "
    "Driver 580: measured on a GPU (H200, driver 580.159.04)."
)
SIMULATED = "Simulated driver, no GPU."
HEADERS = "Read from NVIDIA's own headers."

_ROOT = Path(__file__).resolve().parents[1]
_fetch = runpy.run_path(str(_ROOT / "scripts" / "fetch_drivers"))
_CACHE: Path = _fetch["cache_folder"]()

#: Release branches of the real drivers, oldest first.
RELEASES: list[str] = sorted(_fetch["DRIVERS"])
#: What driver 580 answered on the H200, question by question.
FACTS_580: dict[str, Any] = json.loads((_ROOT / "tests" / "museum" / "facts.json").read_text())[
    "drivers"
]["580"]
#: Name of a function to the version that brought the revision which driver 580 gave at 13000.
REVISIONS_580: dict[str, int] = json.loads(
    Path(__file__).with_name("_revisions_580.json").read_text()
)["at 13000"]


# -- the museum ---------------------------------------------------------------------------------


def folder(release: str) -> Path:
    """Folder that holds a museum driver's ``libcuda.so.1``."""
    path = _CACHE / release
    if not (path / "libcuda.so.1").is_file():
        raise FileNotFoundError(f"driver {release} is not there: run scripts/fetch_drivers")
    return path


def full_release(release: str) -> str:
    """Return the full release number of a museum driver, 550.163.01 for 550."""
    info = json.loads((folder(release) / "INFO.json").read_text())
    return str(info["library"].removeprefix("libcuda.so."))


def in_child(function: Callable[..., Any], *arguments: Any, beside: str | None = None) -> Any:
    """Call a function in a new Python process and return what it returns.

    Parameters
    ----------
    function : callable
        It must import all it uses, and return what JSON can hold.
    *arguments
        What to call it with; also what JSON can hold.
    beside : str, optional
        A museum driver: the process finds its ``libcuda.so.1`` before any other.
    """
    source = textwrap.dedent(inspect.getsource(function))
    call = f"import json, sys\nprint(json.dumps({function.__name__}(*json.loads(sys.argv[1]))))"
    settings = ("NUMBA_SWAP_MODE", "NUMBA_SWAP_DRIVER_VERSION")
    environment = {key: value for key, value in os.environ.items() if key not in settings}
    if beside is not None:
        environment["LD_LIBRARY_PATH"] = str(folder(beside))
    result = subprocess.run(
        [sys.executable, "-c", f"{source}\n{call}", json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"the child ended with status {result.returncode}: {last[0]}")
    return json.loads(result.stdout.splitlines()[-1])


def look_up(driver: Any, name: str, requested: int) -> int:
    """Ask a driver for a function by its newest ``cuGetProcAddress``; return the address, or 0.

    Parameters
    ----------
    driver : ctypes.CDLL, or an object with the same functions
        Real or simulated, loaded in this process.
    name, requested : str, int
        The function, and the requested version.
    """
    pointer, status = ctypes.c_void_p(), ctypes.c_int()
    arguments = [name.encode(), ctypes.byref(pointer), requested, ctypes.c_uint64(0)]
    if hasattr(driver, "cuGetProcAddress_v2"):
        code = driver.cuGetProcAddress_v2(*arguments, ctypes.byref(status))
    else:
        code = driver.cuGetProcAddress(*arguments)
    return 0 if code or status.value else pointer.value or 0


def symbol_of(driver: Any, name: str, address: int | None) -> str | None:
    """Name inside a driver library of a function that was looked up by `name`.

    Parameters
    ----------
    driver : ctypes.CDLL, or an object with the same functions
        Real or simulated, loaded in this process.
    name, address
        What was asked for, and the address given.
    """
    for symbol in (name, *(f"{name}_v{revision}" for revision in (2, 3, 4))):
        function = getattr(driver, symbol, None)
        if function is not None and ctypes.cast(function, ctypes.c_void_p).value == address:
            return symbol
    return None


def functions_of(gpu: Any) -> Any:
    """Return the C functions of a simulated driver, as `ctypes.CDLL` has those of a real one."""
    return types.SimpleNamespace(**gpu.library.exports)


Revision = tuple[int, int]  # its place among the name's revisions, and its number of parameters


def compare_requests(
    constants: dict[str, int],
) -> tuple[list[str], list[list[Revision | None]], list[list[Revision | None]]]:
    """Ask every driver for functions in two ways.

    Parameters
    ----------
    constants : dict
        Name of a function to the constant version that it is asked at.

    Returns
    -------
    drivers : list of str
        The museum's, and 580.
    at_own_version, at_constant : list of list
        For each driver, for each function: the revision given; None for nothing.
    """
    known = {name: revisions()[name] for name in constants}
    versions = {name: sorted(known[name]) for name in constants}
    answers = [in_child(_revisions_given, versions, constants, beside=r) for r in RELEASES]
    # Driver 580 has all of the constants' revisions (measured).
    answers.append([[REVISIONS_580[name] for name in constants], list(constants.values())])

    def places(row: list[int | None]) -> list[Revision | None]:
        return [
            None if given is None else (versions[name].index(given), len(known[name][given]))
            for name, given in zip(constants, row, strict=True)
        ]

    at_own, at_constant = ([places(row) for row in rows] for rows in zip(*answers, strict=True))
    return [*RELEASES, "580"], at_own, at_constant


def _revisions_given(versions, constants):
    """In a child: the version that brought the revision given, for each name, in two ways."""
    import ctypes

    from _museum import look_up

    driver, own_version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(own_version))

    def given(name, requested):
        address = look_up(driver, name, requested)
        if not address:
            return None
        return next(v for v in versions[name] if look_up(driver, name, v) == address)

    at_own = [given(name, own_version.value) for name in constants]
    return at_own, [given(name, version) for name, version in constants.items()]


def call_by_slots(requested, passed):
    """In a child: call a simulated driver's batch copy with any arguments, and see what arrives.

    Parameters
    ----------
    requested : int
        The version at which the function is asked for; the driver is a simulated 13.0.
    passed : list of str
        What to put into each slot: names of parameters, or "left over".

    Returns
    -------
    dict
        ``arrived``, what the function was called with, by those names; and ``outcome``.
    """
    import ctypes

    import numpy as np
    from _museum import functions_of, look_up

    import numba_swap as ns

    def number(argument):
        pointer = not isinstance(argument, int)
        return ctypes.cast(argument, ctypes.c_void_p).value if pointer else argument

    with ns.simulate(driver_version=(13, 0)) as gpu:
        driver, context = functions_of(gpu), ctypes.c_void_p()
        driver.cuInit(0)
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        driver.cuCtxSetCurrent(context)
        host, device = gpu.pinned_array(128, np.uint8), gpu.device_array(128, np.uint8)
        start, to = host.ctypes.data, device.__cuda_array_interface__["data"][0]
        # Two copies of 64 bytes; but the second has size 0, so the failing index is 1.
        lists = np.array([[to, to + 64], [start, start + 64], [64, 0]], np.uint64)
        things = {
            # CUmemcpyAttributes: CU_MEMCPY_SRC_ACCESS_ORDER_STREAM, no hints, no flags.
            "attrs": (ctypes.c_int * 6)(1),
            "attrIdxs": ctypes.c_size_t(0),
            "failIdx": ctypes.c_size_t(-1),
            "hStream": ctypes.c_uint64(0x5EC2E7),  # stands for the driver's data of a stream
        }
        values = {name: ctypes.addressof(thing) for name, thing in things.items()}
        values |= {name: lists[i].ctypes.data for i, name in enumerate(("dsts", "srcs", "sizes"))}
        values |= {"count": 2, "numAttrs": 1, "left over": gpu.stream().handle}
        name, arrived = "cuMemcpyBatchAsync", []
        gpu.library.faults.watch(name, lambda *arguments: arrived.extend(map(number, arguments)))
        address = look_up(driver, name, requested)
        # All integers and pointers take one slot of 64 bits, so all can be passed as such.
        function = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_uint64 for _ in passed))(address)
        code = function(*(values[name] for name in passed))
        error = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(error))
        outcome = {"return code": f"{code}, {error.value.decode()}"}
        outcome["data of the stream"] = f"{0x5EC2E7:#x}, then {things['hStream'].value:#x}"
        names = {value: name for name, value in values.items()}
        return {"arrived": [names[value] for value in arrived], "outcome": outcome}


# -- headers and the C compiler -----------------------------------------------------------------


def headers(series: str) -> Path:
    """Folder of NVIDIA's ``cuda.h`` of a series, "12.9" or "13"."""
    found = _fetch["find_headers"](_CACHE, series)
    if found is None:
        raise FileNotFoundError(f"no CUDA {series} headers: run scripts/fetch_drivers --headers")
    return Path(found)


def header_version(series: str) -> int:
    """``CUDA_VERSION``, as the header of a series defines it."""
    text = (headers(series) / "cuda.h").read_text(errors="replace")
    return int(re.findall(r"#define\s+CUDA_VERSION\s+(\d+)", text)[0])


def revisions(series: str = "13") -> dict[str, dict[int, list[str]]]:
    """Every function's revisions: name, version that brought it, names of its parameters."""
    text = (headers(series) / "cudaTypedefs.h").read_text(errors="replace")
    typedef = re.compile(r"typedef CUresult \(CUDAAPI \*PFN_(\w+?)_v(\d+)\)\(([^)]*)\);")
    found: dict[str, dict[int, list[str]]] = {}
    for name, version, parameters in typedef.findall(text):
        names = [re.findall(r"\w+", parameter)[-1] for parameter in parameters.split(",")]
        found.setdefault(name, {})[int(version)] = [] if names == ["void"] else names
    return found


class Compiled:
    """What gcc made of a C source: a library, or an error.

    Parameters
    ----------
    library, message
        The attributes.
    series : str
        Whose headers were used, "12.9" or "13".

    Attributes
    ----------
    library : str or None
        Path of the shared library; None if gcc refused.
    message : str
        What gcc said, without paths.
    """

    def __init__(self, library: Path | None, message: str, series: str) -> None:
        self.library = None if library is None else str(library)
        self.message = message
        self._series = series

    def __repr__(self) -> str:
        said = [
            textwrap.fill(line, 98, subsequent_indent="    ") for line in self.message.splitlines()
        ]
        verdict = "It does not compile." if self.library is None else "It compiles."
        source = f"(Compiled by gcc against the header of CUDA {self._series}.)"
        return "\n".join([*said, verdict, source])


def compile_c(source: str, series: str) -> Compiled:
    """Compile C text to a shared library against the headers of a series."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise FileNotFoundError("no gcc on this machine: install it")
    include = headers(series)
    _temporary_folders.append(place := tempfile.TemporaryDirectory(prefix="notebook-"))
    c_file, library = Path(place.name) / "program.c", Path(place.name) / "program.so"
    c_file.write_text(source)
    # One line for each remark, and none about macros on the way.
    brief = ["-fno-diagnostics-show-caret", "-ftrack-macro-expansion=0"]
    result = subprocess.run(
        [gcc, "-shared", "-fPIC", *brief, f"-isystem{include}", str(c_file), "-o", str(library)],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    message = result.stderr.replace(f"{include}/", "").replace(f"{place.name}/", "").strip()
    return Compiled(None if result.returncode else library, message, series)


_temporary_folders: list[tempfile.TemporaryDirectory[str]] = []  # until the kernel ends


# -- tables -------------------------------------------------------------------------------------


class Table:
    """Rows with the same keys, shown as a table with a line that says where they come from.

    Parameters
    ----------
    rows : sequence of dict
        Column name to value; text between backquotes is shown as code.
    source : str
        Where the rows come from.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], source: str) -> None:
        self.columns = list(rows[0])
        self.cells = [[self._text(row[column]) for column in self.columns] for row in rows]
        self.source = source

    @staticmethod
    def _text(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "-" if value is None else str(value)

    def __repr__(self) -> str:
        lines = [[cell.replace("`", "") for cell in line] for line in (self.columns, *self.cells)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * width for width in widths]
        padded = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (lines[0], rule, *lines[1:])
        ]
        return "\n".join([*padded, f"({self.source})"])

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            shown = (re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(cell)) for cell in cells)
            opening = f'<{tag} align="left" style="text-align: left">'
            return f"<tr>{''.join(f'{opening}{cell}</{tag}>' for cell in shown)}</tr>"

        body = "\n".join(line(cells, "td") for cells in self.cells)
        return (
            f"<table>\n<thead>{line(self.columns, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n"
            f"</table>\n<p><em>{html.escape(self.source)}</em></p>"
        )
