"""The simulated driver is held to what real drivers answer.

First to the table in facts.json, row by row (with what was measured on driver 580). Then, with
many more questions, to the museum's libraries themselves.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import numba_swap as ns
from numba_swap.driver import abi
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.version import DriverVersion

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "facts.json").read_text())["drivers"]
ROWS = [(name, row) for name, facts in FACTS.items() for row in facts["rows"]]
POISON, UNWRITTEN = 0xDEAD, -77

# What the simulation is known to lack: of these names, at these versions, it differs, and why.
# It has the one revision of a function that numba_swap asks for.
NEWEST = 1 << 30
KNOWN_GAPS = {
    "cuMemAlloc": (range(3020), "the revision before 3.2 is not simulated"),
    "cuMemFree": (range(3020), "the revision before 3.2 is not simulated"),
    "cuMemGetInfo": (range(3020), "the revision before 3.2 is not simulated"),
    "cuMemcpy3DAsync": (range(2000, 3020), "the revision before 3.2 is not simulated"),
}


def simulated(facts, **options):
    return SimulatedLibrary(DriverVersion.from_encoded(facts["version"]), **options)


def symbols(library):
    """Exported name of each address."""
    return {
        ctypes.cast(function, ctypes.c_void_p).value: symbol
        for symbol, function in library.exports.items()
    }


def is_known_gap(facts, name, version):
    versions, _ = KNOWN_GAPS.get(name, ((), ""))
    return version in versions and facts["version"] >= getattr(versions, "start", NEWEST)


def ask(library, revision, name, version):
    """One row of the table, as ask.c finds it for a real library."""
    pointer, status = ctypes.c_void_p(POISON), ctypes.c_int(UNWRITTEN)
    arguments = [name.encode(), ctypes.byref(pointer), version, 0]
    if revision == 2:
        arguments.append(ctypes.byref(status))
    look_up = library.exports["cuGetProcAddress" + ("_v2" if revision == 2 else "")]
    code = look_up(*arguments)
    where = {POISON: "untouched", None: "null"}.get(pointer.value)
    where = where or symbols(library).get(pointer.value, "unknown")
    if revision == 1:
        return [code, where, None]
    return [code, where, "unwritten" if status.value == UNWRITTEN else status.value]


@pytest.mark.parametrize(
    ("driver", "row"), ROWS, ids=[f"{driver}-v{r[0]}-{r[1]}-{r[2]}" for driver, r in ROWS]
)
def test_row(driver, row, request):
    revision, name, version, *expected = row
    if is_known_gap(FACTS[driver], name, version):
        # Strict: whoever closes the gap is told to take it off the list.
        request.applymarker(pytest.mark.xfail(strict=True, reason=KNOWN_GAPS[name][1]))
    assert ask(simulated(FACTS[driver]), revision, name, version) == expected


@pytest.mark.parametrize("driver", FACTS)
def test_exported_revisions_of_the_look_up_function(driver):
    exports = simulated(FACTS[driver]).exports
    names = {1: "cuGetProcAddress", 2: "cuGetProcAddress_v2"}
    assert [r for r in names if names[r] in exports] == FACTS[driver]["revisions"]


@pytest.mark.parametrize("driver", FACTS)
def test_chosen_look_up_function_and_version(driver):
    facts = FACTS[driver]
    with ns.simulate(DriverVersion.from_encoded(facts["version"])) as gpu:
        assert gpu.driver.version.encoded == facts["version"]
        revision = gpu.library.proc_address.revision
    assert revision == facts.get("chosen", {"revision": 2})["revision"]


@pytest.mark.parametrize("driver", [name for name in FACTS if "entry_points" in FACTS[name]])
def test_entry_points(driver):
    facts = FACTS[driver]
    library = simulated(facts)
    for prototype in abi.PROTOTYPES.values():
        answer = library.proc_address.ask(prototype.name, prototype.version)
        expected = facts["entry_points"].get(prototype.name, facts["entry_points"]["others"])
        assert [answer.code, answer.found, answer.status] == expected, prototype.name


@pytest.mark.parametrize("driver", [name for name in FACTS if "parameters" in FACTS[name]])
def test_number_of_parameters(driver):
    exports = simulated(FACTS[driver]).exports
    for symbol, count in FACTS[driver]["parameters"].items():
        assert len(exports[symbol].argtypes) == count, symbol


@pytest.mark.parametrize("driver", [name for name in FACTS if "initialize" in FACTS[name]])
def test_initialize_without_a_device(driver):
    code, name = FACTS[driver]["initialize"]
    library = simulated(FACTS[driver], devices=0)
    text = ctypes.c_char_p()
    assert library.exports["cuInit"](0) == code
    assert library.exports["cuGetErrorName"](code, ctypes.byref(text)) == 0
    assert text.value.decode() == name


def all_questions(version):
    """Every name at every version around which an answer could change."""
    edges = {0, 1000, 11030, 12000, 12050, 12080, 13000, 14000, version}
    edges |= {prototype.version for prototype in abi.PROTOTYPES.values()}
    versions = sorted(edges | {edge - 10 for edge in edges if edge > 0})
    names = [*abi.PROTOTYPES, "cuGetProcAddress", "cuNoSuchFunction", ""]
    return [(name, edge) for name in names for edge in versions]


@pytest.mark.museum
def test_many_more_questions_to_the_library_itself(folder, facts):
    questions = all_questions(facts["version"])
    result = subprocess.run(
        [sys.executable, str(HERE / "examine.py"), json.dumps(questions)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    report = json.loads(result.stdout)
    library = simulated(facts)
    names = symbols(library)
    twin = []
    for name, version in questions:
        answer = library.proc_address.ask(name, version)
        words = [answer.code, answer.found, answer.status]
        twin.append({"version": version, "answer": words, "symbol": names.get(answer.address)})
    asked = [name for name, _ in questions]
    pairs = zip(asked, ours(asked, report["questions"]), ours(asked, twin), strict=True)
    differ = [
        (name, real, row)
        for name, real, row in pairs
        if row != real and not is_known_gap(facts, name, row["version"])
    ]
    assert differ == []


def ours(names, rows):
    """Call the function that numba_swap uses "ours": a real one may be exported as ``_v2``."""
    used = {
        name: row["symbol"]
        for name, row in zip(names, rows, strict=True)
        if name in abi.PROTOTYPES and row["version"] == abi.PROTOTYPES[name].version
    }
    return [
        {**row, "symbol": "ours" if row["symbol"] == used.get(name, "") else row["symbol"]}
        for name, row in zip(names, rows, strict=True)
    ]


@pytest.mark.museum
def test_decision_and_all_that_leads_to_it(folder, facts):
    command = [sys.executable, "-m", "numba_swap", "info", "--json", "--driver"]
    result = subprocess.run(
        [*command, str(folder / "libcuda.so.1")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    real = json.loads(result.stdout)
    with ns.simulate(DriverVersion.from_encoded(facts["version"])):
        twin = ns.driver_info()
    for key in (
        "mode",
        "reason",
        "driver_version",
        "proc_address",
        "entry_points",
        "batch_copy",
        "newer_driver",
    ):
        assert twin[key] == real[key], key
