"""Looking driver functions up at run time, by the rules that real drivers follow.

There are two revisions of ``cuGetProcAddress``. The first (CUDA 11.3) answers a miss with code
500 and leaves the output pointer as it was; the second (12.0) answers code 0, a NULL pointer and
a status. So an answer counts as found only if the code is 0, the pointer, cleared beforehand, is
not NULL, and the status, where there is one, says so. An address for a function that is newer
than the driver itself is not trusted: nobody knows what lies there.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

from numba_swap.driver import abi
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import EntryPointNotFoundError

_STATUS_NAMES = {
    abi.SYMBOL_FOUND: "found",
    abi.SYMBOL_NOT_FOUND: "symbol not found",
    abi.VERSION_NOT_SUFFICIENT: "requested version not sufficient",
}
_NOT_WRITTEN = -1


@dataclass(frozen=True)
class LookupResult:
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
    too_new_for : DriverVersion or None
        The driver's version, if it gave an address although it is older than the version asked
        at; such an answer does not count as found.
    """

    name: str
    version: int
    code: int
    address: int
    status: int | None
    too_new_for: DriverVersion | None = None

    @property
    def found(self) -> bool:
        """Whether the address is that of the function asked for."""
        return (
            self.code == abi.SUCCESS
            and self.address != 0
            and self.status in (None, abi.SYMBOL_FOUND)
            and self.too_new_for is None
        )

    @property
    def explanation(self) -> str:
        """The answer in words, for error messages and reports."""
        if self.found:
            return "found"
        parts = [f"code {self.code}", "an address" if self.address else "no address"]
        if self.status is not None:
            parts.append(f"status {_STATUS_NAMES.get(self.status, str(self.status))}")
        if self.too_new_for is not None:
            parts.append(f"which is not used because this driver is only {self.too_new_for}")
        return ", ".join(parts)


class ProcAddress:
    """The driver's own look-up function, in whichever revision it has.

    Parameters
    ----------
    address : int
        Address of the look-up function.
    revision : {1, 2}
        Which of the two it is: they differ in their parameters.
    owner : str
        Whose it is, for error messages.
    """

    def __init__(self, address: int, revision: int, owner: str = "the driver") -> None:
        self.owner = owner
        self.prototype = abi.GET_PROC_ADDRESS_V2 if revision == 2 else abi.GET_PROC_ADDRESS_V1
        self.revision = revision
        self._function = self.prototype.ctype(address)

    def ask(self, name: str, version: int) -> LookupResult:
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
        return LookupResult(name, version, code, pointer.value or 0, written)


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
        self.answers: dict[str, LookupResult] = {}
        self._functions: dict[str, Any] = {}
        self._owner = proc_address.owner
        for prototype in abi.PROTOTYPES.values():
            answer = proc_address.ask(prototype.name, prototype.version)
            self.answers[prototype.name] = answer
            if answer.found:
                self._functions[prototype.name] = prototype.ctype(answer.address)
            elif prototype.essential:
                self.function(prototype.name)
        self._drop_too_new()

    def _drop_too_new(self) -> None:
        """Take back what the driver gave although its version does not have it."""
        encoded = ctypes.c_int()
        if self.function("cuDriverGetVersion")(ctypes.byref(encoded)) != abi.SUCCESS:
            return  # reported by whoever needs the version
        for name, answer in self.answers.items():
            if answer.found and answer.version > encoded.value:
                version = DriverVersion.from_encoded(encoded.value)
                self.answers[name] = replace(answer, too_new_for=version)
                del self._functions[name]

    def function(self, name: str) -> Any:
        """Return the callable function, or raise `EntryPointNotFoundError`."""
        try:
            return self._functions[name]
        except KeyError:
            answer = self.answers[name]
            raise EntryPointNotFoundError(
                f"{self._owner} gave no {name} at version {answer.version}: {answer.explanation}"
            ) from None
