"""A/B timing as it runs, on simulated GPUs: every step, though no time means anything."""

import gc
import signal
import time

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.tools.bench.ab.arms import peers
from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.ab.arms.own import PlanRun
from numba_swap.tools.bench.ab.arms.peers import import_for, make_peer
from numba_swap.tools.bench.ab.gpu.memory import CheckedMemory
from numba_swap.tools.bench.ab.measure import run as run_module
from numba_swap.tools.bench.ab.measure.interrupt import deferred_interrupts
from numba_swap.tools.bench.ab.measure.run import Bench
from numba_swap.tools.bench.ab.measure.sampling import Method, Sampler, run_rounds
from numba_swap.tools.bench.ab.results.results import load_result, write_result
from numba_swap.tools.bench.ab.spec.arms import PEERS, parse_arms
from numba_swap.tools.bench.ab.spec.cases import Case, cases_of_mapping, make_cases, random_mapping
from numba_swap.tools.bench.ab.spec.errors import ArmUnavailableError, WrongBytesError
from numba_swap.tools.bench.ab.spec.grids import Cell
from numba_swap.tools.bench.gpu import address_of, open_gpu

SPAN = 64 << 10
METHOD = Method(rounds=20, sample_ns=1)


def bench(gpu, arms, cases, method=METHOD, **options):
    chosen = tuple(parse_arms(arms))
    return Bench(gpu, [Cell(case, chosen) for case in cases], method, **options)


def small_cases(directions=("h2d",), **options):
    return make_cases(directions, [512], [4], span_bytes=SPAN, **options)


@pytest.fixture
def gpu():
    with open_gpu("13.0") as gpu:
        yield gpu


# -- whole runs ---------------------------------------------------------------------------------


