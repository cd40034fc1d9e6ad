"""Examine the driver library that this process finds, through numba_swap, and print JSON.

Run in a process of its own by test_resolution.py, because a process keeps the first driver library
that it loads. The only argument is a JSON list of questions, each a name and a version.
"""

import ctypes
import json
import sys

from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.library import NvidiaLibrary


def main() -> None:
    library = NvidiaLibrary()
    driver = Driver(library)
    exports = ctypes.CDLL(library.path)

    def exported(name: str) -> int | None:
        function = getattr(exports, name, None)
        return function and ctypes.cast(function, ctypes.c_void_p).value

    def row(answer):
        names = [answer.name + suffix for suffix in ("", "_v2", "_v3", "_ptsz")]
        symbols = [name for name in names if exported(name) == answer.address]
        return {
            "version": answer.version,
            "answer": [answer.code, answer.found, answer.status],
            "symbol": symbols[0] if symbols else "unknown" if answer.address else None,
        }

    try:
        driver.initialize()
        initialize = None
    except Exception as error:
        initialize = [type(error).__name__, str(error)]
    names = {1: abi.GET_PROC_ADDRESS_V1.name, 2: abi.GET_PROC_ADDRESS_V2.name}
    report = {
        "path": library.path,
        "found_via": library.found_via,
        "revision": library.proc_address.revision,
        "revisions": [revision for revision, name in names.items() if exported(name)],
        "version": list(driver.version),
        "initialize": initialize,
        "entry_points": {n: row(answer) for n, answer in driver.entry_points.answers.items()},
        "questions": [
            row(library.proc_address.ask(name, version))
            for name, version in json.loads(sys.argv[1])
        ],
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
