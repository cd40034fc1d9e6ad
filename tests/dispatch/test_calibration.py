"""Where costs come from: files of calibrations, good, stale, foreign and broken; and the fit."""

import bisect
import itertools
import json
import logging
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.device.tuning import DEFAULT_TUNING, SIMULATED_TUNING, Tuning
from numba_swap.dispatch import calibration
from numba_swap.dispatch.calibration import (
    Key,
    costs_from,
    fill_peer_routes,
    find_costs,
    key_of,
    load_document,
    path_of,
    reference_costs,
    routes_as_json,
    shipped_document,
    shipped_files,
    use_costs,
)
from numba_swap.dispatch.cost_model import CostModel, ModeCost, SharedCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import (
    CLASSES,
    OWN_ROUTES,
    PEER_ROUTES,
    ROUTES,
    ROW_EDGES,
    Workload,
    uniform_workload,
)
from numba_swap.driver.calls import Driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.gpu import SimulatedGPU
from numba_swap.errors import CalibrationError
from numba_swap.tools import cli
from numba_swap.tools.bench import calibrate as measuring
from numba_swap.tools.bench.costs.fit import TimedSwap, fit_cost
from numba_swap.tools.bench.costs.found import Calibration, format_calibration
from numba_swap.tools.bench.costs.measure import FULL, CostGrid
from numba_swap.tools.bench.gpu import BenchGPU

KIB, MIB = 1 << 10, 1 << 20


def made_cost(start):
    return ModeCost(start, 2.0, (1.0, 2.0, 3.0, 4.5), (40.0, 30.0, 20.0, 10.25), 8.0)


def modes_on(route):
    """The modes that are measured on a route, the one that uses least of the machine first."""
    return (Mode.LOOP, Mode.BATCH, Mode.STAGED if "pageable" in route else Mode.KERNEL)


def made_costs():
    """Costs of which no two are equal, the kernel missing where it cannot run."""
    routes = {}
    for i, route in enumerate(OWN_ROUTES):
        routes[route] = {mode: made_cost(10.0 * i + j) for j, mode in enumerate(modes_on(route))}
    fill_peer_routes(routes)
    shared = {("h2d", 2): SharedCost(0.3, 40.0, 18.5), ("d2h odd boxes", 0): SharedCost(0.1, 0, 1)}
    return CostModel(routes, "made up", shared=shared)


def made_document(key):
    return measuring._document(key._asdict(), made_costs(), [])


class RealLooking(SimulatedLibrary):
    """A simulated library that says it is not: for the logic around real ones."""

    simulated = False

    def __init__(self, version=(13, 0), **others):
        super().__init__(ns.DriverVersion(*version), **others)
        self.path = "/nowhere/libcuda.so.580.65.06"


