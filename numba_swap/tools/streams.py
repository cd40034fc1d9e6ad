"""The streams of a command: where nobody reads them, or nothing can be written, it ends quietly."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from numba_swap.errors import NumbaSwapError

ERROR = 2
# What a shell reports of a program that ended by SIGPIPE (128 + 13), and of one that ended by
# Ctrl-C: 1, which Python suggests for the former, means other things in these commands.
NOBODY_READS = 141
INTERRUPTED = 130


class OutputError(OSError):
    """The standard output cannot be written."""


def run_command(name: str, command: Callable[[], int]) -> int:
    """Run a command of this package.

    Parameters
    ----------
    name : str
        What its messages begin with.
    command : callable
        Does all and returns the exit status. What it prints to a standard output that was closed
        is lost, as in ``/dev/null``; so is what cannot be written to the error output.

    Returns
    -------
    int
        The exit status: that of the command; 141, without a word, where the standard output is a
        pipe that nobody reads any more; 2, with a line, where it cannot be written for another
        reason; 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With status 2, after a line on the error output, for an error of this package or of the
        system, a bad argument, or too little memory; and as the command raises it.
    """
    with _usable_streams() as output:
        try:
            try:
                return command()
            except OutputError:
                raise
            except (NumbaSwapError, ValueError, OSError, MemoryError) as error:
                words = str(error) or "there is not enough memory"
                print(f"{name}: error: {words}", file=sys.stderr)
                raise SystemExit(ERROR) from None
            finally:
                output.flush()
        except OutputError as error:
            output.drop()
            if error.errno == errno.EPIPE:
                return NOBODY_READS
            print(f"{name}: error: the output cannot be written: {error.strerror}", file=sys.stderr)
            return ERROR
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return INTERRUPTED


@contextlib.contextmanager
def _usable_streams() -> Iterator[_Output]:
    """Let both streams be there, and errors of the standard output be told from all others."""
    with contextlib.ExitStack() as stack:
        output = _Output(_stream(sys.stdout, stack))
        errors = _Errors(_stream(sys.stderr, stack))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        yield output


def _stream(given: Any, stack: contextlib.ExitStack) -> Any:
    if given is None:  # it was closed when the process began
        # (Its number is taken, too: no other file is to become the stream of a child process.)
        return stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
    if isinstance(given, io.TextIOWrapper) and given.errors == "strict":
        # Paths may hold what no encoding can write, and an encoding may be ASCII.
        given.reconfigure(errors="backslashreplace")
    return given


class _Output:
    """The standard output, whose errors are told from all others."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._failed: OutputError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._errors_told():
            written: int = self._stream.write(text)
        return written

    def flush(self) -> None:
        if self._failed is not None:  # and whoever wrote did not mind
            raise self._failed
        with self._errors_told():
            self._stream.flush()

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = OutputError(error.errno, error.strerror)
            raise self._failed from None

    def drop(self) -> None:
        """Send what is still to be written nowhere: Python flushes once more when it ends."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


class _Errors(_Output):
    """The error output; nothing that is done depends on whether it can be written."""

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.drop()

    def write(self, text: str) -> int:
        with self._errors_told():
            self._stream.write(text)
        return len(text)
