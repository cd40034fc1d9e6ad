"""`numba-swap explain`, and what stands behind it: choices without arrays, a GPU or a driver."""

import re

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.memory import MemoryKind
from numba_swap.dispatch import settings
from numba_swap.driver import current
from numba_swap.tools import explain as explain_module
from numba_swap.tools.cli import main
from numba_swap.tools.units import parse_bytes

explain_copy = ns.explain_copy
H2D, D2H, D2D = ns.Direction.H2D, ns.Direction.D2H, ns.Direction.D2D


@pytest.fixture(autouse=True)
def no_driver(monkeypatch):
    """No driver at all, also on a machine that has one."""

    def nothing():
        raise ns.DriverUnavailableError("there is none")

    monkeypatch.setattr(current, "default_driver", nothing)


def explain(capsys, *arguments):
    """Run the command; its exit status, output and error output."""
    try:
        status = main(["explain", *arguments])
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.fixture
def workload_of(monkeypatch):
    """What the choice that is explained is made from."""
    seen, decide = [], explain_module.decide

    def record(workload, direction, *others):
        seen.append((workload, direction))
        return decide(workload, direction, *others)

    monkeypatch.setattr(explain_module, "decide", record)

    def ask(*arguments, **keywords):
        seen.clear()
        explain_copy(*arguments, **keywords)
        (asked,) = seen
        return asked

    return ask


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4096b", 4096),
        ("4KiB", 4096),
        (" 4 kib ", 4096),
        ("1MIB", 1 << 20),
        ("3GiB", 3 << 30),
        ("1024GiB", 1 << 40),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "0KiB", "-4", "4.5KiB", "4KB", "4K", "KiB", "1e6", "4 5", "1025GiB", "9" * 30],
)
def test_what_is_no_size_is_refused(text, capsys):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)
    status, out, error = explain(capsys, "--sizes", f"4KiB,{text}")
    assert (status, out) == (2, "")
    assert error.startswith(f"numba-swap: error: {text!r} is no size up to 1024GiB: write 4096")


def test_lengths_are_shared_out(workload_of):
    workload, direction = workload_of(H2D, [4096, 1 << 20, 100], 7, host_memory=MemoryKind.PINNED)
    assert workload.terms == ((0, 2, 2 * 100), (1, 3, 3 * 4096), (3, 2, 2 << 20))
    assert (workload.copies, workload.nbytes) == (7, 2 * 100 + 3 * 4096 + (2 << 20))
    assert (workload.route, direction) == ("h2d", H2D)


def test_any_number_of_copies_is_counted_exactly(workload_of):
    """Also more than there is memory to list, and more bytes than 64 bits can say."""
    workload, _ = workload_of(H2D, [4096, 1 << 20, 4097], 10**9)
    assert workload.terms == (
        (1, 666_666_667, 333_333_334 * 4096 + 333_333_333 * 4097),
        (3, 333_333_333, 333_333_333 << 20),
    )
    most = 2**63 - 1
    workload, _ = workload_of(H2D, 1 << 40, most)
    assert (workload.copies, workload.nbytes) == (most, most << 40)
    decision = explain_copy(H2D, 1 << 40, most, driver_version="13.0")
    assert decision.nbytes == most << 40
    assert f"for {most} copies, {most << 40} bytes" in decision.table()


@pytest.mark.parametrize("direction", [H2D, D2H, D2D])
def test_the_same_is_chosen_as_for_arrays(direction):
    """Of equal copies between real arrays, under every circumstance that both know."""
    kinds = {H2D: ("pinned", "device"), D2H: ("device", "pinned"), D2D: ("device", "device")}
    for size, count in ((64, 1), (64, 5), (4096, 40), (32 << 10, 12), (1 << 17, 9)):
        with ns.simulate() as gpu:
            src, dst = (
                {"pinned": gpu.pinned_array, "device": gpu.device_array}[kind](
                    (2 * count, size), np.uint8
                )
                for kind in kinds[direction]
            )
            rows = 2 * np.stack([np.arange(count), np.arange(count)[::-1]], axis=1)
            plan = ns.plan_blocks(src, dst, rows)
            for how in ({}, {"policy": "overlap"}, {"policy": "latency"}, {"max_blocks": 1}):
                real, made = plan.explain(**how), explain_copy(direction, [size], count, **how)
                assert made == real
                with ns.override(driver_version=(12, 4)):
                    assert explain_copy(direction, [size], count, **how) == plan.explain(**how)