def simulated_gpu(driver, peer=None):
    """The GPU of a driver that says it is real."""
    return BenchGPU(driver, SimulatedGPU(driver), peer)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """No test here looks into the user's cache."""
    monkeypatch.setenv(calibration.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def simulated_reference():
    """The shipped costs, with the figures for kernels that run in Python."""
    return reference_costs()._replace(tuning=SIMULATED_TUNING)


def device_of(driver):
    """The first GPU of a driver."""
    return devices_of(driver)[0]


@pytest.fixture
def driver():
    driver = Driver(RealLooking())
    driver.current_context()
    return driver


def store(of, **changes):
    """Store a calibration, as of this driver but for the changes of its key."""
    key = key_of(device_of(of))
    path = path_of(key)
    measuring._write(path, made_document(key._replace(**changes)))
    return path


# -- the folder ---------------------------------------------------------------------------------


def test_the_folder_is_what_the_environment_says(monkeypatch, tmp_path):
    both = {"NUMBA_SWAP_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/c"}
    assert calibration.cache_folder(both) == Path("/a/b")
    assert calibration.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/numba_swap")
    if sys.platform != "win32":
        elsewhere = {"LOCALAPPDATA": "/d", "XDG_CACHE_HOME": "/c"}
        assert calibration.cache_folder(elsewhere) == Path("/c/numba_swap")
    monkeypatch.setenv("HOME", str(tmp_path))
    nothing = {"NUMBA_SWAP_CACHE_DIR": "", "XDG_CACHE_HOME": ""}
    assert calibration.cache_folder(nothing) == tmp_path / ".cache" / "numba_swap"


def test_the_key_tells_device_driver_and_library(driver):
    assert key_of(device_of(driver)) == Key(
        "Simulated GPU", "CUDA 13.0, release 580.65.06", ns.__version__
    )
    assert path_of(key_of(device_of(driver))).name == "calibration_Simulated_GPU.json"
    weird = Key("../NVIDIA/H200 (MIG 1g)", "")
    assert path_of(weird).name == "calibration_NVIDIA_H200_MIG_1g.json"
    assert path_of(weird).parent == calibration.cache_folder()
    assert path_of(Key("(?)", "")).name == "calibration_unnamed.json"


# -- files that are read ------------------------------------------------------------------------


def test_what_was_stored_is_what_is_chosen_by(driver, caplog):
    path = store(driver)
    with caplog.at_level(logging.INFO, "numba_swap"):
        found = find_costs(device_of(driver))
    assert not caplog.records
    assert found.routes == made_costs().routes
    assert found.shared == made_costs().shared
    assert found.source.startswith("Simulated GPU, CUDA 13.0, release 580.65.06, measured 20")
    path.unlink()
    assert find_costs(device_of(driver)) is found  # looked up once a driver
    assert find_costs(device_of(Driver(RealLooking()))) is reference_costs()


def test_without_a_file_the_reference_counts(driver, caplog):
    with caplog.at_level(logging.INFO, "numba_swap"):
        assert find_costs(device_of(driver)) is reference_costs()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "no calibration of Simulated GPU: run numba-swap calibrate" in record.message


@pytest.mark.parametrize(
    "changes",
    [
        {"library": "0.0.1"},
        {"driver": "CUDA 12.8, release 570.1"},
        {"driver": "CUDA 13.0, release 580.65.07"},
        {"driver": "CUDA 13.0"},
        {"device": "Simulated-GPU"},  # the name of its file is the same
    ],
)
def test_stale_and_foreign_files_are_ignored_with_a_line(driver, caplog, changes):
    path = store(driver, **changes)
    with caplog.at_level(logging.INFO, "numba_swap"):
        assert find_costs(device_of(driver)) is reference_costs()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for words in ("calibration ignored", str(path), *changes.values(), *key_of(device_of(driver))):
        assert words in record.message
    assert path.exists()


def test_a_simulated_driver_always_gets_the_reference(caplog):
    simulated = Driver(SimulatedLibrary())
    simulated.current_context()
    store(simulated)
    with caplog.at_level(logging.INFO, "numba_swap"):
        assert find_costs(device_of(simulated)) == simulated_reference()
    assert not caplog.records


def test_other_costs_can_be_put_in_place_of_each_device():
    first, second = Driver(SimulatedLibrary(devices=2)), Driver(SimulatedLibrary())
    use_costs(devices_of(first)[1], made_costs())
    assert find_costs(devices_of(first)[1]) == made_costs()
    for other in (first, second):
        assert find_costs(device_of(other)) == simulated_reference()


# -- broken files -------------------------------------------------------------------------------

H2D = ("costs", "loop", "h2d")


def with_value(document, path, value):
    *way, last = path
    for name in way:
        document = document[name]
    document[last] = value


def without(document, path):
    *way, last = path
    for name in way:
        document = document[name]
    del document[last]


WRONG_VALUES = [
    (("schema",), "numba_swap calibration 1", "schema is 'numba_swap calibration 1', not"),
    (("schema",), 1, "schema is 1"),
    (("key",), "a GPU", "key is 'a GPU'"),
    (("key", "device"), None, "key.device is None"),
    (("date",), 20260101, "date is 20260101"),
    (("costs",), [], r"costs is \[\]"),
    (("costs", "warp"), {}, "costs.warp is no mode"),
    (("costs", "loop"), 7, "costs.loop is 7"),
    (("costs", "batch", "h2x"), {}, "costs.batch.h2x is no route"),
    (H2D, None, "costs.loop.h2d is None"),
    ((*H2D, "start_us"), "10", "costs.loop.h2d.start_us is '10'"),
    ((*H2D, "start_us"), math.nan, "costs.loop.h2d.start_us is nan"),
    ((*H2D, "start_us"), math.inf, "costs.loop.h2d.start_us is inf"),
    ((*H2D, "start_us"), -0.5, "costs.loop.h2d.start_us is -0.5"),
    ((*H2D, "start_us"), True, "costs.loop.h2d.start_us is True"),
    ((*H2D, "start_us"), 10**400, "costs.loop.h2d.start_us is 10"),
    ((*H2D, "full_blocks"), [], r"costs.loop.h2d.full_blocks is \[\]"),
    ((*H2D, "copy_us"), 1.0, "costs.loop.h2d.copy_us is 1.0"),
    ((*H2D, "copy_us"), [1.0] * 3, "costs.loop.h2d.copy_us has 3 values, not 4"),
    ((*H2D, "megabyte_us"), [1.0, None, 1.0, 1.0], "costs.loop.h2d.megabyte_us is None"),
]
WRONG_SHARES = [
    (("shared",), [], r"shared is \[\]"),
    (("shared", "h2x"), {}, "shared.h2x is no route"),
    (("shared", "h2d", "4"), {}, "shared.h2d.4 is no class of lengths"),
    (("shared", "h2d", "2"), 0.3, "shared.h2d.2 is 0.3, no object"),
    (("shared", "h2d", "2", "share"), 1.0, "shared.h2d.2.share is 1.0"),
    (("shared", "h2d", "2", "share"), -0.1, "shared.h2d.2.share is -0.1"),
    (("shared", "h2d", "2", "start_us"), math.nan, "shared.h2d.2.start_us is nan"),
    (("shared", "h2d", "2", "megabyte_us"), "18", "shared.h2d.2.megabyte_us is '18'"),
    (("shared", "h2d", "2", "rate"), 1.0, "shared.h2d.2.rate is not known"),
]
WRONG_FIGURES = [
    (("tuning",), None, "tuning is None, no object"),
    (("tuning",), [["link_blocks", 4]], "tuning is .*, no object"),
    (("tuning", "link_bricks"), 4, "tuning.link_bricks is no figure of this version"),
    (("tuning", ""), 4, "is no figure of this version"),
    *(
        (("tuning", name), value, rf"tuning\.{name} is {value!r}, no positive integer")
        for name in ("link_blocks", "group_bytes", "strands")
        for value in (0, -1, 4.0, 0.5, True, False, None, "4", math.nan, math.inf)
    ),
    *(
        (("tuning", name), value, rf"tuning\.{name} is {value!r}, no positive number")
        for name in ("unaligned_factor", "split_gain", "side_by_side_us")
        for value in (0, 0.0, -1.5, True, False, None, "1.0", math.nan, math.inf, 1e15)
    ),
    (("tuning", "staged_factor"), 10**400, "tuning.staged_factor is 10"),
    (("tuning", "link_threads"), [512], r"tuning.link_threads is \[512\], no positive integer"),
]
MISSING = [
    ("schema",),
    ("key",),
    ("key", "library"),
    ("date",),
    ("costs",),
    ("costs", "loop"),
    ("costs", "loop", "d2h pageable"),
    (*H2D, "start_us"),
    (*H2D, "fork_us"),
    (*H2D, "copy_us"),
    (*H2D, "megabyte_us"),
    (*H2D, "full_blocks"),
    ("shared", "h2d", "2", "share"),
]


def check_refused(driver, path, message, caplog, monkeypatch):
    """What `path` holds is an error to who asks for it, and a warning to who copies."""
    text = path.read_bytes()
    with pytest.raises(CalibrationError, match=message) as caught:
        load_document(path)
    assert str(path) in str(caught.value)
    with caplog.at_level(logging.INFO, "numba_swap"):
        assert find_costs(device_of(driver)) is reference_costs()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == f"calibration ignored: {caught.value}"
    # Calibrating anew says so too before it measures, and leaves the file as it is.
    monkeypatch.setattr(measuring, "current_driver", lambda: driver)
    monkeypatch.setattr(measuring, "SwapTimer", None)
    with pytest.raises(CalibrationError, match=message):
        measuring.calibrate()
    assert path.read_bytes() == text


@pytest.mark.parametrize(("where", "value", "message"), WRONG_VALUES + WRONG_SHARES + WRONG_FIGURES)
def test_a_wrong_value_is_named(driver, caplog, monkeypatch, where, value, message):
    path = store(driver)
    document = json.loads(path.read_text())
    with_value(document, where, value)
    path.write_text(json.dumps(document))
    check_refused(driver, path, message, caplog, monkeypatch)


@pytest.mark.parametrize("where", MISSING, ids=".".join)
def test_what_is_missing_is_named(driver, caplog, monkeypatch, where):
    path = store(driver)
    document = json.loads(path.read_text())
    without(document, where)
    path.write_text(json.dumps(document))
    check_refused(driver, path, rf"{'.'.join(where)} is missing", caplog, monkeypatch)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'"text"', b"1" * 5000],
    ids=["empty", "cut off", "no text", "list", "null", "string", "long number"],
)
def test_a_file_that_is_something_else(driver, caplog, monkeypatch, content):
    path = store(driver)
    path.write_bytes(content)
    check_refused(driver, path, "cannot be read|is no calibration", caplog, monkeypatch)


