"""What the headers of a file say against loading it, looked at in this process."""

import os
import random
import stat
import struct

import pytest

from numba_swap.driver.search.elf import find_flaw

HEADER, SEGMENT = struct.Struct("<4sBBBBQHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")


def library(kind=3, built_for=62, bits=2, order=1, size=SEGMENT.size, segments=((1, 0, 64),)):
    """The headers of a shared library whose segments (kind, offset, length) follow the header."""
    table = b"".join(
        SEGMENT.pack(kind, 0, offset, 0, 0, length, 0, 0).ljust(size, b"\0")
        for kind, offset, length in segments
    )
    gap = b"\xff" * 40  # the table is where the header says, not right behind it
    start = HEADER.size + len(gap)
    fields = (kind, built_for, 1, 0, start, 0, 0, HEADER.size, size, len(segments), 0, 0, 0)
    return HEADER.pack(b"\x7fELF", bits, order, 1, 0, 0, *fields) + gap + table


def flaw_of(path, content, machine="x86_64"):
    path.write_bytes(content)
    flaw = find_flaw(str(path), machine)
    return flaw and (flaw.words, flaw.fatal)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "libcuda.so.1"


def test_a_sound_library_has_no_flaw(path):
    whole = library(segments=[(1, 0, 100), (6, 1 << 40, 1 << 40), (1, 100, 84)])
    assert flaw_of(path, whole) is None
    assert flaw_of(path, library(size=SEGMENT.size + 8, segments=[(1, 0, 9), (1, 9, 9)])) is None
    assert flaw_of(path, library(segments=[])) is None


@pytest.mark.parametrize(
    ("number", "name"),
    [(3, "x86"), (21, "ppc64le"), (40, "arm"), (62, "x86_64"), (183, "aarch64")],
)
def test_machines(path, number, name):
    assert flaw_of(path, library(built_for=number), name) is None
    other = "aarch64" if name == "x86_64" else "x86_64"
    words = f"is built for {name}, this Python runs on {other}"
    assert flaw_of(path, library(built_for=number), other) == (words, False)


def test_the_machine_is_this_one_unless_it_is_said(path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    path.write_bytes(library())
    assert "this Python runs on aarch64" in find_flaw(str(path)).words


@pytest.mark.parametrize(
    ("content", "words", "fatal"),
    [
        (b"", "is not a shared library (it is empty)", True),
        (b"GROUP(libc)", "is not a shared library (it begins with b'GROUP(li')", True),
        (library()[:40], "is truncated: not even its header is complete", True),
        (library(bits=1), "is a 32-bit library, this Python is 64-bit", False),
        (library(order=2), "is built for big-endian processors", True),
        (library(kind=2), "is an ELF file but not a shared library", True),
        (library()[:-1], "is truncated: its table of segments is incomplete", True),
        (library(size=SEGMENT.size - 1, segments=[]), "is truncated: its table of segm", True),
        (library(segments=[(1, 0, 9), (1, 100, 117)]), "is truncated: 216 bytes of at least", True),
    ],
)
def test_flaws_of_contents(path, content, words, fatal):
    found = flaw_of(path, content)
    assert found is not None
    assert found[0].startswith(words)
    assert found[1] == fatal


def test_a_truncated_library_would_kill_the_process(path):
    path.write_bytes(library(segments=[(1, 0, 10), (1, 1000, 24), (1, 0, 10)]))
    flaw = find_flaw(str(path), "x86_64")
    assert flaw.words == f"is truncated: {path.stat().st_size} bytes of at least 1024"
    assert flaw.fatal
    assert flaw.deadly


def linked(*segments):
    """The headers of a shared library whose segments are (kind, offset, address, length)."""
    table = b"".join(
        SEGMENT.pack(kind, 0, offset, address, 0, length, length, 0)
        for kind, offset, address, length in segments
    )
    fields = (3, 62, 1, 0, HEADER.size, 0, 0, HEADER.size, SEGMENT.size, len(segments), 0, 0, 0)
    return HEADER.pack(b"\x7fELF", 2, 1, 1, 0, 0, *fields) + table


CONTRADICTION = ("is damaged: its segments contradict each other", True)


@pytest.mark.parametrize(
    ("offset", "address", "length", "flaw"),
    [
        (100, 4096 + 100, 20, None),
        (80, 4096 + 80, 40, None),  # all that is loaded there
        (100, 8192 + 100, 20, CONTRADICTION),  # it is loaded elsewhere
        (100, 2**64 - 8, 20, CONTRADICTION),
        (100, 4096 + 100, 21, CONTRADICTION),  # not all of it is loaded
        (79, 4096 + 79, 20, CONTRADICTION),
        (2**63, 4096 + 100, 20, CONTRADICTION),
        (100, 4096 + 100, 2**64 - 100, CONTRADICTION),
    ],
)
def test_the_loaders_table_must_be_where_the_headers_say(path, offset, address, length, flaw):
    """The loader looks for it there without any doubt, and dies."""
    loaded = [(1, 0, 0, 40), (1, 80, 4096 + 80, 40)]
    assert flaw_of(path, linked(*loaded, (2, offset, address, length))) == flaw
    if flaw is not None:
        assert find_flaw(str(path), "x86_64").deadly


@pytest.mark.parametrize("offset", [185, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_table_beyond_the_end_of_the_file(path, offset):
    damaged = library()[:32] + struct.pack("<Q", offset) + library()[40:]
    assert flaw_of(path, damaged) == (
        "is truncated: its table of segments is incomplete",
        True,
    )


def test_a_table_of_gigabytes_is_not_read(path):
    """65535 entries of 65535 bytes, in a file of no such length."""
    damaged = library()[:54] + struct.pack("<HH", 0xFFFF, 0xFFFF) + library()[58:]
    assert flaw_of(path, damaged)[0] == "is truncated: its table of segments is incomplete"


def test_headers_of_any_damage_give_a_flaw_or_none(path):
    rng = random.Random(20261122)
    whole = linked((1, 0, 0, 232), (2, 64, 64, 56), (6, 64, 64, 168))
    found = set()
    for _ in range(500):
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(0, max(len(damaged), 8), 8)
            word = rng.choice([0, 1, 2**63 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)])
            damaged[at : at + rng.choice([1, 2, 4, 8])] = struct.pack("<Q", word)
        found.add(flaw_of(path, bytes(damaged)))
    assert len(found) > 10


def test_flaws_of_files(tmp_path, path):
    assert find_flaw(str(path)) == ("does not exist", False, False)
    path.symlink_to(tmp_path / "nothing")
    assert find_flaw(str(path)) == ("is a link to nothing", False, False)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # not waited for
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert find_flaw(str(pipe)) == ("is no file", True, False)
    assert find_flaw(str(tmp_path)) == ("cannot be read (Is a directory)", True, False)


def test_a_file_that_may_not_be_read(path, monkeypatch):
    """Root may read everything, so this is said by the system call itself."""
    path.write_bytes(library())

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr("os.open", refuse)
    assert find_flaw(str(path)) == ("cannot be read (no permission)", False, False)