@pytest.mark.parametrize("access", ["NVLink", "PCIe", False])
def test_the_same_is_chosen_between_two_gpus(access):
    for size, count in ((64, 5), (4096, 40), (1 << 17, 9)):
        with ns.simulate(devices=2, peer_access=access) as gpu:
            src, dst = (gpu.device_array((2 * count, size), np.uint8, device=k) for k in (0, 1))
            rows = 2 * np.stack([np.arange(count), np.arange(count)[::-1]], axis=1)
            plan = ns.plan_blocks(src, dst, rows)
            for how in ({}, {"policy": "overlap"}, {"policy": "latency"}, {"max_blocks": 1}):
                real, made = plan.explain(**how), explain_copy("p2p", [size], count, **how)
                assert made.where == real.where == f"0 to 1, {access or 'no peer access'}"
                assert made.ranked == real.ranked
                assert made.direction is real.direction is ns.Direction.P2P
                if not real.parts:  # else it is staged, of which nothing is said without arrays
                    assert (made.mode, made.rejected.keys()) == (real.mode, real.rejected.keys())
                if access:
                    assert made == real
            if not access:
                with pytest.raises(ns.ModeUnavailableError, match="no peer access"):
                    explain_copy("p2p", [size], count, mode="kernel")
    alone = explain_copy("p2p", 4096, 64, driver_version="13.0")  # as if there were two
    assert (alone.mode, alone.where) == (ns.Mode.KERNEL, "0 to 1, NVLink")
    assert "two NVIDIA H100" in alone.costs_source