@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "endless", "nothing", "itself", "nested", "huge", "a name of lines"]
)
def test_whatever_lies_there_no_swap_fails_of_it(driver, caplog, kind):
    """It is told once, by the file's name, and the shipped figures are used."""
    path = path_of(key_of(device_of(driver)))
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("endless", "nothing", "itself"):
        path.symlink_to({"endless": "/dev/zero", "nothing": "not there", "itself": path}[kind])
    else:
        names = json.dumps(made_document(key_of(device_of(driver))))
        path.write_text(
            {
                "nested": "[" * 100_000,
                "huge": " " * (2 << 20),
                "a name of lines": names.replace('"loop"', '"lo\\n\\u001bop"'),
            }[kind]
        )
    with pytest.raises(CalibrationError) as caught:
        load_document(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    with caplog.at_level(logging.INFO, "numba_swap"):
        for _ in range(3):
            assert find_costs(device_of(driver)) is reference_costs()
    (record,) = caplog.records
    assert record.message == f"calibration ignored: {caught.value}"


def test_a_folder_that_cannot_be_written_is_told_before_measuring(driver, folder, monkeypatch):
    folder.write_text("a file")
    monkeypatch.setattr(measuring, "current_driver", lambda: driver)
    monkeypatch.setattr(measuring, "SwapTimer", None)
    with pytest.raises(CalibrationError, match="cannot be written"):
        measuring.calibrate()


def test_a_file_cut_off_anywhere_is_refused(driver):
    path = store(driver)
    text = path.read_text()
    for end in range(0, len(text) - 1, 97):
        path.write_text(text[:end])
        with pytest.raises(CalibrationError):
            load_document(path)


def test_a_key_that_says_more_is_read(driver):
    path = store(driver)
    document = json.loads(path.read_text())
    document["key"]["hostname"] = "here"
    path.write_text(json.dumps(document))
    assert find_costs(device_of(driver)).routes == made_costs().routes


def test_a_cost_that_says_more_is_read(driver):
    path = store(driver)
    document = json.loads(path.read_text())
    for cost in document["costs"]["loop"].values():
        cost["measured_in"] = "a cold room"
    path.write_text(json.dumps(document))
    assert find_costs(device_of(driver)).routes == made_costs().routes


# -- the other figures of the machine -------------------------------------------------------------


def store_tuning(driver, tuning):
    """Store a calibration with these figures, or without any; return its path."""
    path = store(driver)
    document = json.loads(path.read_text())
    del document["tuning"]
    path.write_text(json.dumps(document | ({} if tuning is None else {"tuning": tuning})))
    return path


def test_a_file_without_shares_gives_none(driver):
    path = store(driver)
    document = json.loads(path.read_text())
    del document["shared"]
    path.write_text(json.dumps(document))
    assert costs_from(load_document(path)).shared == {}


@pytest.mark.parametrize("tuning", [None, {}])
def test_a_file_without_figures_gives_the_defaults(driver, tuning):
    """Also one of a version that stored none."""
    path = store_tuning(driver, tuning)
    assert costs_from(load_document(path)).tuning == DEFAULT_TUNING
    assert find_costs(device_of(driver)).routes == made_costs().routes
    assert find_costs(device_of(driver)).tuning == device_of(driver).tuning == DEFAULT_TUNING


def test_every_figure_is_stored_and_read_again(driver):
    doubled = Tuning(*(2 * figure for figure in DEFAULT_TUNING))
    other = doubled._replace(device_blocks=DEFAULT_TUNING.device_blocks // 2)
    assert all(a != b for a, b in zip(other, DEFAULT_TUNING, strict=True))
    document = measuring._document(key_of(device_of(driver))._asdict(), made_costs(), [])
    assert document["tuning"] == DEFAULT_TUNING._asdict()
    store_tuning(driver, other._asdict())
    assert find_costs(device_of(driver)).tuning == device_of(driver).tuning == other
    some = {"link_blocks": 5, "split_gain": 1}  # a whole number is a factor too
    later = Driver(RealLooking())
    later.current_context()
    store_tuning(later, some)
    assert find_costs(device_of(later)).tuning == DEFAULT_TUNING._replace(**some)


@pytest.fixture
def in_use(driver, monkeypatch):
    """A driver that says it is real, in place of the one of this machine."""
    from numba_swap.driver import current
    from numba_swap.modes.kernel import loading
    from numba_swap.modes.kernel.compilers import simulator

    monkeypatch.setattr(
        loading, "_compile", lambda _, name: simulator.register(driver.library, name)
    )
    monkeypatch.setattr(current, "_default", driver)
    return driver


def choice_by(driver, tuning, costs, nbytes=64, **how):
    """What is chosen for 16 blocks, host to device, by a file with these costs and figures."""
    key = key_of(device_of(driver))
    made = CostModel(dict.fromkeys(ROUTES, costs), "made up")
    measuring._write(
        path_of(key), measuring._document(key._asdict(), made, []) | {"tuning": tuning}
    )
    device_of(driver).costs = None  # as in another process
    gpu = SimulatedGPU(driver)
    src, dst = gpu.pinned_array((32, nbytes), np.uint8), gpu.device_array((32, nbytes), np.uint8)
    return ns.plan_blocks(src, dst, [[2 * i, 30 - 2 * i] for i in range(16)]).explain(**how)


def flat_cost(us, fork_us=0.0, megabyte_us=0.0, full_blocks=0.0):
    return ModeCost(us, fork_us, (0.0,) * 4, (megabyte_us,) * 4, full_blocks)


SLOW = flat_cost(1e6)
# 10 us for the 16 x 64 bytes, with 8 thread blocks or more, to aligned addresses.
BY_BYTES = flat_cost(0.0, megabyte_us=1e7 / 1024, full_blocks=8.0)


@pytest.mark.parametrize(
    ("batch", "kernel", "what", "before", "tuning", "after"),
    [
        (
            flat_cost(12),
            flat_cost(10),
            {"policy": "overlap"},
            "batch",
            {"overlap_patience": 1.1},
            "kernel",
        ),
        (flat_cost(20), BY_BYTES, {"policy": "overlap"}, "batch", {"overlap_blocks": 8}, "kernel"),
        (flat_cost(20), BY_BYTES, {"max_blocks": 8}, "kernel", {"overlap_blocks": 1}, "kernel"),
        (flat_cost(11.5), BY_BYTES, {"nbytes": 68}, "batch", {"unaligned_factor": 1}, "kernel"),
        (flat_cost(11.5), BY_BYTES, {"nbytes": 68}, "batch", {"odd_factor": 1}, "batch"),
        (flat_cost(15), BY_BYTES, {"nbytes": 67}, "batch", {"odd_factor": 1.1}, "kernel"),
        (flat_cost(9, 9), BY_BYTES, {}, "batch", {"fewest_bytes_for_streams": 1024}, "kernel"),
        (flat_cost(9, 9), BY_BYTES, {}, "batch", {"fewest_bytes_for_streams": 1025}, "batch"),
        (
            flat_cost(9, 9),
            BY_BYTES,
            {},
            "batch",
            {"fewest_bytes_for_streams": 1024, "fewest_copies_a_stream": 9},
            "batch",
        ),
        (
            flat_cost(9, 9),
            BY_BYTES,
            {},
            "batch",
            {"fewest_bytes_for_streams": 1024, "batch_streams": 1},
            "batch",
        ),
    ],
)
def test_figures_of_a_file_take_effect(in_use, batch, kernel, what, before, tuning, after):
    costs = {Mode.LOOP: SLOW, Mode.BATCH: batch, Mode.KERNEL: kernel}
    assert choice_by(in_use, {}, costs, **what).mode == before
    assert choice_by(in_use, tuning, costs, **what).mode == after
    assert device_of(in_use).tuning == DEFAULT_TUNING._replace(**tuning)


@pytest.mark.parametrize("case", ["a folder", "below a file", "name too long", "no home"])
def test_places_that_cannot_be_read_stop_no_copy(driver, monkeypatch, tmp_path, case):
    path = path_of(key_of(device_of(driver)))
    if case == "a folder":
        path.mkdir(parents=True)
    elif case == "below a file":
        path.parent.write_text("")
    elif case == "name too long":
        monkeypatch.setenv(calibration.CACHE_VARIABLE, str(tmp_path / ("x" * 300)))
    else:

        def homeless():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv(calibration.CACHE_VARIABLE)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", homeless)
        with pytest.raises(CalibrationError, match="Set NUMBA_SWAP_CACHE_DIR"):
            calibration.cache_folder({})
    assert find_costs(device_of(driver)) is reference_costs()


# -- files that are written ---------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(driver, folder, monkeypatch):
    path = store(driver)
    before = path.read_bytes()

    class Unwritable:
        pass

    document = made_document(key_of(device_of(driver)))
    document["measured"] = [1, 2, Unwritable()]
    with pytest.raises(TypeError):
        measuring._write(path, document)
    assert path.read_bytes() == before
    assert os.listdir(folder) == [path.name]

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CalibrationError, match=r"calibration_.* cannot be written: .*No space"):
        measuring._write(path, made_document(key_of(device_of(driver))))
    assert path.read_bytes() == before
    assert os.listdir(folder) == [path.name]


def test_a_folder_that_cannot_be_made_is_told(driver, folder):
    folder.write_text("a file")
    with pytest.raises(CalibrationError, match="cannot be written"):
        store(driver)


def test_costs_survive_json():
    document = made_document(Key("a GPU", "CUDA 13.0"))
    again = json.loads(json.dumps(document))
    calibration._check(again)
    assert costs_from(again).routes == made_costs().routes
    own = {route: costs_from(again).routes[route] for route in OWN_ROUTES}
    assert routes_as_json(own) == document["costs"]


@pytest.mark.parametrize("name", shipped_files())
def test_what_is_shipped_are_calibrations(name):
    document = shipped_document(name)
    calibration._check(document)
    device = document["key"]["device"]
    found = reference_costs(device)
    assert found.source.startswith(device)
    if name == calibration.REFERENCE:
        assert device == "NVIDIA H200"
        assert found is reference_costs() is reference_costs("another GPU")
    else:
        assert name == path_of(Key(device, "")).name.removeprefix("calibration_")
    assert set(found.routes) == set(ROUTES)
    for route, costs in found.routes.items():
        assert tuple(costs) == modes_on(route)
        for mode, cost in costs.items():
            assert (cost.full_blocks > 0) == (mode is Mode.KERNEL)
    assert document["measured"]


# -- calibrating --------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A grid of few short swaps, which a simulated kernel does in time."""
    boxes = ((2, 2, 4), (2, 2, 8)), (1, 2)
    grid = CostGrid((64, 256), (1, 2), 2 * KIB, 2 * KIB, *boxes, 1, 1, longest_us=math.inf)
    monkeypatch.setattr(measuring, "FULL", grid)
    monkeypatch.setattr(measuring, "SIMULATED", grid)


def test_on_a_simulated_driver_nothing_is_stored_and_the_command_says_so(folder, small, capsys):
    with ns.simulate() as gpu:
        assert cli.main(["calibrate", "--no-store"]) == 0
        output = capsys.readouterr().out
        seen = []
        found = ns.calibrate(progress=seen.append)
        assert find_costs(device_of(gpu.driver)) == simulated_reference()
    assert found.simulated
    assert found.path is None
    assert not folder.exists()
    assert "The driver is simulated: this measures nothing about a GPU, and is not stored" in output
    assert "Stored in" not in output
    lines = output.splitlines()
    measured = {
        tuple(re.match(r"(.+? (?:batch|loop|kernel|staged)) ", line)[1].split())
        for line in lines
        if line.startswith(("h2d", "d2"))
    }
    assert measured == {(*route.split(), mode) for route in OWN_ROUTES for mode in modes_on(route)}
    # 5 routes of 2 lengths and 2 counts; no kernel where memory is pageable. 6 of boxes.
    assert len(found.cells) == 4 * (3 * 3 + 2 * 3) + 4 * 6 * 3
    assert [progress.done for progress in seen] == list(range(20 + 24))
    assert {progress.total for progress in seen} == {44}


def test_what_is_measured_is_stored_and_used_from_now_on(in_use, folder, small, monkeypatch, tune):
    """On a simulated driver that says it is real: the way from the bench to the file."""
    driver = in_use
    monkeypatch.setattr(measuring, "gpu_of", simulated_gpu)
    tune(link_blocks=2, link_blocks_short=2, link_threads=32, device_threads=32)
    before = find_costs(device_of(driver))
    assert before.routes is reference_costs().routes
    gpu = SimulatedGPU(driver)
    src, dst = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
    plan = ns.plan_blocks(src, dst, [[0, 1], [2, 3]])
    assert "NVIDIA H200" in plan.explain().costs_source
    with (
        ns.override(driver_version=(12, 4)),
        pytest.raises(CalibrationError, match=r"treated as 12\.4"),
    ):
        ns.calibrate()
    assert not folder.exists()
    found = ns.calibrate()
    assert found.path == path_of(key_of(device_of(driver)))
    assert find_costs(device_of(driver)) is found.costs
    assert plan.explain().costs_source == found.costs.source
    assert found.before is before
    later = Driver(RealLooking())
    later.current_context()
    assert find_costs(device_of(later)).routes == found.costs.routes
    threads = before.tuning.threads(None)  # as many as it was measured with
    figures = before.tuning._replace(host_threads=threads)
    assert find_costs(device_of(later)).tuning == found.costs.tuning == figures
    assert device_of(later).tuning == figures != DEFAULT_TUNING
    document = load_document(found.path)
    assert len(document["measured"]) == len(found.cells) > 0
    ns.calibrate()  # over the file of the first


def test_without_storing_only_this_process_chooses_by_it(driver, folder, monkeypatch):
    class Timer:
        def __init__(self, gpu, grid):
            pass

        def measure(self, swap):
            load = uniform_workload("h2d", swap.number, swap.size)
            return [TimedSwap(mode, load, 10.0 * i) for i, mode in enumerate(modes_on("h2d"), 1)]

        def full_blocks(self, direction):
            return 4.0

    monkeypatch.setattr(measuring, "SwapTimer", Timer)
    monkeypatch.setattr(measuring, "FULL", CostGrid((64,), (2,), 128, 0, (), ()))
    monkeypatch.setattr(measuring, "gpu_of", simulated_gpu)
    monkeypatch.setattr(measuring, "current_driver", lambda: driver)
    found = ns.calibrate(store=False)
    assert found.path is None
    assert not folder.exists()
    assert find_costs(device_of(driver)) is found.costs
    workload = uniform_workload("h2d", 2, 64)
    assert {
        mode: cost.predict_us(workload) for mode, cost in found.costs.routes["h2d"].items()
    } == {
        mode: pytest.approx(us, rel=1e-3)
        for mode, us in zip(modes_on("h2d"), (10.0, 20.0, 30.0), strict=True)
    }
    threads = DEFAULT_TUNING.threads(None)
    assert found.costs.tuning == DEFAULT_TUNING._replace(host_threads=threads)
    # What was not measured at all is taken from the reference.
    assert found.costs.routes["d2h pageable"] == reference_costs().routes["d2h pageable"]


# -- the fit ------------------------------------------------------------------------------------

TRUTH = ModeCost(21.0, 33.0, (1.5, 1.6, 0.4, 0.2), (40.0, 25.0, 19.0, 18.0))


def made_cells(mode, cost, rng=None, sizes=FULL.sizes):
    """Cells as a bench makes them, exact or with noise of one per cent and half a microsecond."""
    cells = []
    for size in sizes:
        for count in FULL.counts:
            if size * count <= FULL.most_bytes:
                load = uniform_workload("h2d", count, size)
                forked = mode is Mode.BATCH and load.nbytes >= MIB and count >= 8
                us = cost.predict_us(load, forked=forked)
                if rng is not None:
                    us = us * (1 + 0.01 * rng.standard_normal()) + 0.5 * rng.random()
                cells.append(TimedSwap(mode, load, us))
    return cells


@pytest.mark.parametrize("mode", list(Mode))
def test_known_costs_of_boxes_are_found_again(mode):
    """The time of a call counts, but for the kernel, which makes none."""
    truth = ModeCost(20.0, 0.0, (0.01, 0.008, 0.011, 0.003), (1.0, 3.0, 5.0, 18.0), 0.0, 3.2)
    cells = []
    for number, rows, nbytes in itertools.product(range(4), (64, 4096), (96, 256, 600, 2048)):
        count = 4**number
        term = (bisect.bisect_right(ROW_EDGES, nbytes), count * rows, count * rows * nbytes)
        load = Workload("h2d boxes", (term,), count, term[2], 0, count)
        free = truth._replace(call_us=0.0) if mode is Mode.KERNEL else truth
        cells.append(TimedSwap(mode, load, free.predict_us(load)))
    for row_bytes in (64, 200, 500, 4096):  # a second length of each class
        term = (bisect.bisect_right(ROW_EDGES, row_bytes), 1024, 1024 * row_bytes)
        load = Workload("h2d boxes", (term,), 4, term[2], 0, 4)
        cells.append(TimedSwap(mode, load, free.predict_us(load)))
    fitted = fit_cost(cells)
    assert fitted.call_us == pytest.approx(0.0 if mode is Mode.KERNEL else 3.2, abs=0.01)
    for cell in cells:
        assert fitted.predict_us(cell.load) == pytest.approx(cell.measured_us, rel=0.01)


@pytest.mark.parametrize("mode", list(Mode))
def test_known_costs_are_found_again(mode):
    fork_us = TRUTH.fork_us if mode is Mode.BATCH else 0.0
    fitted = fit_cost(made_cells(mode, TRUTH), full_blocks=5.5)
    assert fitted.start_us == pytest.approx(TRUTH.start_us, abs=0.01)
    assert fitted.fork_us == pytest.approx(fork_us, abs=0.01)
    assert fitted.copy_us == pytest.approx(TRUTH.copy_us, abs=0.001)
    assert fitted.megabyte_us == pytest.approx(TRUTH.megabyte_us, abs=0.01)
    assert fitted.full_blocks == 5.5


def test_known_costs_are_found_again_through_noise(rng):
    cells = made_cells(Mode.BATCH, TRUTH, rng)
    fitted = fit_cost(cells)
    for mode, load, _ in cells:
        forked = load.nbytes >= MIB and load.copies >= 8
        predicted, true = (cost.predict_us(load, forked=forked) for cost in (fitted, TRUTH))
        assert predicted == pytest.approx(true, rel=0.03), (mode, load)


def test_no_cost_is_negative(rng):
    """Where nothing but noise is left, the answer is 0, not a gain."""
    flat = ModeCost(30.0, 0.0, (0.0,) * 4, (0.0,) * 4)
    fitted = fit_cost(made_cells(Mode.LOOP, flat, rng))
    assert min(fitted.start_us, fitted.fork_us, *fitted.copy_us, *fitted.megabyte_us) >= 0
    assert fitted.start_us == pytest.approx(30, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "taken_from"),
    [
        ((512, 2 * KIB), (0, 0, 0, 0)),
        ((256 * KIB, MIB), (3, 3, 3, 3)),
        ((512, 2 * KIB, 256 * KIB, MIB), (0, 0, 3, 3)),
        ((4 * KIB, 12 * KIB, 32 * KIB, 96 * KIB), (1, 1, 2, 2)),
    ],
)
def test_classes_that_were_not_measured_are_like_their_neighbours(sizes, taken_from):
    fitted = fit_cost(made_cells(Mode.LOOP, TRUTH, sizes=sizes))
    assert len(fitted.copy_us) == len(fitted.megabyte_us) == CLASSES
    for i, j in enumerate(taken_from):
        assert fitted.copy_us[i] == pytest.approx(TRUTH.copy_us[j], abs=0.001)
        assert fitted.megabyte_us[i] == pytest.approx(TRUTH.megabyte_us[j], abs=0.01)