def test_a_run_keeps_everything(gpu, tmp_path):
    result = bench(
        gpu, ["batch", "loop:fresh", "contiguous"], small_cases(("h2d", "d2h", "d2d"))
    ).run(["arms=batch loop:fresh contiguous"])
    assert result.complete
    assert result.simulated
    assert [cell.case.direction for cell in result.cells] == ["h2d", "d2h", "d2d"]
    for cell in result.cells:
        assert [(arm.arm, arm.control) for arm in cell.arms] == [
            ("batch", False),
            ("batch", True),
            ("loop:fresh", False),
            ("contiguous", False),
        ]
        assert [arm.mode for arm in cell.arms] == ["batch", "batch", "loop", None]
        for arm in cell.arms:
            assert len(arm.enqueue_ns) == len(arm.completion_ns) == 2 * 20
            assert all(
                0 < enqueue < done
                for enqueue, done in zip(arm.enqueue_ns, arm.completion_ns, strict=True)
            )
            assert len(arm.warmups_ns) >= 9
            assert arm.gpu_ns is None
        assert len(cell.orders) == 20
    assert result.machine["devices"][0]["name"] == "Simulated GPU"
    assert result.machine["versions"]["scipy"]
    assert result.method["seed"] == 0
    write_result(result, tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == result


@pytest.mark.parametrize("direction", ["h2d", "d2h", "d2d"])
def test_the_loop_of_numba_users_runs_in_every_direction(gpu, direction):
    result = bench(gpu, ["loop", "numba-loop"], small_cases((direction,))).run()
    assert result.cells[0].arms[2].arm == "numba-loop"


def test_the_kernel_runs_too(gpu):
    case = make_cases(["h2d"], [64], [3], span_bytes=512)
    result = bench(gpu, ["kernel:max_blocks=1"], case).run()
    assert {arm.mode for arm in result.cells[0].arms} == {"kernel"}


@pytest.mark.parametrize("memory", ["pinned", "registered", "pageable", "managed"])
def test_every_kind_of_host_memory(gpu, memory):
    result = bench(gpu, ["loop", "batch"], small_cases(("h2d", "d2h"), memories=[memory])).run()
    assert [cell.case.memory for cell in result.cells] == [memory] * 2


def test_the_same_memory_serves_both_directions_in_turn(gpu):
    """To the host writes what to the device reads: it must be filled again."""
    h2d, d2h = small_cases(("h2d", "d2h"))
    result = bench(gpu, ["loop"], [h2d, d2h, Case(**{**vars(h2d), "seed": 1})]).run()
    assert len(result.cells) == 3


def test_cold_caches_are_flushed_before_every_run(gpu, monkeypatch):
    flushes = []
    flush = CheckedMemory.flush
    monkeypatch.setattr(CheckedMemory, "flush", lambda memory: flushes.append(flush(memory)))
    result = bench(gpu, ["loop"], small_cases(caches=["cold"]), Method(20)).run()
    arms = result.cells[0].arms
    assert len(flushes) == sum(len(arm.warmups_ns) + len(arm.completion_ns) for arm in arms)
    assert all(arm.runs_a_sample == 1 for arm in arms)


def test_warm_samples_are_medians_of_many_runs(gpu):
    result = bench(gpu, ["loop"], small_cases(), Method(20, sample_ns=10**9)).run()
    assert result.cells[0].arms[0].runs_a_sample == 200


def test_a_mapping_from_outside(gpu):
    mapping = np.array([[9, 0], [3, 7], [5, 2]])
    cases = cases_of_mapping(small_cases(), mapping, "mine.npy")
    result = bench(gpu, ["batch", "loop"], cases, mapping=mapping).run()
    assert result.cells[0].case.count == 3
    assert result.cells[0].case.mapping_name == "mine.npy"


def test_settings_hold_for_their_arm_alone(gpu):
    with ns.override(mode="loop"):  # as a variable of the environment would
        result = bench(
            gpu, ["auto:driver_version=11.4", "auto:driver_version=12.8"], small_cases()
        ).run()
        assert ns.plan_blocks(*_arrays(gpu), [[0, 0]]).explain().mode == "loop"
    modes = [arm.mode for arm in result.cells[0].arms]
    assert modes == ["loop", "loop", "kernel"]
    assert "11.4" in result.cells[0].arms[0].reason


def _arrays(gpu):
    return tuple(
        gpu.as_blocks(array, 512, 512)
        for array in (gpu.host_bytes("pinned", 512), gpu.device_bytes(512))
    )


def test_a_planted_slowdown_is_there(gpu):
    result = bench(gpu, ["loop", "loop:plant=100%"], small_cases()).run()
    plain, _, planted = result.cells[0].arms
    assert plain.planted_ns == 0
    assert planted.planted_ns > 0
    assert all(ns >= planted.planted_ns for ns in planted.enqueue_ns)
    assert planted.planted_ns in range(
        min(planted.warmups_ns), max(planted.warmups_ns) + 1
    )  # a whole median of its own


def test_progress_is_told(gpu):
    told = []
    bench(
        gpu,
        ["loop"],
        small_cases(("h2d", "d2h")),
        report=lambda done, what: told.append((done, what)),
    ).run()
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert 1.9 < done[-1] < 2
    assert any("warming up loop" in what for _, what in told)


# -- what cannot run ----------------------------------------------------------------------------


def test_an_arm_that_cannot_run_is_an_error(gpu):
    with pytest.raises(ns.ModeUnavailableError, match="pageable"):
        bench(gpu, ["loop", "kernel"], small_cases(memories=["pageable"])).run()
    with pytest.raises(ArmUnavailableError, match="torch-staging needs a GPU"):
        bench(gpu, ["loop", "torch-staging"], small_cases()).run()


def test_or_it_is_recorded(gpu):
    arms = ["kernel", "loop", "cupy-loop"]
    result = bench(gpu, arms, small_cases(memories=["pageable"]), skip=True).run()
    (cell,) = result.cells
    assert [arm.arm for arm in cell.arms] == ["loop", "loop"]  # the baseline that is left
    assert [skip["arm"] for skip in cell.skipped] == ["kernel", "cupy-loop"]
    assert "pageable" in cell.skipped[0]["reason"]


@pytest.mark.parametrize("place", ["make", "run", "bytes"])
def test_a_peer_that_fails_is_recorded_and_a_mode_of_ours_is_an_error(gpu, monkeypatch, place):
    def make(name, setup):
        if place == "make":
            raise RuntimeError("no such thing")
        action = _Sleeper()
        action.mapping = setup.mapping
        if place == "run":
            action.wait = lambda: 1 // 0
        return action

    monkeypatch.setattr("numba_swap.tools.bench.ab.measure.contenders.make_peer", make)
    reason = {
        "make": "cupy-loop failed: RuntimeError: no such thing",
        "run": "cupy-loop failed: ZeroDivisionError: ",
        "bytes": "cupy-loop failed: WrongBytesError: cupy-loop, h2d, ",
    }[place]
    result = bench(gpu, ["loop", "cupy-loop"], small_cases(), skip=True).run()
    assert result.cells[0].skipped[0]["reason"].startswith(reason)
    with pytest.raises(ArmUnavailableError, match=reason):
        bench(gpu, ["loop", "cupy-loop"], small_cases()).run()


def test_a_case_that_nothing_can_run_is_recorded(gpu):
    result = bench(gpu, ["kernel"], small_cases(memories=["pageable"]), skip=True).run()
    assert result.cells == []
    assert "kernel: " in result.skipped[0]["reason"]
    assert result.complete


def test_what_takes_too_long_is_not_tried_with_more_blocks(gpu):
    cases = make_cases(["h2d"], [512], [4, 8, 16], span_bytes=SPAN)
    slow = Method(20, sample_ns=1, most_arm_ns=1)
    result = bench(gpu, ["loop"], cases, slow, skip=True).run()
    reasons = [skip["reason"] for skip in result.skipped]
    assert len(reasons) == 3
    assert "40 of them more than the 1e-09 s" in reasons[0]
    assert all("too slow already with 4 blocks" in reason for reason in reasons[1:])
    with pytest.raises(ArmUnavailableError, match="loop: one run takes"):
        bench(gpu, ["loop"], cases, slow).run()


def test_when_time_is_up_the_rest_is_recorded(gpu):
    result = bench(gpu, ["loop"], small_cases(("h2d", "d2h")), most_s=0.0).run()
    assert result.cells == []
    assert [skip["reason"] for skip in result.skipped] == ["the 0 s of the run were over"] * 2


def test_nothing_to_measure(gpu):
    with pytest.raises(ns.BadArgumentError, match="no case is left"):
        Bench(gpu, [], METHOD)


# -- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["h2d", "d2h", "d2d"])
@pytest.mark.parametrize("meant", [True, False])
def test_a_wrong_byte_is_found_wherever_it_is(gpu, monkeypatch, direction, meant):
    (case,) = small_cases((direction,))
    written = random_mapping(case)[:, 1]
    block = int(written[2]) if meant else next(i for i in range(9) if i not in written)

    class Broken(PlanRun):
        def __init__(self, setup, arm):
            super().__init__(setup, arm)
            self.destination = setup.destination

        def wait(self):
            super().wait()
            target = self.destination[block]
            if isinstance(target, np.ndarray):
                target[-1] ^= 1
            else:
                row = target.copy_to_host()
                row[-1] ^= 1
                target.copy_to_device(row)

    monkeypatch.setattr("numba_swap.tools.bench.ab.measure.contenders.PlanRun", Broken)
    words = "was to be written" if meant else "was not to be touched"
    with pytest.raises(
        WrongBytesError, match=rf"loop, {direction}.*first is {block}, which {words}"
    ):
        bench(gpu, ["loop"], [case], skip=True).run()


def test_an_arm_that_does_nothing_is_found(gpu, monkeypatch):
    """Even if the arm before it has put the right bytes there."""
    monkeypatch.setattr("numba_swap.tools.bench.ab.measure.contenders.FreshSwap", _Idle)
    with pytest.raises(WrongBytesError, match="loop:fresh"):
        bench(gpu, ["loop", "loop:fresh"], small_cases()).run()


class _Idle(PlanRun):
    def enqueue(self):
        pass


def test_arms_have_arrays_of_their_own(gpu):
    """What the package remembers of arrays must not pass from one arm to another."""
    (case,) = small_cases()
    memory = CheckedMemory(gpu, [case])
    memory.prepare(case)
    one, other = memory.arrays(), memory.arrays()
    assert all(a is not b for a, b in zip(one, other, strict=True))
    assert [address_of(a) for a in one] == [address_of(b) for b in other]


# -- Ctrl-C -------------------------------------------------------------------------------------


def interrupt_after(samples):
    """Make the samplers raise KeyboardInterrupt after so many samples."""
    taken = [0]
    take = Sampler.take

    def interrupted(self):
        taken[0] += 1
        if taken[0] > samples:
            raise KeyboardInterrupt
        take(self)

    return interrupted


def test_ctrl_c_keeps_whole_rounds(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(Sampler, "take", interrupt_after(6 * 3 + 4))
    result = bench(gpu, ["loop", "batch"], small_cases(("h2d", "d2h"))).run()
    assert not result.complete
    (cell,) = result.cells
    assert len(cell.orders) == 3
    assert all(len(arm.completion_ns) == 6 for arm in cell.arms)
    write_result(result, tmp_path / "part.json")
    assert load_result(tmp_path / "part.json") == result


def test_ctrl_c_keeps_the_cells_before(gpu, monkeypatch):
    monkeypatch.setattr(Sampler, "take", interrupt_after(2 * 2 * 20 + 1))
    result = bench(gpu, ["loop"], small_cases(("h2d", "d2h"))).run()
    assert [len(cell.orders) for cell in result.cells] == [20]
    assert not result.complete


def test_ctrl_c_before_the_first_round(gpu, monkeypatch):
    monkeypatch.setattr(Sampler, "take", interrupt_after(1))
    with pytest.raises(KeyboardInterrupt):
        bench(gpu, ["loop"], small_cases()).run()


def test_a_real_signal_ends_it_between_samples(gpu, monkeypatch):
    """Not in the midst of a call of the driver, where an exception would leave work behind."""
    take, states = Sampler.take, []

    def signalled(self):
        states.append("begun")
        if len(states) > 2 * 4 * 2 + 5:
            signal.raise_signal(signal.SIGINT)
        take(self)
        states[-1] = "whole"

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Sampler, "take", signalled)
    result = bench(gpu, ["loop"], small_cases()).run()
    assert set(states) == {"whole"}
    assert len(states) == 2 * 4 * 2 + 6
    assert len(result.cells[0].orders) == 5
    assert not result.complete
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_signal_comes_through():
    with deferred_interrupts() as check:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


# -- samples ------------------------------------------------------------------------------------


class _Sleeper:
    """An action with a known time."""

    mode = reason = None
    stream = 7
    mapping = np.zeros((0, 2), np.int64)

    def __init__(self, enqueue_s=0.0, wait_s=0.0):
        self.times = enqueue_s, wait_s
        self.runs = 0

    def enqueue(self):
        self.runs += 1
        time.sleep(self.times[0])

    def wait(self):
        time.sleep(self.times[1])


class _Timer:
    """A GPU's events that tell made-up times."""

    def __init__(self):
        self.calls = []

    def start(self, stream):
        self.calls.append(("start", stream))

    def stop(self, stream):
        self.calls.append(("stop", stream))

    def elapsed_ns(self):
        return 123


def test_enqueue_and_completion_are_told_apart():
    sampler = Sampler(_Sleeper(0.002, 0.004), None)
    sampler.warm_up(1)
    sampler.take()
    (enqueue,), (completion,) = sampler.series.enqueue_ns, sampler.series.completion_ns
    assert 2e6 <= enqueue < 4e6 < 6e6 <= completion


@pytest.mark.parametrize(("wait_s", "runs"), [(0.0005, 2), (0.006, 1)])
def test_events_disturb_no_short_run(wait_s, runs):
    """Short runs are timed by events apart, long ones both ways at once."""
    action, timer = _Sleeper(0, wait_s), _Timer()
    sampler = Sampler(action, timer)
    sampler.warm_up(1)
    assert timer.calls == []
    before = action.runs
    sampler.take()
    assert action.runs - before == runs
    assert timer.calls == [("start", 7), ("stop", 7)]
    assert sampler.series.gpu_ns == [123]
    assert len(sampler.series.completion_ns) == 1


def test_a_warm_up_ends_even_if_nothing_settles():
    action = _Sleeper()
    times = iter(range(1, 1000))
    action.wait = lambda: time.sleep(0.0001 * next(times))
    sampler = Sampler(action, None)
    sampler.warm_up(1)
    assert not sampler.series.settled
    assert len(sampler.series.warmups_ns) == 24


def test_rounds_go_there_and_back():
    taken = []
    takers = [lambda i=i: taken.append((i, gc.isenabled())) for i in range(3)]
    assert list(run_rounds(takers, [[0, 1, 2], [2, 0, 1]])) == [1, 2]
    assert [i for i, _ in taken] == [0, 1, 2, 2, 1, 0, 2, 0, 1, 1, 0, 2]
    assert not any(collecting for _, collecting in taken)
    assert gc.isenabled()


# -- clocks -------------------------------------------------------------------------------------


def test_clocks_are_recorded_until_they_settle(gpu, monkeypatch):
    readings = iter([345.0, 1500.0, 1970.0, 1980.0, 1980.0, 1980.0])
    monkeypatch.setattr(run_module, "read_clocks", lambda: _clocks(next(readings)))
    monkeypatch.setattr(run_module, "_CLOCK_WARM_UP_S", 0.01)
    monkeypatch.setattr(gpu, "simulated", False)
    result = bench(gpu, ["loop"], small_cases()).run()
    assert [clocks["sm_mhz"] for clocks in result.clocks] == [345, 1500, 1970, 1980, 1980]
    assert result.clocks[0].keys() == {"at_s", *_clocks(0)}


def _clocks(sm_mhz):
    return {"sm_mhz": sm_mhz, "memory_mhz": None, "temperature_c": 30.0, "power_w": 80.0}


# -- peers --------------------------------------------------------------------------------------


def test_every_peer_has_a_file(gpu):
    (case,) = small_cases()
    memory = CheckedMemory(gpu, [case])
    memory.prepare(case)
    for name in PEERS:
        setup = Setup(gpu, case, *memory.arrays(), random_mapping(case))
        if name in ("contiguous", "numba-loop"):
            assert make_peer(name, setup).mode is None
        else:
            with pytest.raises(ArmUnavailableError, match=f"{name} needs a GPU"):
                make_peer(name, setup)


def test_a_package_that_is_missing_is_named():
    with pytest.raises(ArmUnavailableError, match=r"cupy-loop needs no_such, from the package x-y"):
        import_for("cupy-loop", "no_such", "x-y")


def test_peers_are_imported_only_when_asked_for():
    import subprocess
    import sys

    code = (
        "import sys, numba_swap.tools.cli, numba_swap.tools.bench.ab.arms.peers\n"
        "import numba_swap.tools.bench.ab.spec.arms\n"
        "heavy = {'torch', 'cupy', 'cuda', 'scipy', 'numba', 'matplotlib', 'rich'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "[]\n"
    assert set(peers._MODULES) == set(PEERS)
