"""Which CUDA driver libraries lie where the dynamic loader looks, and which one it takes.

Nothing is loaded here: files are looked at and their paths are judged. The rules are those of
glibc's loader: ``LD_LIBRARY_PATH``, then the cache that ``ldconfig`` writes, then the system's
folders; a library of another architecture is passed over, a damaged one ends the search. (A run
path built into Python, as conda's has one, is not followed.) For Windows they are those of
``LoadLibrary`` for ``nvcuda.dll``.
"""

from __future__ import annotations

import enum
import glob
import itertools
import mmap
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from numba_swap.driver.search.elf import Flaw, find_flaw

_RELEASE_IN_NAME = re.compile(r"libcuda\.so\.(\d{3}(?:\.\d+)+)")
# Each of the drivers from 470 to 555 names its application profiles, with its release, once.
_RELEASE_INSIDE = re.compile(rb"nvidia-application-profiles-(\d{3}(?:\.\d+)+)-rc")
_CACHE_LINE = re.compile(r"\s*(libcuda\.so(?:\.1)?) \([^)]*\) => (\S.*)")

_SYSTEM_FOLDERS = (
    "/lib/{machine}-linux-gnu",
    "/usr/lib/{machine}-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
# Where drivers and what is taken for them are found, whether the loader looks there or not.
_KNOWN_FOLDERS = (
    "/usr/lib/wsl/lib",
    "/usr/lib/{machine}-linux-gnu/nvidia/current",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
    "/usr/local/cuda*/compat",
    "/usr/local/cuda*/lib64/stubs",
    "/usr/lib/{machine}-linux-gnu/stubs",
)


class Kind(enum.StrEnum):
    """What a driver library is, judged by the folder that it really lies in."""

    ORDINARY = "ordinary"
    STUB = "toolkit stub"
    COMPAT = "forward-compatibility package"
    WSL = "WSL driver"


@dataclass(frozen=True)
class Candidate:
    """One driver library on this machine.

    Attributes
    ----------
    path : str
        Where it was found.
    origin : str
        Whose folder that is: ``LD_LIBRARY_PATH``, the loader's cache, ...
    searched : bool
        Whether the loader looks there for a file of that name.
    flaw : Flaw or None
        Why it cannot be loaded, as far as the file tells.
    """

    path: str
    origin: str
    searched: bool
    flaw: Flaw | None

    @property
    def kind(self) -> Kind:
        """What it is, judged by its folder."""
        return classify(self.path)

    @property
    def why_not(self) -> str | None:
        """Why it is not what is wanted; None if nothing is known against it."""
        if self.flaw is not None:
            return f"it {self.flaw.words}"
        if self.kind is Kind.STUB:
            return "it is the toolkit's stub, which is for linking only"
        if not self.searched:
            return "the loader does not look there for it"
        return None


def classify(path: str) -> Kind:
    """Judge a driver library by the folder that it really lies in, links followed."""
    parts = PurePath(os.path.realpath(path)).parts[:-1]
    if "stubs" in parts:
        return Kind.STUB
    if any(part == "compat" or part.startswith("cuda-compat") for part in parts):
        return Kind.COMPAT
    if ("lib", "wsl") in itertools.pairwise(parts):
        return Kind.WSL
    return Kind.ORDINARY


def find_release(path: str) -> tuple[str, str] | None:
    """Find the release of a driver library, 580.159.04 for example; None if it does not tell.

    Returns
    -------
    release : str
        The release.
    source : str
        Where that was read: the name of the file behind the links, or the text inside it.
    """
    name = os.path.basename(os.path.realpath(path))
    match = _RELEASE_IN_NAME.fullmatch(name)
    if match:
        return match.group(1), f"file name {name}"
    if not os.path.isfile(path):  # a pipe would block
        return None
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            inside = _RELEASE_INSIDE.search(text)
            return (inside.group(1).decode(), "text inside the library") if inside else None
    except (OSError, ValueError):  # no permission; an empty file
        return None


def find_candidates(
    environment: Mapping[str, str] | None = None,
    *,
    root: str = "/",
    cache: str | None = None,
    machine: str | None = None,
    system: str = sys.platform,
) -> list[Candidate]:
    """List the driver libraries on the loader's path and in well-known folders, in its order.

    Parameters
    ----------
    environment : mapping of str to str, optional
        Instead of that of the process.
    root : str
        Folder to take for the root of the file system, for tests.
    cache : str, optional
        Instead of what ``ldconfig -p`` prints.
    machine : str, optional
        Architecture of the process, as `platform.machine` names it.
    system : str
        As `sys.platform`.

    Returns
    -------
    list of Candidate
        Each file once, by the first path that leads to it.
    """
    environment = os.environ if environment is None else environment
    machine = machine or platform.machine()
    if system == "win32":
        found: Iterable[tuple[str, str, bool]] = _windows(environment)
    else:
        cache = read_loader_cache() if cache is None else cache
        found = _linux(environment, root, cache, machine)
    candidates: dict[str, Candidate] = {}
    for path, origin, searched in found:
        if os.path.lexists(path):
            flaw = None if system == "win32" else find_flaw(path, machine)
            file = os.path.realpath(path)
            if searched and file in candidates and not candidates[file].searched:
                del candidates[file]  # its turn comes here
            candidates.setdefault(file, Candidate(path, origin, searched, flaw))
    return list(candidates.values())


def predict(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate that the loader takes, or stops at; None if it finds none.

    The loader stops at one with a fatal flaw.
    """
    for candidate in candidates:
        if candidate.searched and (candidate.flaw is None or candidate.flaw.fatal):
            return candidate
    return None


def read_loader_cache() -> str:
    """Return what ``ldconfig -p`` prints, or an empty string where there is no such thing."""
    for command in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"):
        try:
            result = subprocess.run(  # noqa: S603 -- a constant
                [command, "-p"], capture_output=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        return os.fsdecode(result.stdout)  # of paths, which may be in any encoding
    return ""


def _linux(
    environment: Mapping[str, str], root: str, cache: str, machine: str
) -> Iterator[tuple[str, str, bool]]:
    """Yield path, origin, and whether the loader looks there, in the loader's order."""

    def files_in(
        folders: Iterable[str], origin: str, searched: bool
    ) -> Iterator[tuple[str, str, bool]]:
        for folder in folders:
            # The loader asks for libcuda.so.1. The other name is the linker's.
            yield os.path.join(folder, "libcuda.so.1"), origin, searched
            yield os.path.join(folder, "libcuda.so"), origin, False

    def under_root(patterns: Iterable[str]) -> Iterator[str]:
        for pattern in patterns:
            rooted = os.path.join(root, pattern.format(machine=machine).lstrip("/"))
            yield from sorted(glob.glob(rooted))

    variable = environment.get("LD_LIBRARY_PATH", "")
    # Both separators count, and an empty entry is the working folder.
    folders = re.split("[:;]", variable) if variable else []
    yield from files_in(
        [folder or _working_folder() for folder in folders], "LD_LIBRARY_PATH", True
    )
    for line in cache.split("\n"):  # a path may hold what else ends a line
        match = _CACHE_LINE.fullmatch(line)
        if match:
            yield match.group(2), "loader's cache (ldconfig)", match.group(1) == "libcuda.so.1"
    yield from files_in(under_root(_SYSTEM_FOLDERS), "system folder", True)
    yield from files_in(under_root(_KNOWN_FOLDERS), "well-known folder", False)


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody has removed it
        return os.curdir


def _windows(environment: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    windows = environment.get("SystemRoot", r"C:\Windows")
    folders = [
        (os.path.dirname(sys.executable), "Python's folder"),
        (os.path.join(windows, "System32"), "System32"),
        (os.path.join(windows, "System"), "System"),
        (windows, "Windows"),
        (_working_folder(), "working folder"),
        *((folder, "PATH") for folder in environment.get("PATH", "").split(";") if folder),
    ]
    for folder, origin in folders:
        yield os.path.join(folder, "nvcuda.dll"), origin, True
