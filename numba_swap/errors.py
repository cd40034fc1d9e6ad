"""Everything that numba_swap raises on purpose, in one tree."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from typing import Any

# Codes that break a context for good: every later call in it fails, and nothing runs any more.
STICKY_CODES = frozenset(
    (
        214,  # ECC_UNCORRECTABLE
        700,  # ILLEGAL_ADDRESS
        702,  # LAUNCH_TIMEOUT
        709,  # CONTEXT_IS_DESTROYED
        710,  # ASSERT
        714,  # HARDWARE_STACK_ERROR
        715,  # ILLEGAL_INSTRUCTION
        716,  # MISALIGNED_ADDRESS
        717,  # INVALID_ADDRESS_SPACE
        718,  # INVALID_PC
        719,  # LAUNCH_FAILED
        999,  # UNKNOWN
    )
)
_STICKY_NOTE = (
    "The error is sticky: this context is broken for good, nothing runs in it any more, and every "
    "later call fails. Only a new process can use the GPU again."
)


class NumbaSwapError(Exception):
    """Base of every error of this package."""


class DriverUnavailableError(NumbaSwapError):
    """No CUDA driver library could be loaded, or it has no usable device.

    Attributes
    ----------
    candidates : list of tuple of str
        What was tried, each with the reason why it failed.
    advice : str
        What the driver's return code means and what to do; empty if there is none.
    """

    def __init__(
        self, message: str, candidates: list[tuple[str, str]] | None = None, advice: str = ""
    ) -> None:
        # A path may hold bytes of any encoding, and the message is to be printed all the same.
        super().__init__(message.encode(errors="backslashreplace").decode())
        self.candidates = candidates or []
        self.advice = advice


class EntryPointNotFoundError(NumbaSwapError):
    """The driver has no function of that name at the requested version."""


class DriverCallError(NumbaSwapError):
    """A driver function returned an error code.

    Attributes
    ----------
    function : str
        The driver's name of the function.
    code : int
        Its return code.
    name : str
        The driver's name of that code, ``CUDA_ERROR_INVALID_VALUE`` for example.
    failing_index : int or None
        Index, within the copies of the plan, of the copy at fault; None where the driver did
        not name one.
    copy : str or None
        That copy in the user's terms: its row and block ids, or its addresses.
    submitted : int or None
        How many copies, the first ones in the plan's order, had been submitted before; these are
        done unless the error is sticky. None where it is not known, or where the function that
        failed submits no copies: a query, or a wait.
    submitted_rows : sequence of int or None
        The rows of the mapping (or indices of the pointers) of which anything was, or may have
        been, submitted: whatever the order of the plan, the destinations of all others are as
        they were. None where it is not known, or the function submits no copies.
    """

    def __init__(
        self,
        function: str,
        code: int,
        name: str,
        failing_index: int | None = None,
        note: str = "",
        copy: str | None = None,
        submitted: int | None = None,
        submitted_rows: Sequence[int] | None = None,
    ) -> None:
        message = f"[{code}] Call to {function} results in {name}"
        if failing_index is not None:
            message += f" at copy {failing_index}"
        notes = " ".join(filter(None, (note, _STICKY_NOTE if code in STICKY_CODES else "")))
        super().__init__(f"{message}. {notes}" if notes else message)
        self.function = function
        self.code = code
        self.name = name
        self.failing_index = failing_index
        self.copy = copy
        self.submitted = submitted
        self.submitted_rows = submitted_rows
        self._note = note

    def in_part(self, number: int) -> DriverCallError:
        """Return this error for a swap that ran in parts, of which so many were submitted before.

        Parts run side by side, so which rows were submitted is not known.
        """
        note = f"This swap ran in parts; the {number} before this one were submitted. {self._note}"
        error = type(self)(
            self.function, self.code, self.name, self.failing_index, note.strip(), self.copy
        )
        if number == self.submitted == 0:
            error.submitted, error.submitted_rows = 0, ()
        return error

    @property
    def sticky(self) -> bool:
        """Whether the context is broken for good: only a new process can use the GPU again."""
        return self.code in STICKY_CODES

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.function,
            self.code,
            self.name,
            self.failing_index,
            self._note,
            self.copy,
            self.submitted,
            self.submitted_rows,
        )


class ModeUnavailableError(NumbaSwapError):
    """A mode was asked for by name, and it cannot run this copy here.

    Attributes
    ----------
    mode : str
        The mode asked for.
    reason : str
        Why it cannot run.
    """

    def __init__(self, mode: str, reason: str) -> None:
        super().__init__(f"mode {str(mode)!r} cannot run this copy: {reason}")
        self.mode = mode
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mode, self.reason)


class BadPlanError(NumbaSwapError, ValueError):
    """The copies asked for are not possible or not well defined; nothing was copied.

    Attributes
    ----------
    index : int or None
        Row of the mapping, or index of the copy, at fault.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class BadArgumentError(NumbaSwapError, ValueError):
    """An argument, or a variable of the environment, has a value that means nothing here."""


class UnsupportedArrayError(NumbaSwapError, TypeError):
    """An argument is no array (or no stream) of a kind that can be used here."""


class CapturedTransferError(NumbaSwapError):
    """A capture into a CUDA graph is in the way.

    A transfer that was captured was waited for: it runs when the graph is launched, as often as it
    is launched, so wait for the launch. Or a swap needs a stream that cannot be used while another
    is being captured; nothing was copied, and the capture goes on.
    """