def test_words_and_members_mean_the_same():
    expected = explain_copy(D2H, [4096], 64, host_memory=MemoryKind.PAGEABLE)
    assert expected.direction is D2H
    for direction in ("d2h", " D2H", "device to host"):
        for sizes in (4096, np.int64(4096), (4096,), np.array([4096, 4096], np.int32)):
            assert explain_copy(direction, sizes, 64, host_memory="pageable") == expected
    assert explain_copy("h2d", 64, 1).direction is H2D
    assert explain_copy("d2d", 64, 1, host_memory="pageable").direction is D2D


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"direction": "up"}, "direction='up' is none of 'h2d', 'd2h', 'd2d'"),
        ({"direction": ns.Direction.H2H}, "direction=.* is none of 'h2d'"),
        ({"direction": None}, "direction=None is none of"),
        ({"host_memory": "device"}, "host_memory='device' is none of 'pinned', 'pageable', 'ma"),
        ({"host_memory": None}, "host_memory=None is none of"),
        ({"sizes": []}, "sizes is empty"),
        ({"sizes": [4096, 0]}, "sizes=0 is no positive integer"),
        ({"sizes": 4096.0}, "sizes=4096.0 is no positive integer"),
        ({"sizes": "4KiB"}, "sizes='4KiB' is no positive integer"),
        ({"sizes": [1 << 41]}, "sizes=2199023255552 is more than 1024GiB"),
        ({"sizes": [1 << 70]}, "is more than 1024GiB"),
        ({"count": 0}, "count=0 is no positive integer"),
        ({"count": 1.5}, "count=1.5 is no positive integer"),
        ({"count": 10**20}, "count=100000000000000000000 is more than 9223372036854775807"),
        ({"sizes": [[1], [1, 2]]}, r"sizes=\[\[1\], \[1, 2\]\] is no length, and no list"),
        ({"max_blocks": 0}, "max_blocks=0 is no positive integer"),
        ({"mode": "fast"}, "mode='fast' is no mode"),
        ({"policy": "fast"}, "policy='fast' is no policy"),
        ({"driver_version": "new"}, "'new' is not a driver version"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    arguments = {"direction": "h2d", "sizes": 4096, "count": 64} | wrong
    with pytest.raises(ns.BadArgumentError, match=message):
        explain_copy(**arguments)


def test_a_driver_too_old_is_none():
    with pytest.raises(ns.DriverUnavailableError, match=r"older than CUDA 11\.3"):
        explain_copy("h2d", 4096, 64, driver_version="11.2")


def test_managed_memory_counts_as_the_devices():
    decision = explain_copy(
        H2D, [4096], 64, host_memory=MemoryKind.MANAGED, policy="overlap", driver_version="13.0"
    )
    assert decision.direction is D2D
    with ns.simulate() as gpu:
        src, dst = gpu.managed_array((128, 4096), np.uint8), gpu.device_array((128, 4096), np.uint8)
        rows = 2 * np.stack([np.arange(64)] * 2, axis=1)
        rows[:, 0] = rows[::-1, 0]
        assert ns.plan_blocks(src, dst, rows).explain(policy="overlap") == decision


def test_mixed_sizes_may_be_split(capsys):
    status, out, error = explain(
        capsys, "--sizes", "512,256KiB", "--count", "4000", "--driver-version", "13.0"
    )
    assert (status, error) == (0, "")
    assert out.startswith("kernel and batch for 4000 copies, ")
    assert "\nat once:\n  kernel, 2000 copies, 1024000 bytes, host to device, " in out
    assert "\n  batch, 2000 copies, 524288000 bytes, host to device, " in out


@pytest.mark.parametrize(
    ("arguments", "first", "obstacles"),
    [
        ([], "batch", {}),
        (["--driver-version", "13.0"], "batch", {}),
        (
            ["--driver-version", "12.4"],
            "kernel",
            {"batch": "driver 12.4 has no cuMemcpyBatchAsync"},
        ),
        (
            ["--driver-version", "11.4"],
            "loop",
            {"batch": "driver 11.4 has no cuMemcpyB", "kernel": "driver 11.4 is older than 12.0"},
        ),
        (["--memory", "pageable"], None, {"kernel": "cannot reach pageable memory"}),
        (["--capturing"], "kernel", {"batch": "is being captured into a graph"}),
        (["--capturing", "--driver-version", "11.4"], "loop", {"batch": "", "kernel": ""}),
        (["--policy", "overlap"], "batch", {}),
        (["--policy", "overlap", "--driver-version", "12.4"], None, {"batch": "12.4"}),
        (["--mode", "loop"], "loop", {}),
    ],
)
def test_explain(capsys, arguments, first, obstacles):
    """All modes in the table, the chosen one in the first line, the obstacles beside the others."""
    sizes = ["--sizes", "1MiB", "--count", "256"]
    status, out, error = explain(capsys, *sizes, *arguments)
    assert (status, error) == (0, "")
    lines = out.splitlines()
    assert "for 256 copies, 268435456 bytes, host to device, simulated driver " in lines[0]
    staged = {"staged"} if "pageable" in arguments else set()
    rows = {line.split()[0]: line for line in lines[3 : 6 + len(staged)]}
    assert set(rows) == {"batch", "loop", "kernel"} | staged
    chosen = [mode for mode, line in rows.items() if "  yes" in line]
    assert chosen == [lines[0].split()[0]]
    if first is not None:
        assert chosen == [first]
    for mode, line in rows.items():
        if mode in obstacles:
            assert obstacles[mode] in line
            assert line.split()[1] == "-"
        else:
            assert line.split()[2] in ("us", "ms", "s")
    assert lines[-1].startswith("predicted from NVIDIA H200, CUDA 13.0, ")


def test_overlap_prefers_copy_engines(capsys):
    """For which they need not be the fastest."""
    arguments = ["--sizes", "256KiB", "--count", "4096", "--direction", "d2h"]
    _, plain, _ = explain(capsys, *arguments)
    _, overlap, _ = explain(capsys, *arguments, "--policy", "overlap")
    assert plain.startswith("kernel for")
    assert overlap.startswith("batch for")
    assert ": for overlap, predicted: batch " in overlap


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "batch", "--driver-version", "12.4"], "mode 'batch' cannot run .* 12.4 has no"),
        (["--mode", "kernel", "--driver-version", "11.4"], "mode 'kernel' cannot run .* 12.0"),
        (["--mode", "kernel", "--memory", "pageable"], "mode 'kernel' cannot run .* pageable"),
        (["--mode", "batch", "--capturing"], "mode 'batch' cannot run .* captured"),
        (["--mode", "fast"], "mode='fast' is no mode"),
        (["--driver-version", "new"], "'new' is not a driver version"),
        (["--driver-version", "11.2"], "older than CUDA 11.3"),
        (["--count", "0"], "--count=0 is no positive integer"),
        (["--count", "1" + "0" * 20], "count=100000000000000000000 is more than 9223372036854775"),
        (["--max-blocks", "-1"], "--max-blocks=-1 is no positive integer"),
    ],
)
def test_explain_says_what_is_wrong(capsys, arguments, message):
    status, out, error = explain(capsys, "--sizes", "4KiB", *arguments)
    assert (status, out) == (2, "")
    assert error.startswith("numba-swap: error: ")
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_explain_obeys_override_and_environment(capsys, monkeypatch):
    arguments = ["--sizes", "1MiB", "--count", "256"]
    with ns.override(policy="latency", driver_version=(12, 4)):
        _, out, _ = explain(capsys, *arguments)
        assert "simulated driver 12.4: for latency, predicted: " in out
        assert "driver 12.4 (pretended) has no cuMemcpyBatchAsync" in out
        _, out, _ = explain(capsys, *arguments, "--policy", "throughput")
        assert ": predicted: " in out
    environment = settings.settings_from_environment(
        {"NUMBA_SWAP_POLICY": "overlap", "NUMBA_SWAP_MODE": "loop"}
    )
    monkeypatch.setattr(settings, "_environment_settings", lambda: environment)
    decision = explain_copy(H2D, [1 << 20], 256)
    assert decision.policy == "overlap"
    assert decision.reason == "forced by the environment variable NUMBA_SWAP_MODE"
    with pytest.raises(ValueError, match="policy='fast' is no policy"):
        explain_copy(H2D, [1 << 20], 256, policy="fast")
    lifted = explain_copy(H2D, [1 << 20], 256, mode="auto")
    assert lifted.reason.startswith("for overlap, predicted: ")
    assert not lifted.forced
    _, out, _ = explain(capsys, *arguments)
    assert "forced by the environment variable NUMBA_SWAP_MODE" in out
    _, out, _ = explain(capsys, *arguments, "--mode", "auto")
    assert "forced" not in out


def test_the_driver_that_is_here_answers():
    with ns.simulate(driver_version=(12, 4)):
        assert explain_copy(H2D, [64], 1).driver_version == (12, 4)
        assert explain_copy(H2D, [64], 1, driver_version="12.8").driver_version == (12, 8)
    assert explain_copy(H2D, [64], 1).driver_version == (13, 0)


def test_alignment_of_the_lengths_counts(workload_of):
    whole, odd = (workload_of(H2D, [size], 8)[0] for size in (4096, 4097))
    assert whole.alignment_bits % 16 == 0
    assert odd.alignment_bits % 2 == 1
