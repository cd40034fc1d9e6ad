"""Whether a file is a shared library that this process could load, told without loading it.

The dynamic loader's own words are of little help ("No such file or directory" for a library of
another architecture), and a truncated library kills the process that loads it (SIGBUS).
"""

from __future__ import annotations

import os
import platform
import stat
import struct
from typing import BinaryIO, NamedTuple

# e_machine of the architectures that NVIDIA has drivers for.
_MACHINES = {3: "x86", 21: "ppc64le", 40: "arm", 62: "x86_64", 183: "aarch64"}
_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_CLASS_64, _LITTLE_ENDIAN, _SHARED_OBJECT = 2, 1, 3
_LOADED_SEGMENT, _DYNAMIC_SEGMENT = 1, 2


class Flaw(NamedTuple):
    """Why a file cannot be loaded.

    Attributes
    ----------
    words : str
        The reason, to be read after "it ...".
    fatal : bool
        Whether the loader gives up at such a file; else it looks for another one further on.
    deadly : bool
        Whether loading it kills the process.
    """

    words: str
    fatal: bool
    deadly: bool = False


def find_flaw(path: str, machine: str | None = None) -> Flaw | None:
    """Return why a file is no library that can be loaded; None if nothing speaks against it.

    Parameters
    ----------
    path : str
        The file.
    machine : str, optional
        Architecture of the process that would load it, as `platform.machine` names it; by
        default this one's.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            return _flaw_of_contents(file, machine or platform.machine())
    except FileNotFoundError:
        words = "is a link to nothing" if os.path.islink(path) else "does not exist"
        return Flaw(words, fatal=False)
    except PermissionError:
        return Flaw("cannot be read (no permission)", fatal=False)
    except OSError as error:
        return Flaw(f"cannot be read ({error.strerror})", fatal=True)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would block


def _flaw_of_contents(file: BinaryIO, machine: str) -> Flaw | None:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return Flaw("is no file", fatal=True)
    header = file.read(_HEADER.size)
    if header[:4] != b"\x7fELF":
        words = f"it begins with {header[:8]!r}" if header else "it is empty"
        return Flaw(f"is not a shared library ({words})", fatal=True)
    if len(header) < _HEADER.size:
        return Flaw("is truncated: not even its header is complete", fatal=True)
    flaw = _flaw_of_target(header, machine)
    if flaw is not None:
        return flaw
    fields = _HEADER.unpack(header)
    offset, size, count = fields[10], fields[14], fields[15]
    if size < _SEGMENT.size or offset + size * count > status.st_size:
        return Flaw("is truncated: its table of segments is incomplete", fatal=True)
    file.seek(offset)
    return _flaw_of_segments(file.read(size * count), size, count, status.st_size)


def _flaw_of_target(header: bytes, machine: str) -> Flaw | None:
    _, bits, order, _, _, _, kind, built_for, *_ = _HEADER.unpack(header)
    if bits != _CLASS_64:
        return Flaw("is a 32-bit library, this Python is 64-bit", fatal=False)
    if order != _LITTLE_ENDIAN:
        return Flaw("is built for big-endian processors", fatal=True)
    name = _MACHINES.get(built_for, f"machine type {built_for}")
    if machine in _MACHINES.values() and name != machine:
        return Flaw(f"is built for {name}, this Python runs on {machine}", fatal=False)
    if kind != _SHARED_OBJECT:
        return Flaw("is an ELF file but not a shared library", fatal=True)
    return None


def _flaw_of_segments(table: bytes, size: int, count: int, file_size: int) -> Flaw | None:
    loaded, linking = [], []
    for index in range(count):
        kind, _, offset, address, _, length, *_ = _SEGMENT.unpack_from(table, index * size)
        if kind == _LOADED_SEGMENT:
            loaded.append((offset, address, length))
        elif kind == _DYNAMIC_SEGMENT:
            linking.append((offset, address, length))
    needed = max((offset + length for offset, _, length in loaded), default=0)
    if needed > file_size:
        return Flaw(f"is truncated: {file_size} bytes of at least {needed}", True, deadly=True)
    # The loader follows this one without looking whether it is there.
    for offset, address, length in linking:
        if not any(
            start <= offset <= offset + length <= start + room and address - offset == base - start
            for start, base, room in loaded
        ):
            return Flaw("is damaged: its segments contradict each other", True, deadly=True)
    return None
