"""What a user may ask of A/B timing, as text, and what is said of bad input."""

import itertools

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.tools.bench.ab.measure.sampling import Method, settled
from numba_swap.tools.bench.ab.spec.arms import OPTIONS, Arm, parse_arms
from numba_swap.tools.bench.ab.spec.cases import (
    Case,
    cases_of_mapping,
    make_cases,
    random_mapping,
    read_mapping,
)
from numba_swap.tools.bench.ab.spec.grids import GRIDS, cells_of_grid
from numba_swap.tools.bench.machine import parse_clocks
from numba_swap.tools.units import (
    format_bytes,
    format_ns,
    parse_bytes,
    parse_count,
    parse_percent,
)

# -- arms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "values"),
    [
        ("kernel:max_blocks=8", "run", {"max_blocks": 8}),
        ("auto:driver_version=12.4", "override", {"driver_version": ns.DriverVersion(12, 4)}),
        ("batch:batch_descriptors=64", "override", {"batch_descriptors": 64}),
        ("loop:fresh", "timing", {"fresh": True}),
        ("auto:plant=5%", "timing", {"plant": 0.05}),
        ("contiguous:plant=0.005", "timing", {"plant": 0.005}),
        ("loop", "run", {}),
    ],
)
def test_arms_are_read(text, where, values):
    arm = Arm.parse(text)
    assert arm.values(where) == values
    assert all(arm.values(other) == {} for other in {"run", "override", "timing"} - {where})
    assert Arm.parse(str(arm)) == arm


def test_an_arm_is_written_in_one_way():
    assert str(Arm.parse(" auto: fresh, max_blocks = 4")) == "auto:max_blocks=4,fresh"
    assert Arm.parse("auto:fresh,max_blocks=4") == Arm.parse("auto:max_blocks=4,fresh")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "warp",
            "'warp' is no arm: choose of auto, kernel, batch, loop, staged, contiguous",
        ),
        ("", "'' is no arm"),
        ("loop:max_blocks=8", "loop has no option 'max_blocks'; it has driver_version, fresh"),
        ("contiguous:fresh", "contiguous has no option 'fresh'$"),
        ("kernel:max_blocks", "max_blocks needs a value"),
        ("kernel:max_blocks=0", "max_blocks: '0' is no positive number"),
        ("kernel:fresh=1", "fresh takes no value"),
        ("kernel:fresh,fresh", "fresh is given twice"),
        ("kernel:", "an option is missing"),
        ("auto:driver_version=580.1", "driver_version: '580.1' is not a driver version"),
        ("auto:plant=nan", "plant: 'nan' is no fraction"),
        ("auto:plant=0", "plant: '0' is no fraction"),
    ],
)
def test_what_is_no_arm(text, message):
    with pytest.raises(ns.BadArgumentError, match=message):
        Arm.parse(text)


def test_the_same_arm_twice():
    with pytest.raises(ns.BadArgumentError, match="auto:max_blocks=4,fresh is given twice"):
        parse_arms(["auto:fresh,max_blocks=4", "loop", "auto:max_blocks=4,fresh"])


def test_messages_do_not_advertise_the_planted_slowdown():
    assert not OPTIONS["plant"].listed
    with pytest.raises(ns.BadArgumentError) as caught:
        Arm.parse("auto:nothing=1")
    assert "plant" not in str(caught.value)


# -- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("512", 512), ("8K", 8192), ("8KiB", 8192), ("1mib", 1 << 20), (" 2 GiB ", 2 << 30)],
)
def test_sizes(text, nbytes):
    assert parse_bytes(text, short=True) == nbytes
    assert parse_bytes(format_bytes(nbytes)) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5K", "8kB", "KiB"])
def test_what_is_no_size(text):
    with pytest.raises(ns.BadArgumentError, match="is no size"):
        parse_bytes(text, short=True)


def test_numbers_and_fractions():
    assert parse_count("16384") == 16384
    assert parse_percent("2.5%") == 0.025
    for text in ("-1", "1e3", ""):
        with pytest.raises(ns.BadArgumentError, match="is no positive number"):
            parse_count(text)
    with pytest.raises(ns.BadArgumentError, match="is no fraction"):
        parse_percent("101%")


def test_times_are_written_with_few_digits():
    values = (950, 17_040, 1_234_567, 2.5e9, 999.6e3, 1999e9)
    assert [format_ns(value) for value in values] == [
        *("950 ns", "17 us", "1.23 ms", "2.5 s", "1000 us", "1999 s")
    ]


# -- cases --------------------------------------------------------------------------------------


def test_every_combination_is_a_case():
    cases = make_cases(["h2d", "d2h"], [512, 8192], [64, 16], ["pinned", "pageable"], ["warm"])
    assert len(cases) == 16
    assert [case.count for case in cases[:2]] == [16, 64]  # rising, for arms that are too slow
    assert len({str(case) for case in cases}) == 16


def test_within_a_device_there_is_no_host_memory():
    (case,) = make_cases(["d2d"], [512], [16], ["pinned", "pageable"])
    assert case.memory == "device"