def flat_costs(loop, batch, kernel):
    flat = {
        mode: ModeCost(us, 0.0, (0.0,) * 4, (0.0,) * 4)
        for mode, us in zip(modes_on("h2d"), (loop, batch, kernel), strict=True)
    }
    return CostModel(dict.fromkeys(ROUTES, flat), "made up")


def test_regret_and_gain():
    """Two swaps; the costs before chose the batch for both, those now the loop."""
    one, two = uniform_workload("h2d", 1, 64), uniform_workload("h2d", 100, 64)
    cells = (
        TimedSwap(Mode.LOOP, one, 10.0),
        TimedSwap(Mode.BATCH, one, 40.0),
        TimedSwap(Mode.LOOP, two, 90.0),
        TimedSwap(Mode.BATCH, two, 30.0),
    )
    # The kernel would be chosen, but was not measured.
    before, now = flat_costs(9.0, 5.0, 1.0), flat_costs(5.0, 9.0, 1.0)
    found = Calibration(now, cells, before, None, 1.0, False)
    # With the 1.0 that stands for "nothing to regret" where nothing was measured.
    assert found.regret(before) == (pytest.approx((1 * 4 * 1) ** (1 / 3)), 4.0)
    assert found.regret(now) == (pytest.approx((1 * 1 * 3) ** (1 / 3)), 3.0)
    assert found.gain == pytest.approx((4 / 3) ** (1 / 3))
    equal = Calibration(flat_costs(1, 1, 1), cells, before, None, 1.0, False)
    assert equal.regret(equal.costs)[1] == 3.0  # of equal ones the loop, as `rank` has it


