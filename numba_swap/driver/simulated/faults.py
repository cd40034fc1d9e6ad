"""Faults on purpose: which call of which C function of the simulated driver fails, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba_swap.driver import abi

# Of each batch: which parameter is the number of copies, which the failing index, and how many
# there are; CUDA 13's revisions have no failing index, and one parameter less.
_BATCHES = {abi.MEMCPY_BATCH_ASYNC.name: (3, 7, 9), abi.MEMCPY_3D_BATCH_ASYNC.name: (0, 2, 5)}


@dataclass(frozen=True)
class Fault:
    """A C function that fails.

    Attributes
    ----------
    function : str
        Its name; ``"cuGetProcAddress"`` means look-ups.
    code : int
        What it returns.
    call : int
        Which call fails: 1 is the next one.
    times : int or None
        How many calls in a row fail from there on; None means all.
    done : bool
        Whether the function does its work all the same before it fails.
    sticky : bool
        Whether the context is broken from then on: nothing runs, and every later call fails.
    copies : int or None
        Of ``cuMemcpyBatchAsync`` and ``cuMemcpy3DBatchAsync``: how many of the copies are submitted
        all the same.
    fail_index : int or None
        Of the same: the failing index that it writes; None leaves that unwritten.
    name : str or None
        Of look-ups: only those of this function count; None means all.
    address : int or None
        Of look-ups: the pointer that is written; None leaves it untouched.
    status : int or None
        Of look-ups that have one: the status that is written; None leaves it unwritten.
    """

    function: str
    code: int
    call: int = 1
    times: int | None = 1
    done: bool = False
    sticky: bool = False
    copies: int | None = None
    fail_index: int | None = None
    name: str | None = None
    address: int | None = None
    status: int | None = None

    def strike(self, method: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Do what is done, and write what is written, before the code is returned."""
        if self.done:
            method(*arguments)
        if self.function in _BATCHES:
            count, fail_index, parameters = _BATCHES[self.function]
            if self.copies:
                method(*arguments[:count], self.copies, *arguments[count + 1 :])
            if self.fail_index is not None and len(arguments) == parameters:
                arguments[fail_index][0] = self.fail_index
        if self.function == abi.GET_PROC_ADDRESS_V1.name:
            _, pointer, _, _, *status = arguments
            if self.address is not None:
                pointer[0] = self.address or None
            if status and self.status is not None:
                status[0][0] = self.status


class FaultPlan:
    """What is to fail in one simulated driver, and what has failed.

    Parameters
    ----------
    *faults : Fault
        As if added before the first call.

    Attributes
    ----------
    struck : list of Fault
        One entry for every call that was made to fail, in order.
    """

    def __init__(self, *faults: Fault) -> None:
        self.struck: list[Fault] = []
        self._waiting: list[tuple[Fault, list[int]]] = []  # with the calls seen so far
        self._watchers: dict[str, Callable[..., object]] = {}
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Plan a fault; its calls are counted from now on."""
        self._waiting.append((fault, [0]))

    def clear(self) -> None:
        """Let nothing more fail."""
        self._waiting.clear()

    def watch(self, function: str, action: Callable[..., object]) -> None:
        """Call a function with the arguments of every call of a C function, before it runs."""
        self._watchers[function] = action

    def due(self, function: str, arguments: tuple[Any, ...]) -> Fault | None:
        """Count one call of a C function; return the fault that strikes it, if one does."""
        if function in self._watchers:
            self._watchers[function](*arguments)
        found = None
        for fault, seen in self._waiting:
            if fault.function != function:
                continue
            if fault.name is not None and arguments[0] != fault.name.encode():
                continue
            seen[0] += 1
            late = fault.times is not None and seen[0] >= fault.call + fault.times
            if found is None and seen[0] >= fault.call and not late:
                found = fault
        if found is not None:
            self.struck.append(found)
        return found
