"""What is checked before a command begins: memory, and files that it will write."""

import os

import pytest

import numba_swap as ns
from numba_swap.tools import checks
from numba_swap.tools.checks import check_memory, check_writable, memory_bytes

GIB = 1 << 30


def test_memory_is_that_of_the_machine_or_of_its_container(monkeypatch, tmp_path):
    assert memory_bytes() > 100 << 20
    monkeypatch.setattr(checks, "_LIMITS", [tmp_path / "max"])
    whole = memory_bytes()
    for text, expected in (("max\n", whole), (f"{whole // 2}\n", whole // 2), ("", whole)):
        (tmp_path / "max").write_text(text)
        assert memory_bytes() == expected


def test_what_needs_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(checks, "memory_bytes", lambda: 8 * GIB)
    check_memory(8 * GIB, "a field")
    words = "a field would take some 9 GiB of host memory, and there are 8 GiB"
    with pytest.raises(ns.BadArgumentError, match=words):
        check_memory(8 * GIB + 1, "a field")
    check_memory(9 * GIB, "a case", 9 * GIB)
    with pytest.raises(ns.BadArgumentError, match="10 GiB of device memory, and there are 9 GiB"):
        check_memory(10 * GIB, "a case", 9 * GIB)
    monkeypatch.setattr(checks, "memory_bytes", lambda: None)
    check_memory(1 << 80, "nobody knows")


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "new.json")
    assert os.listdir(tmp_path) == []
    (tmp_path / "old.json").write_text("old")
    check_writable(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "old"
    os.symlink("not yet", tmp_path / "link")
    check_writable(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["link", "old.json"]


def test_pipes_and_devices_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")  # does not wait for a reader
    check_writable(tmp_path.__class__(os.devnull))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "cannot be written: Is a directory"),
        ("no/such/file", "there is no such folder"),
        ("file/below", "cannot be written: Not a directory"),
        ("loop", "cannot be written: Too many levels"),
        ("x" * 300, "cannot be written: File name too long"),
        ("nul\0", "cannot be written: embedded null"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path, name, words):
    (tmp_path / "file").write_text("a file")
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(ns.BadArgumentError, match=words) as error:
        check_writable(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