def test_errors_are_ratios_of_predicted_to_measured():
    loads = [uniform_workload("d2h", count, 64) for count in (1, 2, 3)]
    cells = tuple(
        TimedSwap(Mode.LOOP, load, us) for load, us in zip(loads, (10.0, 5.0, 40.0), strict=True)
    )
    found = Calibration(flat_costs(10, 1, 1), cells, flat_costs(1, 1, 1), None, 1.0, 0)
    assert found.errors() == {("d2h", Mode.LOOP): (1.0, 0.25)}


def test_a_table_can_be_printed_of_any_fit():
    """Also where the fit found that long copies cost nothing but their start."""
    cells = [TimedSwap(Mode.LOOP, uniform_workload("h2d", 1, 64), 10.0)]
    costs = flat_costs(10.0, 10.0, 10.0)
    found = Calibration(costs, tuple(cells), costs, Path("there"), 1.0, False)
    text = format_calibration(found)
    assert "1 swaps measured" in text
    assert "Stored in there." in text
    assert "simulated" not in text


# -- several GPUs -------------------------------------------------------------------------------


def test_pairs_are_measured_if_that_is_asked_for(small, capsys):
    links = [[False, "NVLink", "PCIe"], ["NVLink", False, "PCIe"], ["PCIe", "PCIe", False]]
    with ns.simulate(devices=3, peer_access=links) as gpu:
        alone = ns.calibrate()
        assert alone.others == ()
        assert gpu.library.active_devices == {0}  # of those of one name one is enough
        steps = []
        found = ns.calibrate(pairs=True, progress=steps.append)
        assert cli.main(["calibrate", "--no-store", "--pairs"]) == 0
    assert [other.what for other in found.others] == [
        "Simulated GPU from Simulated GPU, NVLink",
        "Simulated GPU from Simulated GPU, PCIe",
    ]
    for other in found.others:
        assert {cell.load.route for cell in other.cells} == set(PEER_ROUTES)
        assert other.costs.routes["h2d"] == found.costs.routes["h2d"]
        assert other.costs.routes["p2p"] != reference_costs().routes["p2p"]
        assert set(other.costs.routes["p2p"]) == set(modes_on("p2p"))
    assert set(found.costs.peers) == {"Simulated GPU, NVLink", "Simulated GPU, PCIe"}
    assert {step.what.split(",")[0] for step in steps} >= {str(ns.Direction.P2P)}
    report = capsys.readouterr().out
    assert "Simulated GPU from Simulated GPU, PCIe:" in report
    assert "p2p odd boxes" in report


