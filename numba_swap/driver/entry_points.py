"""Looking driver functions up at run time, by the rules that real drivers follow.

There are two revisions of ``cuGetProcAddress``. The first (CUDA 11.3) answers a miss with code
500 and leaves the output pointer as it was; the second (12.0) answers code 0, a NULL pointer and
a status. So an answer counts as found only if the code is 0, the pointer, cleared beforehand, is
not NULL, and the status, where there is one, says so.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from numba_swap.driver import abi
from numba_swap.errors import EntryPointNotFoundError

_STATUS_NAMES = {
    abi.SYMBOL_FOUND: "found",
    abi.SYMBOL_NOT_FOUND: "symbol not found",
    abi.VERSION_NOT_SUFFICIENT: "requested version not sufficient",
}
_NOT_WRITTEN = -1


@dataclass(frozen=True)
class Answer:
    """What ``cuGetProcAddress`` said to one question.

    Attributes
    ----------
    name : str
        The name asked for.
    version : int
        The version it was asked at, encoded.
    code : int
        Return code.
    address : int
        Address of the function, 0 if none was given.
    status : int or None
        The second revision's query result; None if it was not written or there is none.
    """

    name: str
    version: int
    code: int
    address: int
    status: int | None

    @property
    def found(self) -> bool:
        """Whether the address is that of the function asked for."""
        return (
            self.code == abi.SUCCESS
            and self.address != 0
            and self.status in (None, abi.SYMBOL_FOUND)
        )

    @property
    def explanation(self) -> str:
        """The answer in words, for error messages and reports."""
        if self.found:
            return "found"
        parts = [f"code {self.code}", "an address" if self.address else "no address"]
        if self.status is not None:
            parts.append(_STATUS_NAMES.get(self.status, f"status {self.status}"))
        return ", ".join(parts)


class ProcAddress:
    """The driver's own look-up function, in whichever revision it has.

    Parameters
    ----------
    address : int
        Address of the look-up function.
    revision : {1, 2}
        Which of the two it is: they differ in their parameters.
    """

    def __init__(self, address: int, revision: int) -> None:
        self.prototype = abi.GET_PROC_ADDRESS_V2 if revision == 2 else abi.GET_PROC_ADDRESS_V1
        self.revision = revision
        self._function = self.prototype.ctype(address)

    def ask(self, name: str, version: int) -> Answer:
        """Ask for one function at one (encoded) version."""
        pointer = ctypes.c_void_p(None)
        arguments: list[Any] = [
            name.encode("ascii"),
            ctypes.byref(pointer),
            version,
            abi.PROC_ADDRESS_DEFAULT,
        ]
        status = ctypes.c_int(_NOT_WRITTEN)
        if self.revision == 2:
            arguments.append(ctypes.byref(status))
        code = int(self._function(*arguments))
        written = None if status.value == _NOT_WRITTEN else status.value
        return Answer(name, version, code, pointer.value or 0, written)


class EntryPoints:
    """All driver functions that numba_swap uses, each asked for once.

    Parameters
    ----------
    proc_address : ProcAddress
        The library's look-up function.

    Raises
    ------
    EntryPointNotFoundError
        If an essential function is missing.
    """

    def __init__(self, proc_address: ProcAddress) -> None:
        self.answers: dict[str, Answer] = {}
        self._functions: dict[str, Any] = {}
        for prototype in abi.PROTOTYPES.values():
            answer = proc_address.ask(prototype.name, prototype.version)
            self.answers[prototype.name] = answer
            if answer.found:
                self._functions[prototype.name] = prototype.ctype(answer.address)
            elif prototype.essential:
                self.function(prototype.name)

    def function(self, name: str) -> Any:
        """Return the callable function, or raise `EntryPointNotFoundError`."""
        try:
            return self._functions[name]
        except KeyError:
            answer = self.answers[name]
            raise EntryPointNotFoundError(
                f"the driver has no {name} at version {answer.version}: {answer.explanation}"
            ) from None