def test_span_holds_twice_the_blocks():
    (narrow,) = make_cases(["h2d"], [1000], [64], span_bytes=1)
    (wide,) = make_cases(["h2d"], [1000], [64], span_bytes=1 << 20)
    assert narrow.span_bytes == 128_000
    assert wide.span_bytes == 1048 * 1000  # whole blocks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["up"], [1], [1]), "'up' is none of h2d, d2h, d2d"),
        ((["h2d"], [0], [1]), "0 is no positive number"),
        ((["h2d"], [1], [1], ["texture"]), "'texture' is none of pinned"),
        ((["h2d"], [1], [1], ["pinned"], ["hot"]), "'hot' is none of warm, cold"),
        ((["h2d"], [1], [1], ["pinned"], ["warm"], -1), "seed=-1 is negative"),
    ],
)
def test_bad_cases(arguments, message):
    with pytest.raises(ns.BadArgumentError, match=message):
        make_cases(*arguments)


def test_random_blocks_are_no_neighbours_and_come_from_the_seed():
    case = Case("h2d", 512, 1000, seed=5, span_bytes=512 * 4000)
    mapping = random_mapping(case)
    assert mapping.shape == (1000, 2)
    assert (mapping < case.blocks).all()
    for column in mapping.T:
        assert np.diff(np.sort(column)).min() >= 2
    assert not np.array_equal(mapping[:, 0], mapping[:, 1])
    assert np.array_equal(mapping, random_mapping(case))
    other = Case("h2d", 512, 1000, seed=6, span_bytes=512 * 4000)
    assert not np.array_equal(mapping, random_mapping(other))


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".csv"])
def test_a_mapping_from_a_file(tmp_path, suffix):
    path = tmp_path / f"mapping{suffix}"
    rows = np.array([[17, 0], [3000, 1], [5, 2]])
    if suffix == ".npy":
        np.save(path, rows.astype(np.uint16))
    else:
        np.savetxt(path, rows, fmt="%d", delimiter="," if suffix == ".csv" else " ")
    mapping = read_mapping(path)
    assert mapping.tolist() == rows.tolist()
    (case,) = cases_of_mapping(make_cases(["h2d"], [512], [7, 8]), mapping, path.name)
    assert (case.count, case.span_bytes, case.mapping_name) == (3, 3001 * 512, path.name)
    other = cases_of_mapping(make_cases(["h2d"], [512], [7]), mapping[::-1].copy(), path.name)
    assert other[0] != case  # other rows under the same name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not that of rows"),
        ("1 2 3\n4 5 6\n", "is not that of rows"),
        ("1 2\n3\n", "mapping.txt: "),
        ("1 2.5\n", "mapping.txt: "),
        ("1 x\n", "mapping.txt: "),
        ("1 -2\n", "-2 is no block"),
        ("1 2\n3 2\n", "written twice"),
    ],
)
def test_a_bad_mapping(tmp_path, text, message):
    path = tmp_path / "mapping.txt"
    path.write_text(text)
    with pytest.raises(ns.BadArgumentError, match=message):
        read_mapping(path)


def test_a_mapping_that_is_not_there(tmp_path):
    with pytest.raises(ns.BadArgumentError, match=r"none\.npy"):
        read_mapping(tmp_path / "none.npy")


# -- grids, method, clocks ----------------------------------------------------------------------


def test_the_full_grid_is_the_one_promised():
    cells, large = cells_of_grid("full")
    grid = GRIDS["full"]
    sizes = {cell.case.block_bytes for cell in cells}
    counts = {cell.case.count for cell in cells}
    assert (min(sizes), max(sizes), min(counts), max(counts)) == (512, 1 << 20, 16, 16384)
    assert {cell.case.direction for cell in cells} == {"h2d", "d2h", "d2d"}
    assert len(cells) + len(large) == 3 * len(grid.sizes) * len(grid.counts)
    assert all("more than the limit" in reason for _, reason in large)
    assert all(case.nbytes > grid.most_bytes for case, _ in large)
    names = {arm.name for cell in cells for arm in cell.arms}
    assert names == {"auto", "kernel", "batch", "loop", *grid.peers, "contiguous"}
    assert all({"kernel", "batch", "loop"} <= {a.name for a in cell.arms} for cell in cells)


def test_counts_rise_within_each_block_size():
    cells, _ = cells_of_grid("full")
    for one, other in itertools.pairwise(cells):
        same = (one.case.direction, one.case.block_bytes) == (
            other.case.direction,
            other.case.block_bytes,
        )
        assert not same or one.case.count < other.case.count


def test_a_grid_that_is_not_there():
    with pytest.raises(ns.BadArgumentError, match="'huge' is no grid: choose of full, tiny"):
        cells_of_grid("huge")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 19}, "rounds=19 is too few: an interval needs at least 20"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"sample_ns": 0}, "a time limit is not positive"),
    ],
)
def test_a_bad_method(values, message):
    with pytest.raises(ns.BadArgumentError, match=message):
        Method(**values)


def test_when_a_warm_up_has_settled():
    assert not settled([100] * 5)
    assert settled([100] * 6)
    assert settled([900, 500, 100, 101, 100, 100, 101, 100])
    assert not settled([106, 105, 104, 103, 102, 101])
    assert settled([100, 100, 100, 100, 900, 101])  # one outlier


def test_clocks_as_nvidia_smi_tells_them():
    assert parse_clocks("1980, 2619, 31, 118.45\n1980, 2619, 30, 99\n") == {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "temperature_c": 31.0,
        "power_w": 118.45,
    }
    assert parse_clocks("1980, [N/A], nan, inf")["sm_mhz"] == 1980.0
    assert list(parse_clocks("1980, [N/A], nan, inf").values())[1:] == [None] * 3
    assert parse_clocks("No devices were found") is None
    assert parse_clocks("") is None