def test_a_calibration_of_the_second_gpu_uses_that(small):
    with ns.simulate(devices=2) as gpu:
        devices = devices_of(gpu.driver)
        with gpu.driver.activate(devices[1].primary_context):
            ns.calibrate()
        assert gpu.library.active_devices == {1}
        assert gpu.driver.probe(0)[0] == 0


def test_costs_of_pairs_are_kept_by_their_kind(folder):
    links = [[False, "NVLink", "PCIe"], ["NVLink", False, "PCIe"], ["PCIe", "PCIe", False]]
    driver = Driver(RealLooking(devices=3, peer_access=links))
    driver.current_context()
    devices = devices_of(driver)
    assert calibration.pair_key(devices[0], devices[2]) == "Simulated GPU, PCIe"
    measured = {route: {mode: made_cost(7.0) for mode in Mode} for route in PEER_ROUTES}
    costs = made_costs()._replace(peers={"Simulated GPU, PCIe": measured})
    measuring._write(
        path_of(key_of(devices[0])), measuring._document(key_of(devices[0])._asdict(), costs, [])
    )
    over_nvlink, over_pcie = (
        calibration.costs_between(devices[0], devices[peer]) for peer in (1, 2)
    )
    assert over_nvlink.routes["p2p"] == reference_costs().routes["p2p"]
    assert over_nvlink.source_of("p2p") == reference_costs().peers_source
    assert over_pcie.routes["p2p"] == measured["p2p"]
    assert over_pcie.source_of("p2p").endswith("between GPUs: Simulated GPU, PCIe")
    assert over_pcie.routes["h2d"] == over_nvlink.routes["h2d"] == costs.routes["h2d"]
    # Always the same, until the GPU gets other costs.
    assert calibration.costs_between(devices[0], devices[2]) is over_pcie
    use_costs(devices[0], costs._replace(peers={}))
    assert calibration.costs_between(devices[0], devices[2]).routes["p2p"] != measured["p2p"]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "pairs is \\[\\], no object"),
        ({"some": {}}, "pairs.some.loop is missing"),
        ({"some": {"loop": {}}}, "pairs.some.loop.p2p is missing"),
        ({"some": {"loop": {"p2p": {}}}}, "pairs.some.loop.p2p.start_us is missing"),
        ({"some": {"loop": {"p2p": 1}, "lop": {}}}, "no object|is no mode"),
    ],
)
def test_costs_of_pairs_that_are_none(driver, pairs, words):
    document = made_document(key_of(device_of(driver)))
    document["pairs"] = pairs
    path = path_of(key_of(device_of(driver)))
    measuring._write(path, document)
    with pytest.raises(CalibrationError, match=words):
        load_document(path)


def test_files_of_before_there_were_pairs_are_read(driver):
    document = made_document(key_of(device_of(driver)))
    del document["pairs"]
    measuring._write(path_of(key_of(device_of(driver))), document)
    costs = find_costs(device_of(driver))
    assert costs.source.startswith("Simulated GPU")
    assert costs.routes["p2p"] == reference_costs().routes["p2p"]
    assert (
        costs.routes["p2p boxes"] == costs.routes["d2d boxes"] == made_costs().routes["d2d boxes"]
    )
