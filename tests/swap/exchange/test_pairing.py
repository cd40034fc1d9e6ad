"""Exchanges whose rows go pair by pair, out and in, through one kernel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import CASES, MACHINES, capture, examples, make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap import native
from numba_swap.device.devices import devices_of
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.dispatch.calibration import use_costs
from numba_swap.dispatch.conditions import Capabilities, Conditions
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.ranking import predict_duplex, predict_pairs
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import ROUTES, uniform_workload
from numba_swap.swap.exchange.pairing import SlotTable
from numba_swap.testing import Fault

BLOCK = 96
KERNEL_CASES = [
    case
    for case in CASES
    if (case.values[0] if hasattr(case, "values") else case).mode in ("kernel", "auto")
    and (case.values[0] if hasattr(case, "values") else case).machine != "11.4"
]


def model(device, host, page_out, page_in):
    """What must be in the two pools afterwards."""
    page_out, page_in = (np.asarray(rows).reshape(-1, 2) for rows in (page_out, page_in))
    after_device, after_host = device.copy(), host.copy()
    after_host[page_out[:, 1]] = device[page_out[:, 0]]
    after_device[page_in[:, 1]] = host[page_in[:, 0]]
    return after_device, after_host


# -- which rows go together ----------------------------------------------------------------------


@st.composite
def mappings(draw):
    slots, blocks = draw(st.integers(1, 9)), draw(st.integers(1, 12))

    def rows(sources, destinations):
        targets = draw(st.lists(st.integers(0, destinations - 1), unique=True, max_size=8))
        return np.array(
            [[draw(st.integers(0, sources - 1)), target] for target in targets], dtype=np.int64
        ).reshape(-1, 2)

    return rows(slots, blocks), rows(blocks, slots), slots, blocks


def paired_as_they_stand(out, into, slots, blocks):
    """Whether rows of the same number go together, and none is left; in doubt not."""
    words = np.empty(4 * max(len(out), 1), dtype=np.uint64)
    device, host = (1 << 40, BLOCK, slots), (1 << 41, BLOCK, blocks)
    return native.pairing.place_pairs(out, into, device, host, BLOCK, words)[0] >= 0


def unique(ids):
    return len(set(ids.tolist())) == len(ids)


@examples(400)
@given(case=mappings(), many=st.booleans())
def test_rows_that_meet_are_partners_or_there_are_no_pairs(case, many):
    out, into, slots, blocks = case
    meet = (out[:, None, 0] == into[None, :, 1]) | (out[:, None, 1] == into[None, :, 0])
    possible = bool((meet.sum(axis=0) <= 1).all() and (meet.sum(axis=1) <= 1).all())
    # Many blocks beside few rows take a hash table, few a table of all.
    spread = 1000 if many else 1
    arguments = out * spread, into * spread, slots * spread, blocks * spread
    pairing = SlotTable(*arguments).pairing
    assert (pairing is not None) == possible
    as_they_stand = paired_as_they_stand(*arguments)
    same = bool((~meet | np.eye(*meet.shape, dtype=bool)).all())
    right = possible and same and len(out) == len(into)
    if many or not len(out):
        assert right or not as_they_stand
    else:
        assert as_they_stand == (right and unique(out[:, 0]))
    if pairing is None:
        return
    partner = pairing.partner
    for row, other in zip(*np.nonzero(meet), strict=True):
        assert partner[row] == other
    used = partner[partner >= 0]
    assert len(used) == min(len(out), len(into))
    assert sorted([*used, *pairing.unpaired]) == list(range(len(into)))


def test_rows_changed_meanwhile_are_not_paired(rng):
    """Ids that are out of range now were in range when they were checked."""
    with ns.simulate() as gpu:
        device, host, *before = pools(gpu, rng)
        rows = [np.array(some) for some in ROWS]
        plan = ns.plan_exchange(device, host, *rows)
        for some in rows:
            some[:] = [[1 << 40, -1], [-(1 << 40), 9]]
        plan.run(mode="kernel").wait()  # pairs are looked for now, among what was checked
        after = model(*before, *ROWS)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(host, after[1])
    good, bad = np.array([[0, 0]]), np.array([[9, 9]])
    for one, other in ((bad, good), (good, bad), (-bad, good), (good, -bad)):
        assert not paired_as_they_stand(one, other, 4, 4)
    assert paired_as_they_stand(good, good, 4, 4)


# -- exchanges -----------------------------------------------------------------------------------

N = 12
KINDS = {
    "refilled slots": (lambda i: (i, i), lambda i: (i + N, i)),
    "refilled in another order": (lambda i: (i, i), lambda i: (2 * N - 1 - i, N - 1 - i)),
    "in place": (lambda i: (i, i), lambda i: (i, i)),
    "freed blocks reused": (lambda i: (i, i), lambda i: (i, i + N)),
    "apart": (lambda i: (i, i), lambda i: (i + N, i + N)),
}


@pytest.mark.parametrize("width", [16, 8, 4, 1])
@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("case", KERNEL_CASES)
def test_kinds_of_pairs(case, what, width, rng):
    """`width` is what all addresses and lengths are a multiple of."""
    block = BLOCK + width % 16
    with case.open() as gpu:
        before = random_bytes(rng, (2 * N, block)), random_bytes(rng, (2 * N, block))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        out, into = (np.array([rows(i) for i in range(N)]) for rows in KINDS[what])
        plan = ns.plan_exchange(device, host, out, into)
        assert plan._pairs.pairs.width == (width if width >= 4 else 0)
        state = before
        for _ in range(2):
            transfer = plan.run(gpu.stream(), case.mode)
            transfer.wait()
            paired = "pair by pair" in transfer.decision.reason
            assert paired == (width >= 4), transfer.decision
            state = model(*state, out, into)
            assert np.array_equal(read_array(gpu, device), state[0])
            assert np.array_equal(read_array(gpu, host), state[1])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("going", "coming"), [(9, 4), (4, 9), (1, 12)])
def test_rows_without_a_partner_follow(machine, going, coming, rng):
    with machine.open() as gpu:
        before = random_bytes(rng, (2 * N, 64)), random_bytes(rng, (2 * N, 64))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        out = np.stack([rng.permutation(N)[:going], rng.permutation(N)[:going]], axis=1)
        into = np.stack([N + rng.permutation(N)[:coming], rng.permutation(N)[:coming]], axis=1)
        transfer = ns.exchange(device, host, out, into, stream=gpu.stream(), mode="kernel")
        transfer.wait()
        decision = transfer.decision
        assert decision.reason.startswith("one after another: "), decision
        pairs, rest = decision.parts
        assert pairs.direction is ns.Direction.MIXED
        assert pairs.nbytes == 2 * 64 * min(going, coming)
        assert rest.direction is (ns.Direction.D2H if going > coming else ns.Direction.H2D)
        assert decision.nbytes == 64 * (going + coming)
        assert decision.predicted_us == pytest.approx(pairs.predicted_us + rest.predicted_us)
        after = model(*before, out, into)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(read_array(gpu, host), after[1])


@pytest.mark.parametrize("machine", MACHINES)
def test_layers_of_different_blocks_in_several_runs(machine, rng):
    shapes = [(5, 9, 8), (2, 9), (3, 9, 5)]
    dtypes = [np.int32, np.uint64, np.uint32]
    with machine.open() as gpu:
        fronts = [random_bytes(rng, s, d) for s, d in zip(shapes, dtypes, strict=True)]
        backs = [
            random_bytes(rng, (s[0], 13, *s[2:]), d) for s, d in zip(shapes, dtypes, strict=True)
        ]
        device = [make_array(gpu, "device", content) for content in fronts]
        host = [make_array(gpu, "pinned", content) for content in backs]
        out, into = [[3, 11], [0, 2], [8, 4]], [[4, 8], [7, 1], [5, 3]]
        transfer = ns.exchange(device, host, out, into, block_axis=1)
        transfer.wait()
        assert "pair by pair" in transfer.decision.reason
        for layer, (front, back) in enumerate(zip(fronts, backs, strict=True)):
            after = model(front.swapaxes(0, 1), back.swapaxes(0, 1), out, into)
            assert np.array_equal(read_array(gpu, device[layer]), after[0].swapaxes(0, 1))
            assert np.array_equal(read_array(gpu, host[layer]), after[1].swapaxes(0, 1))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("rows", [[[2, 0], [3, 1]], [[3, 1], [2, 0]], [[2, 0], [3, 1], [4, 2]]])
def test_runs_in_another_order_at_the_other_side(machine, rows, rng):
    """Each direction sorts its runs by its own destination."""
    with machine.open() as gpu:
        before = random_bytes(rng, (4, 4, 5), np.uint32), random_bytes(rng, (6, 5, 4), np.uint32)
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        turned = host.transpose(0, 2, 1)
        out = [[0, 0], [1, 1]]
        transfer = ns.exchange(device, turned, out, rows, mode="kernel")
        transfer.wait()
        assert "pair by pair" in transfer.decision.reason
        after = model(before[0], before[1].transpose(0, 2, 1), out, rows)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(read_array(gpu, turned), after[1])


@pytest.mark.parametrize("mode", ["kernel", "batch", "loop"])
def test_layers_that_share_bytes(mode, rng):
    """Slot 2 of the first layer is slot 0 of the second: ids do not tell that they meet."""
    with ns.simulate() as gpu:
        front, backs = random_bytes(rng, (10, 64)), [random_bytes(rng, (8, 64)) for _ in range(2)]
        device = make_array(gpu, "device", front)
        hosts = [make_array(gpu, "pinned", back) for back in backs]
        layers = [device[0:8], device[2:10]]
        plan = ns.plan_exchange(layers, hosts, [[2, 5]], [[0, 0]])
        assert "pair by pair" not in plan.explain(mode=mode).reason
        plan.run(mode=mode).wait()
        assert np.array_equal(hosts[0][5], front[2])
        assert np.array_equal(hosts[1][5], front[4])
        after = front.copy()
        after[0], after[2] = backs[0][0], backs[1][0]
        assert np.array_equal(device.copy_to_host(), after)


def test_interleaved_layers_that_share_nothing_go_in_pairs(rng):
    with ns.simulate() as gpu:
        before = random_bytes(rng, (8, 2, 64)), random_bytes(rng, (8, 2, 64))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        layers = [[pool[:, i] for i in range(2)] for pool in (device, host)]
        transfer = ns.exchange(*layers, *ROWS, mode="kernel")
        transfer.wait()
        assert "pair by pair" in transfer.decision.reason
        after = model(*before, *ROWS)
        assert np.array_equal(device.copy_to_host(), after[0])
        assert np.array_equal(host, after[1])


@pytest.mark.parametrize("mode", ["kernel", "loop"])
def test_rows_may_be_changed_after_planning(mode, rng):
    with ns.simulate() as gpu:
        device, host, *before = pools(gpu, rng)
        rows = [np.array(some) for some in ROWS]
        plan = ns.plan_exchange(device, host, *rows)
        for some in rows:
            some[:] = [[3, 1], [1, 3]]
        plan.run(mode=mode).wait()
        after = model(*before, *ROWS)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(host, after[1])


def test_an_error_after_the_pairs_does_not_deny_them(rng):
    with ns.simulate() as gpu:
        device, host, *before = pools(gpu, rng)
        gpu.library.faults.add(Fault("cuLaunchKernel", 701, call=2))
        with pytest.raises(ns.DriverCallError, match="the 1 before this one were submitted") as it:
            ns.exchange(device, host, [[0, 0], [1, 1], [2, 2]], [[5, 0]], mode="kernel")
        assert it.value.submitted_rows is None
        gpu.synchronize()
        assert np.array_equal(host[0], before[0][0])
        assert np.array_equal(host[1:], before[1][1:])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("block", [40_000, 3 * 8192 + 16, 100_004])
def test_long_blocks_are_shared_by_several_teams(machine, block, rng):
    with machine.open() as gpu:
        before = random_bytes(rng, (4, block)), random_bytes(rng, (5, block))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        out, into = [[0, 1], [2, 3]], [[4, 2], [1, 0]]
        ns.exchange(device, host, out, into, mode="kernel").wait()
        after = model(*before, out, into)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(read_array(gpu, host), after[1])


def test_addresses_of_both_directions_count():
    with ns.simulate() as gpu:
        device, host = (gpu.device_array((4, 20), np.uint8)[:, :16], gpu.pinned_array((4, 16)))
        plan = ns.plan_exchange(device, host[:, :2].view(np.uint8), [[0, 0], [1, 1]], [[2, 3]])
        assert plan._pairs.pairs.width == 4


@pytest.mark.parametrize("machine", MACHINES)
def test_a_captured_exchange_is_replayed_in_pairs(machine, rng):
    with machine.open() as gpu:
        before = random_bytes(rng, (4, 64)), random_bytes(rng, (4, 64))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        rows = np.array([[0, 1], [2, 3]])
        stream = gpu.stream()
        transfers = []
        replay = capture(
            gpu,
            stream,
            lambda: transfers.append(ns.exchange(device, host, rows, rows[:, ::-1], stream=stream)),
        )
        assert "pair by pair" in transfers[0].decision.reason
        state = before
        for _ in range(3):
            replay()
            state = model(*state, rows, rows[:, ::-1])
            assert np.array_equal(read_array(gpu, device), state[0])
            assert np.array_equal(read_array(gpu, host), state[1])


# -- what it takes -------------------------------------------------------------------------------


def pools(gpu, rng, kinds=("device", "pinned"), block=64):
    contents = random_bytes(rng, (8, block)), random_bytes(rng, (8, block))
    arrays = [make_array(gpu, k, c) for k, c in zip(kinds, contents, strict=True)]
    return *arrays, *contents


ROWS = [[0, 0], [2, 3]], [[5, 2], [4, 0]]


def test_pairs_take_one_launch_and_nothing_else(rng):
    with ns.simulate() as gpu:
        device, host, *_ = pools(gpu, rng)
        plan = ns.plan_exchange(device, host, *ROWS)
        plan.run(mode="kernel").wait()
        calls = dict(gpu.library.calls)
        plan.run(mode="kernel").wait()
        spent = {name: n - calls.get(name, 0) for name, n in gpu.library.calls.items()}
        for name in ("cuStreamCreate", "cuMemAlloc", "cuMemHostAlloc", "cuStreamWaitEvent"):
            assert spent.get(name, 0) == 0, name
        assert spent["cuLaunchKernel"] == spent["cuEventRecord"] == 1
        assert spent.get("cuMemcpyAsync", 0) == 0


@pytest.mark.parametrize(
    ("kinds", "block", "mode", "version", "why"),
    [
        (("device", "pageable"), 64, "auto", "13.0", "memory that the GPU cannot reach"),
        (("device", "device"), 64, "auto", "13.0", "no host link in between"),
        (("device", "pinned"), 66, "auto", "13.0", "lengths that are no multiple of 4"),
        (("device", "pinned"), 64, "loop", "13.0", "another mode was asked for"),
        (("device", "pinned"), 64, "batch", "13.0", "another mode was asked for"),
        (("device", "pinned"), 64, "auto", "11.4", "a driver without kernels"),
    ],
)
def test_what_cannot_go_in_pairs_goes_side_by_side(kinds, block, mode, version, why, rng):
    with ns.simulate(driver_version=version) as gpu:
        device, host, *before = pools(gpu, rng, kinds, block)
        transfer = ns.exchange(device, host, *ROWS, mode=mode)
        transfer.wait()
        assert "pair by pair" not in str(transfer.decision), why
        after = model(*before, *ROWS)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(read_array(gpu, host), after[1])


@pytest.mark.parametrize(
    "rows",
    [
        ([[0, 0]], [[0, 1], [1, 0]]),  # block 0 goes to slot 1, and is replaced by slot 0
        ([[0, 0], [0, 1]], [[2, 0]]),  # slot 0 goes out twice
        ([[0, 0], [1, 1]], [[0, 1], [1, 0]]),  # a ring of four
    ],
)
def test_chains_are_staged(rows, rng):
    with ns.simulate() as gpu:
        device, host, *before = pools(gpu, rng)
        transfer = ns.exchange(device, host, *rows)
        transfer.wait()
        assert "pair by pair" not in transfer.decision.reason
        after = model(*before, *rows)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(read_array(gpu, host), after[1])


def test_max_blocks_and_policy_reach_the_launch(rng, monkeypatch):
    launched = []
    with ns.simulate() as gpu:
        device, host, *_ = pools(gpu, rng, block=8192)
        rows = np.stack([np.arange(8)] * 2, axis=1)
        plan = ns.plan_exchange(device, host, rows, rows)
        launch = gpu.driver.launch_kernel
        monkeypatch.setattr(
            gpu.driver, "launch_kernel", lambda *a: launched.append(a[1]) or launch(*a)
        )
        plan.run(mode="kernel").wait()
        plan.run(mode="kernel", max_blocks=2).wait()
        plan.run(mode="kernel", policy="latency").wait()
        ns.exchange(device, host, rows, rows, mode="kernel", max_blocks=3).wait()
    assert launched == [4, 2, 4, 3]


def test_predicted_times_of_both_ways():
    here = Conditions(Capabilities(ns.DriverVersion(13, 0), False, {}))
    kernel = ModeCost(10.0, 0.0, (1.0,) * 4, (0.0,) * 4)
    costs = CostModel({"h2d": {Mode.KERNEL: kernel}}, "made up")
    loads = [uniform_workload("h2d", count, 64) for count in (5, 40, 7)]
    assert predict_pairs(costs, loads, here) == pytest.approx(1.2 * 50)
    slow = ModeCost(10.0, 0.0, (0.0,) * 4, (1e6,) * 4, 8.0)
    few = CostModel({"h2d": {Mode.KERNEL: slow}}, "made up")
    limited = here._replace(max_blocks=2)
    assert predict_pairs(few, loads, limited) > predict_pairs(few, loads, here)
    overlap = here._replace(policy=Policy.OVERLAP)
    assert predict_pairs(costs, loads, overlap) == pytest.approx(1.2 * 1.25 * 50)
    assert predict_duplex(DEFAULT_TUNING, 100.0, here, staged=False) == 140.0
    assert predict_duplex(DEFAULT_TUNING, 100.0, here, staged=True) == 160.0
    for other in (here._replace(policy=Policy.LATENCY), here._replace(capturing=True)):
        assert predict_duplex(DEFAULT_TUNING, 100.0, other, staged=True) == 100.0


@pytest.mark.parametrize(("into", "in_pairs"), [("other blocks", False), ("in place", True)])
def test_what_would_be_staged_goes_in_pairs(into, in_pairs):
    """By the shipped costs: the copy engines are faster for 1 MiB, but not by way of memory."""
    with ns.simulate() as gpu:
        device = gpu.device_array((64, 1 << 20), np.uint8)
        host = gpu.pinned_array((128, 1 << 20), np.uint8)
        ids = np.arange(64) * 27 % 64  # no neighbours
        out = np.stack([ids, ids], axis=1)
        coming = out if into == "in place" else np.stack([ids + 64, ids], axis=1)
        decision = ns.plan_exchange(device, host, out, coming).explain()
        assert ("pair by pair" in decision.reason) == in_pairs, decision


@pytest.mark.parametrize(("block", "in_pairs"), [(8 << 10, True), (1 << 20, False)])
def test_long_blocks_go_side_by_side_through_the_copy_engines(block, in_pairs):
    """By the shipped costs; `explain` says what `run` does."""
    with ns.simulate() as gpu:
        count = (16 << 20) // block
        device = gpu.device_array((count, block), np.uint8)
        host = gpu.pinned_array((2 * count, block), np.uint8)
        ids = np.arange(count)
        rows = np.stack([ids, 2 * ids], axis=1), np.stack([2 * ids + 1, ids], axis=1)
        plan = ns.plan_exchange(device, host, *rows)
        decision = plan.explain()
        assert ("kernel" in decision.modes) == in_pairs
        assert ("pair by pair" in decision.reason) == in_pairs
        assert decision.nbytes == plan.nbytes
        assert decision.predicted_us > 0
        assert plan.explain(mode="loop").modes == ("loop",)
        if not in_pairs:
            transfer = plan.run()
            transfer.wait()
            assert transfer.decision == decision


def made_up(kernel, batch=None, loop=1e6):
    """Costs of which only the start counts."""
    start_us = {Mode.LOOP: loop, Mode.BATCH: batch, Mode.KERNEL: kernel}
    costs = {
        mode: ModeCost(us, 0.0, (0.0,) * 4, (0.0,) * 4)
        for mode, us in start_us.items()
        if us is not None
    }
    return CostModel(dict.fromkeys(ROUTES, costs), "made up")


def decided(gpu, out=9, into=9, block=64, kinds=("device", "pinned"), **how):
    """What is decided for an exchange of so many rows, and done."""
    device, host = (make_array(gpu, kind, np.zeros((32, block), np.uint8)) for kind in kinds)
    ids = np.arange(0, 32, 2)
    rows = np.stack([ids, ids], axis=1)[:out], np.stack([ids + 1, ids], axis=1)[:into]
    plan = ns.plan_exchange(device, host, *rows)
    decision = plan.explain(**how)
    transfer = plan.run(**how)
    transfer.wait()
    assert transfer.decision == decision
    assert decision.copies == len(plan)
    assert decision.nbytes == plan.nbytes
    assert decision.rejected == {} or not decision.parts
    return decision


def test_what_is_said_of_pairs():
    with ns.simulate() as gpu:
        use_costs(devices_of(gpu.driver)[0], made_up(kernel=1000.0))
        assert decided(gpu).reason == (
            "predicted: pair by pair in one kernel 1200 us, side by side (kernel) 1440 us"
        )
        forced = decided(gpu, mode="kernel", policy="overlap")
        assert forced.reason == ("forced by the mode argument; pair by pair in one kernel 1500 us")
        # A second kernel for what is left would take longer than both directions side by side.
        assert "pair by pair" not in decided(gpu, into=4).reason
        assert "pair by pair" in decided(gpu, into=4, mode="kernel").parts[0].reason
        reason = decided(gpu, into=4).reason
        assert reason.startswith("at once: device to host, predicted: kernel 1400 us")


def test_pairs_of_which_no_time_is_known():
    with ns.simulate() as gpu:
        use_costs(devices_of(gpu.driver)[0], made_up(kernel=None, loop=5.0))
        decision = decided(gpu, mode="kernel")
        assert decision.predicted_us is None
        assert "pair by pair" in decision.reason
        assert decided(gpu).modes == ("loop",)


@pytest.mark.parametrize(
    ("rows", "how", "mode"),
    [
        ({}, {}, "batch"),
        ({"into": 0}, {}, "kernel"),
        ({"out": 0}, {}, "kernel"),
        ({}, {"policy": "latency"}, "kernel"),
    ],
)
def test_a_kernel_takes_longer_beside_the_other_direction(rows, how, mode):
    """And what is decided is what runs."""
    with ns.simulate() as gpu:
        use_costs(devices_of(gpu.driver)[0], made_up(kernel=100.0, batch=120.0))
        assert decided(gpu, block=66, **rows, **how).modes == (mode,)
        calls = gpu.library.calls
        if rows:
            assert calls["cuLaunchKernel"] == 1
        assert (calls["cuLaunchKernel"] > 0) == (mode == "kernel")
        assert (calls["cuMemcpyBatchAsync"] > 0) == (mode == "batch")


def test_both_directions_may_be_within_the_device():
    with ns.simulate() as gpu:
        decision = decided(gpu, kinds=("device", "device"))
        assert decision.direction is ns.Direction.D2D
        assert len(decision.parts) == 2
        use_costs(devices_of(gpu.driver)[0], made_up(kernel=1.0))
        decision = decided(gpu, kinds=("device", "pageable"))
        assert decision.direction is ns.Direction.MIXED
        assert any(part.rejected for part in decision.parts)


def test_pools_that_do_not_fit_are_named():
    with ns.simulate() as gpu:
        device, host = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
        with pytest.raises(ns.UnsupportedArrayError, match=r"^device "):
            ns.exchange(3, host, [], [])
        with pytest.raises(ns.UnsupportedArrayError, match=r"^host "):
            ns.exchange(device, 3, [], [])
        for layers in (([device], [host] * 2), ([device] * 2, [host]), (device, [host])):
            with pytest.raises(ns.BadPlanError, match=r"^device and host must be one array each"):
                ns.exchange(*layers, [], [])
        with pytest.raises(ns.BadPlanError, match=r"^page_out\[0\]: device block 4 is not one"):
            ns.exchange(device, host, [[4, 0]], [])
        with pytest.raises(ns.BadPlanError, match=r"^page_in\[0\]: device block 4 is not one"):
            ns.exchange(device, host, [], [[0, 4]])
        where = device.__cuda_array_interface__["data"][0]
        with pytest.raises(ns.BadPlanError, match=f"share memory, at {where + 64:#x} for example"):
            ns.exchange(device[:3], device[1:], [[1, 2]], [[0, 0]])
        layers = [device, gpu.device_array((4, 8))], [host, device]
        with pytest.raises(ns.BadPlanError, match="share memory"):
            ns.exchange(*layers, [[0, 1]], [[2, 1]])


@pytest.mark.parametrize("mode", ["kernel", "loop", "batch"])
def test_layers_of_empty_blocks_beside_others(rng, mode):
    with ns.simulate() as gpu:
        fronts, backs = ([random_bytes(rng, (8, n)) for n in (0, 48, 0, 32)] for _ in range(2))
        device = [make_array(gpu, "device", content) for content in fronts]
        host = [make_array(gpu, "pinned", content) for content in backs]
        out, into = [[0, 0], [1, 1], [2, 4]], [[0, 0], [3, 1]]
        ns.exchange(device, host, out, into, mode=mode).wait()
        for layer in (1, 3):
            after = model(fronts[layer], backs[layer], out, into)
            assert np.array_equal(read_array(gpu, device[layer]), after[0])
            assert np.array_equal(read_array(gpu, host[layer]), after[1])


def test_a_refused_launch_copies_nothing(rng):
    with ns.simulate() as gpu:
        device, host, *before = pools(gpu, rng)
        plan = ns.plan_exchange(device, host, *ROWS)
        gpu.library.faults.add(Fault("cuLaunchKernel", 701))
        with pytest.raises(ns.DriverCallError, match="cuLaunchKernel"):
            plan.run(mode="kernel")
        gpu.synchronize()
        assert np.array_equal(read_array(gpu, device), before[0])
        assert np.array_equal(host, before[1])
        plan.run().wait()
        after = model(*before, *ROWS)
        assert np.array_equal(read_array(gpu, device), after[0])
        assert np.array_equal(host, after[1])


def test_errors_name_the_rows_that_were_given(rng):
    with ns.simulate() as gpu:
        device, host, *_ = pools(gpu, rng)
        with pytest.raises(ns.BadPlanError, match=r"page_out\[1\]: host block 8 is not one of"):
            ns.exchange(device, host, [[0, 0], [1, 8]], [])
        with pytest.raises(ns.BadPlanError, match=r"page_in\[0\]: host block -1 is not one of"):
            ns.exchange(device, host, [], [[-1, 0]])
        with pytest.raises(ns.BadPlanError, match=r"page_in\[1\]: destination block 3 is written"):
            ns.exchange(device, host, [], [[0, 3], [1, 3]])


def test_ptx_reads_both_halves_before_it_writes_either():
    import re

    from numba import cuda

    from numba_swap.modes.kernel import copy_source, exchange_source

    text, _ = cuda.compile_ptx(
        exchange_source.exchange_kernel, copy_source.KERNEL_SIGNATURE, cc=(9, 0)
    )
    moves = re.findall(r"(ld|st)\.global\.v2\.u64", text)
    assert "".join("l" if move == "ld" else "s" for move in moves).startswith("l" * 8 + "s" * 8)
    assert not re.search(r"\.f64|\.f32|(ld|st)\.local", text)


def test_rows_of_an_exchange_keep_their_order(tune):
    """Swaps of many short blocks in a large pool are grouped by regions; pairs go by their rows."""
    count, blocks = DEFAULT_TUNING.group_rows, 600_000  # 293 MiB: several regions, never touched
    with ns.simulate() as gpu:
        tune(group_pool_bytes=1)
        device = gpu.device_array((count, 512), np.uint8)
        host = gpu.pinned_array((blocks, 512), np.uint8)
        ids = np.arange(count)
        places = (ids * 7919) % blocks
        out = np.stack([ids, places], axis=1)
        going, coming = ns.plan_exchange(device, host, out, out[:, ::-1]).copies
        swap = ns.plan_blocks(device, host, out).copies
        where = places.astype(np.uint64) * np.uint64(512) + np.uint64(host.ctypes.data)
        assert np.array_equal(going.dst, where)
        assert np.array_equal(coming.src, where)
        assert not np.array_equal(swap.dst, where)