class CacheFullError(NumbaSwapError):
    """A request of a `BlockCache` needs more slots than can be free; nothing was changed.

    Attributes
    ----------
    needed : int
        How many blocks must come in.
    slots : int
        How many slots the cache has.
    leased : int
        How many of them are leased, or hold other blocks of the request.
    """

    def __init__(self, needed: int, slots: int, leased: int) -> None:
        super().__init__(
            f"{needed} blocks must come in, and of the {slots} slots {leased} are leased or hold "
            f"other blocks of this request, which leaves {slots - leased}: end leases first, ask "
            "for fewer blocks at a time, or make a cache of more slots"
        )
        self.needed = needed
        self.slots = slots
        self.leased = leased

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.needed, self.slots, self.leased)


class LeaseConflictError(NumbaSwapError):
    """A lease that is still open is in the way; nothing was changed.

    Attributes
    ----------
    block : int
        A block that is leased.
    """

    def __init__(self, message: str, block: int) -> None:
        super().__init__(message)
        self.block = block

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.block)


class BlocksLostError(NumbaSwapError):
    """What was written to blocks of a `BlockCache` is lost after a failure of the driver.

    Attributes
    ----------
    blocks : tuple of int
        The blocks: on the host each may be as it was, as it was to be, or a mixture.
    """

    def __init__(self, message: str, blocks: Sequence[int]) -> None:
        super().__init__(message)
        self.blocks = tuple(blocks)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.blocks)


class TransferTimeoutError(NumbaSwapError, TimeoutError):
    """A transfer was not over in the time that the wait was given; it goes on."""


class _Brief(reprlib.Repr):
    """Values in a line: of an array its shape, of anything long the beginning and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            shape = tuple(getattr(x, "shape", ()))
        except Exception:  # some objects refuse whatever is asked of them
            shape = ()
        if shape:  # to print an array may take a copy from the GPU
            return f"<{type(x).__name__} of shape {shape}>"
        return super().repr_instance(x, level)


_brief = _Brief()


def brief(value: object) -> str:
    """Return what a user gave, for a message: one short line, whatever it is."""
    try:
        return _cut(_brief.repr(value))
    except Exception:  # an integer of more digits than Python prints, for example
        return f"<{type(value).__name__}>"


def say(error: BaseException) -> str:
    """Return what another library's error says, for a message: its kind and one short line."""
    return f"{type(error).__name__}: {_cut(str(error))}".removesuffix(": ")


def _cut(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= 240 else f"{words[:180]} ... {words[-50:]}"


def forked_error() -> DriverUnavailableError:
    """Make the error of every use, in a forked process, of a driver of its parent."""
    return DriverUnavailableError(
        "this process was forked from one that had used CUDA, and CUDA does not survive a fork. "
        "Start processes with multiprocessing's 'spawn' (or 'forkserver') method, or use CUDA "
        "only after the fork."
    )


# What the codes mean by which CUDA does not start: from the comments in cuda.h, the guides of the
# Fabric Manager, of CUDA's compatibility and of MPS, and what users found to be behind them.
_NO_START = {
    2: "the GPU has no memory left for a context: `nvidia-smi` shows which processes use it",
    34: "this library is a toolkit's stub, made for linking: let the loader find the driver's own "
    "libcuda.so.1 first (LD_LIBRARY_PATH)",
    46: "the GPU is taken, or closed: another process has it while its compute mode is exclusive, "
    "or that is prohibited. `nvidia-smi -q -d COMPUTE` shows the mode, `nvidia-smi` the processes; "
    "end the other one, choose another GPU with CUDA_VISIBLE_DEVICES, or set the mode with "
    "`nvidia-smi -c DEFAULT`",
    100: "the driver finds no GPU that this process may use: see `nvidia-smi -L`; a container has "
    "to be given one (docker run --gpus all)",
    101: "a GPU that was asked for is none: see `nvidia-smi -L`, and CUDA_VISIBLE_DEVICES",
    304: "a call of the operating system failed, mostly for want of rights: may this process open "
    "/dev/nvidia*, and is there memory in /dev/shm?",
    802: "the system is not ready: on machines with NVSwitch the Fabric Manager must run, in the "
    "driver's very version (`systemctl status nvidia-fabricmanager`); shortly after booting, wait",
    803: "the library libcuda and the kernel module are of different releases: after an update of "
    "the driver, reboot (or load the modules anew); in a container, do not bring a libcuda along",
    804: "this libcuda is of a forward-compatibility package, which this GPU is not supported by: "
    "take the package's folder (cuda-compat) off LD_LIBRARY_PATH, or update the driver",
    805: "the MPS daemon cannot be reached: start it (nvidia-cuda-mps-control -d), or unset "
    "CUDA_MPS_PIPE_DIRECTORY",
    807: "the MPS server is recovering from a failure: wait, or start it anew",
    808: "the MPS server has as many clients as it may have: end one",
    999: "the driver does not say more: mostly the kernel module nvidia_uvm is not loaded, or has "
    "not survived a suspend (`modprobe -r nvidia_uvm && modprobe nvidia_uvm`)",
}


def advise_on_start(code: int) -> str:
    """Return what a code means by which CUDA does not start, and what to do; empty if unknown."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code in (100, 101) and visible is not None:
        return (
            f"CUDA_VISIBLE_DEVICES={brief(visible)} is set and leaves no GPU: unset it, or give "
            "numbers or UUIDs that `nvidia-smi -L` lists (an unknown one hides all after it)"
        )
    return _NO_START.get(code, "")


class CalibrationError(NumbaSwapError):
    """A calibration cannot be made, or the file of one is broken."""
