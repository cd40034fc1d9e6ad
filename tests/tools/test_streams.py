"""What a command does where nobody reads what it prints, or it cannot be written."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from numba_swap.tools import cli
from numba_swap.tools.streams import run_command

ROOT = Path(__file__).parents[2]
RESULT = "notebooks/data/ab_planted_h200.json"
FULL = Path("/dev/full")
QUICK = ["--simulate", "--block", "512", "--count", "4", "--span", "16KiB", "--rounds", "20"]
QUICK += ["--sample-ms", "0.01"]
COMMANDS = {
    "info": ["-m", "numba_swap", "info"],
    "info --json": ["-m", "numba_swap", "info", "--json"],
    "explain": ["-m", "numba_swap", "explain", "--sizes", "4KiB", "--driver-version", "13.0"],
    "demo": ["-m", "numba_swap", "demo", "--simulate", "--size", "1024"],
    "ab show": ["-m", "numba_swap", "ab", "show", RESULT],
    "ab compare": ["-m", "numba_swap", "ab", "compare", RESULT, RESULT],
    "ab run": ["-m", "numba_swap", "ab", "run", "loop", *QUICK],
    "--help": ["-m", "numba_swap", "--help"],
    "--version": ["-m", "numba_swap", "--version"],
    "speed_targets": ["-m", "numba_swap.tools.bench.speed.suite", "--help"],
    "plot": ["-m", "numba_swap.tools.bench.speed.plot", "--help"],
    "fetch_drivers": ["scripts/fetch_drivers", "--list"],
    "validation_cost": ["tests/helpers/validation_cost.py", "--help"],
    "soak": ["tests/helpers/soak.py", "--help"],
    "run_notebooks": ["notebooks/_execute.py", "--help"],
}


def run(arguments, redirections, **environment):
    """Exit status and error output of Python with a shell's redirections."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirections}', sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return result.returncode, result.stderr


def piped_to_nobody(arguments):
    """The same, into a pipe whose reader is gone already."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    try:
        result = subprocess.run(
            [sys.executable, *arguments],
            env={**environment, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        os.close(writer)
    return result.returncode, result.stderr


def without_progress(errors):
    return [line for line in errors.splitlines() if not line.startswith("[1/1, ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(name):
    status, errors = piped_to_nobody(COMMANDS[name])
    assert without_progress(errors) == []
    assert status == 141


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    "name", ["info", "explain", "ab show", "ab run", "--help", "fetch_drivers"]
)
def test_a_full_disk_is_one_line(name):
    status, errors = run(COMMANDS[name], f">{FULL}")
    (line,) = without_progress(errors)
    assert "No space left on device" in line
    assert status == (5 if name == "fetch_drivers" else 2)


@pytest.mark.parametrize(
    ("name", "statuses"),
    [("info", (0, 1)), ("explain", (0,)), ("ab show", (0,)), ("--help", (0,)), ("soak", (0,))],
)
@pytest.mark.parametrize("redirections", [">&-", "2>&-", ">&- 2>&-", f"2>{FULL}"])
def test_closed_streams_are_as_if_nobody_listened(name, statuses, redirections):
    status, errors = run(COMMANDS[name], redirections)
    assert errors == ""
    assert status in statuses


def test_progress_that_cannot_be_written_does_not_stop_the_measurement(tmp_path):
    path = tmp_path / "result.json"
    for redirections in ("2>&-", ">&- 2>&-", f"2>{FULL}"):
        status, _ = run([*COMMANDS["ab run"], "--json", str(path)], redirections)
        assert status == 0
        assert path.stat().st_size > 1000
        path.unlink()


def test_a_result_is_written_before_it_is_shown_to_nobody(tmp_path):
    path = tmp_path / "result.json"
    assert piped_to_nobody([*COMMANDS["ab run"], "--json", str(path)])[0] == 141
    assert path.stat().st_size > 1000


def test_what_an_encoding_lacks_is_escaped():
    code = 'import sys; from numba_swap.tools.streams import run_command as run; sys.exit(run("x", '
    code += 'lambda: print("\\u00e9", "\\udcff") or 3))'
    for encoding, shown in (("ascii", b"\\xe9 \\udcff\n"), ("utf-8:strict", b"\xc3\xa9 \\udcff\n")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (3, shown, b"")


# -- in this process ------------------------------------------------------------------------------


class Broken(io.StringIO):
    """A stream on which something fails."""

    def __init__(self, error, flush_only=False):
        super().__init__()
        self.error, self.flush_only = error, flush_only

    def write(self, text):
        if not self.flush_only:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.flush_only:
            raise self.error


PIPE, DISK = BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")


@pytest.mark.parametrize("flush_only", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PIPE, 141, ""),
        (DISK, 2, "x: error: the output cannot be written: No space left on device\n"),
    ],
)
def test_who_writes_need_not_mind(error, status, words, flush_only):
    """`argparse` does not."""

    def command():
        with contextlib.suppress(OSError):
            print("text")
        return 0

    errors = io.StringIO()
    with (
        contextlib.redirect_stdout(Broken(error, flush_only)),
        contextlib.redirect_stderr(errors),
    ):
        assert run_command("x", command) == status
    assert errors.getvalue() == words


def test_errors_that_cannot_be_told_change_nothing():
    def command():
        print("text", file=sys.stderr)
        return 7

    for error in (PIPE, DISK):
        with contextlib.redirect_stderr(Broken(error)):
            assert run_command("x", command) == 7


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a bad value"), "x: error: a bad value\n"),
        (MemoryError(), "x: error: there is not enough memory\n"),
        (FileNotFoundError(2, "No such file", "a"), "x: error: [Errno 2] No such file: 'a'\n"),
        # It is not the output that is broken.
        (BrokenPipeError(32, "Broken pipe"), "x: error: [Errno 32] Broken pipe\n"),
    ],
)
def test_errors_are_one_line(capsys, error, line):
    def command():
        raise error

    with pytest.raises(SystemExit, match="2"):
        run_command("x", command)
    assert capsys.readouterr() == ("", line)


def test_ctrl_c_is_130(capsys):
    def command():
        raise KeyboardInterrupt

    assert run_command("x", command) == 130
    assert capsys.readouterr() == ("", "x: interrupted\n")


def test_what_is_no_error_of_a_user_is_told_in_full():
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command("x", command)


def test_streams_are_as_before_afterwards(monkeypatch):
    before = sys.stdout, sys.stderr
    assert run_command("x", lambda: print("text") or 0) == 0
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["explain", "--sizes", "4KiB", "--driver-version", "13.0"]) == 0
    assert sys.stdout is None
