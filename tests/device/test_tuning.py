"""The figures of a machine: which values they may have, and what follows from them."""

import pytest

from numba_swap.device.tuning import DEFAULT_TUNING, SIMULATED_TUNING, Tuning, why_not_figure

WORDS = ["chunk_bytes", "ring_piece_bytes", "ring_smallest_bytes"]
BYTES = [name for name in Tuning._fields if name.endswith("bytes") and name not in WORDS]
GRIDS = ("link_", "device_", "peer_", "exchange_")
WARPS = ["link_threads", "device_threads", "peer_threads", "exchange_threads"]
FACTORS = [name for name, value in DEFAULT_TUNING._asdict().items() if isinstance(value, float)]
COUNTS = [name for name in Tuning._fields if name not in {*BYTES, *WARPS, *FACTORS, *WORDS}]


@pytest.mark.parametrize(("copies", "nbytes"), [(100, (1 << 20) - 1), (3, 1 << 30), (7, 1 << 30)])
def test_few_bytes_or_copies_are_not_spread(copies, nbytes):
    assert DEFAULT_TUNING.spread_over(copies, nbytes) == 1


def test_a_batch_is_spread_over_as_many_streams_as_there_is_work_for():
    spread = [DEFAULT_TUNING.spread_over(n, 1 << 20) for n in (0, 8, 12, 31, 32, 1000)]
    assert spread == [1, 2, 3, 7, 8, 8]
    beside = [DEFAULT_TUNING.spread_over(n, 1 << 20, beside=True) for n in (8, 15, 16, 1000)]
    assert beside == [2, 3, 4, 4]


def test_many_short_rows_may_be_grouped():
    assert DEFAULT_TUNING.may_be_grouped(4096, 2048)
    assert not DEFAULT_TUNING.may_be_grouped(4095, 2048)
    assert not DEFAULT_TUNING.may_be_grouped(4096, 2049)


@pytest.mark.parametrize("name", Tuning._fields)
def test_the_figures_themselves_may_be_what_they_are(name):
    for tuning in (DEFAULT_TUNING, SIMULATED_TUNING):
        assert why_not_figure(name, getattr(tuning, name)) is None
    for bad in (True, False, None, "8", [8], 0, -1, float("nan")):
        assert why_not_figure(name, bad) is not None


@pytest.mark.parametrize("name", FACTORS)
def test_factors(name):
    for good in (1e-9, 1, 0.5, 999_999_999.0):
        assert why_not_figure(name, good) is None
    for bad in (1e9, 0.0, -0.5, float("inf")):
        assert why_not_figure(name, bad) == "is no positive number"


@pytest.mark.parametrize(
    ("names", "step", "most"),
    [
        (BYTES, 1, 1 << 40),
        (WORDS, 16, 1 << 40),
        (WARPS, 32, 1024),
        (COUNTS, 1, 2**31 - 1),
    ],
)
def test_integers(names, step, most):
    for name in names:
        for good in (step, 3 * step, most - most % step):
            assert why_not_figure(name, good) is None, name
        multiple = f", multiple of {step}," if step > 1 else ""
        wrong = f"is no positive integer{multiple} up to {most}"
        for bad in (0, -step, most + step, 1.5, *([step + 1, step - 1] if step > 1 else [])):
            assert why_not_figure(name, bad) == wrong, (name, bad)


def test_what_is_no_figure():
    assert why_not_figure("links", 8) == "is no figure of this version"


def test_a_simulated_kernel_has_few_threads():
    changed = {
        name
        for name in Tuning._fields
        if getattr(SIMULATED_TUNING, name) != getattr(DEFAULT_TUNING, name)
    }
    grids = {name for name in Tuning._fields if name.startswith(GRIDS)}
    assert changed == grids
    assert {getattr(SIMULATED_TUNING, name) for name in WARPS} == {32}
    assert {getattr(SIMULATED_TUNING, name) for name in grids - set(WARPS)} == {4}
