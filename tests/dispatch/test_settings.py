import contextvars

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.dispatch import settings as settings_module
from numba_swap.dispatch.settings import (
    Settings,
    check_positive,
    current_settings,
    mode_in_force,
    mode_source,
    parse_mode,
    parse_policy,
    settings_from_environment,
)


@pytest.mark.parametrize("given", [(12, 4), "12.4", " 12.4 ", ns.DriverVersion(12, 4)])
def test_versions_are_read_in_every_form(given):
    version = ns.DriverVersion.parse(given)
    assert version == (12, 4)
    assert str(version) == "12.4"
    assert version.encoded == 12040
    assert ns.DriverVersion.from_encoded(12040) == version


@pytest.mark.parametrize(
    "given",
    [
        "580.159.04",
        "580.65",
        (580, 65),
        "12",
        "12.x",
        "",
        12080,
        12.4,
        (12,),
        (12, 4, 1),
        (12, True),
        (-1, 0),
        (12, -1),
        (12, 100),
        (100, 0),
        # What no driver has had, and what can be read in two ways.
        "12.04",
        "012.4",
        "13.00",
        "12.10",
        (12, 10),
        "99.99",
        (99, 99),
        "0.0",
        (15, 0),
        ns.DriverVersion(13, 10),
        "१२.४",
        "9" * 5000 + ".0",
        (12, 4.0),
        ("12", "4"),
        [12, 4],
        None,
    ],
)
def test_other_versions_are_refused_by_value(given):
    with pytest.raises(ValueError, match="is not a driver version"):
        ns.DriverVersion.parse(given)


def test_environment_is_read():
    settings = settings_from_environment(
        {"NUMBA_SWAP_MODE": "Kernel", "NUMBA_SWAP_DRIVER_VERSION": "12.4"}
    )
    assert settings == Settings(ns.Mode.KERNEL, ns.DriverVersion(12, 4))
    assert settings_from_environment({}) == Settings()
    assert settings_from_environment({"NUMBA_SWAP_MODE": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NUMBA_SWAP_MODE", "fast"),
        ("NUMBA_SWAP_DRIVER_VERSION", "twelve"),
        ("NUMBA_SWAP_DRIVER_VERSION", "12.04"),
        ("NUMBA_SWAP_DRIVER_VERSION", "99.99"),
        ("NUMBA_SWAP_DRIVER_VERSION", "1.0"),
        ("NUMBA_SWAP_POLICY", "fast"),
        ("NUMBA_SWAP_BATCH_DESCRIPTORS", "0"),
        ("NUMBA_SWAP_BATCH_DESCRIPTORS", "-1"),
        ("NUMBA_SWAP_BATCH_DESCRIPTORS", "many"),
        ("NUMBA_SWAP_BATCH_DESCRIPTORS", "9" * 5000),
        ("NUMBA_SWAP_THREADS", "0"),
        ("NUMBA_SWAP_THREADS", "all"),
    ],
)
def test_unreadable_environment_names_the_variable(variable, value):
    with pytest.raises(ValueError, match=variable):
        settings_from_environment({variable: value})


def test_override_nests_and_ends():
    before = current_settings()
    with ns.override(mode="loop"):
        with ns.override(driver_version=(12, 4)) as inner:
            assert inner == Settings(ns.Mode.LOOP, ns.DriverVersion(12, 4))
            with ns.override(mode="auto"):
                assert current_settings() == Settings(None, ns.DriverVersion(12, 4))
        assert current_settings().driver_version == before.driver_version
    assert current_settings() == before


def test_override_refuses_nonsense():
    with pytest.raises(ValueError, match="mode='fast' is no mode"), ns.override(mode="fast"):
        pass
    with pytest.raises(ValueError, match="not a driver version"), ns.override(driver_version=12080):
        pass


def test_a_driver_on_which_nothing_runs_cannot_be_pretended():
    words = "driver 11.2 cannot be pretended: numba_swap needs 11.3"
    with pytest.raises(ns.BadArgumentError, match=words), ns.override(driver_version=(11, 2)):
        pass
    with pytest.raises(ns.BadArgumentError, match=f"NUMBA_SWAP_DRIVER_VERSION: {words}"):
        settings_from_environment({"NUMBA_SWAP_DRIVER_VERSION": "11.2"})
    with ns.override(driver_version="11.3") as settings:
        assert settings.driver_version == (11, 3)


def test_override_stays_in_its_context():
    """Another context that was there before sees nothing of it."""
    outside = contextvars.copy_context()
    with ns.override(mode="loop"):
        assert current_settings().mode is ns.Mode.LOOP
        assert outside.run(current_settings).mode is not ns.Mode.LOOP


def test_versions_at_the_edges():
    for given in ((1, 0), (11, 8), "12.9", "13.9", (14, 0)):
        version = ns.DriverVersion.parse(given)
        assert ns.DriverVersion.parse(str(version)) == version
    assert ns.DriverVersion.from_encoded(11999) == (11, 99)
    assert ns.DriverVersion.from_encoded(99990) == (99, 99)
    assert ns.DriverVersion.from_encoded(12089) == (12, 8)
    assert ns.DriverVersion(9, 9) < ns.DriverVersion(10, 0)


def test_all_variables_are_read():
    settings = settings_from_environment(
        {
            "NUMBA_SWAP_POLICY": " Latency ",
            "NUMBA_SWAP_BATCH_DESCRIPTORS": "1",
            "NUMBA_SWAP_THREADS": "5",
        }
    )
    assert settings == Settings(batch_descriptors=1, policy=ns.Policy.LATENCY, threads=5)
    assert settings_from_environment({}).batch_descriptors == 128
    assert settings_from_environment({}).threads is None
    empty = dict.fromkeys(
        ("NUMBA_SWAP_POLICY", "NUMBA_SWAP_BATCH_DESCRIPTORS", "NUMBA_SWAP_THREADS"), ""
    )
    assert settings_from_environment(empty) == Settings()


def test_modes_and_policies_in_every_form():
    assert parse_mode(" Auto ") is None
    assert parse_mode(ns.Mode.LOOP) is parse_mode("LOOP") is ns.Mode.LOOP
    assert parse_policy(ns.Policy.OVERLAP) is parse_policy(" overlap ") is ns.Policy.OVERLAP
    for value in ("fast", None, 3):
        with pytest.raises(ns.BadArgumentError, match=r"^mode=.* choose 'auto' or one of 'batch'"):
            parse_mode(value)
        with pytest.raises(ns.BadArgumentError, match=r"^policy=.* one of 'throughput', 'overlap'"):
            parse_policy(value)


def test_positive_integers():
    check_positive(1, "most")
    for value in (0, True, 1.0, "1", None):
        with pytest.raises(ns.BadArgumentError, match=f"^most={value!r} is no positive integer"):
            check_positive(value, "most")


def test_override_of_everything_else():
    with ns.override(batch_descriptors=1, policy="latency") as outer:
        assert outer == Settings(
            current_settings().mode, current_settings().driver_version, 1, ns.Policy.LATENCY
        )
        with ns.override(mode="loop") as inner:
            assert (inner.batch_descriptors, inner.policy) == (1, ns.Policy.LATENCY)
    with (
        pytest.raises(ns.BadArgumentError, match=r"^batch_descriptors=0 is no positive"),
        ns.override(batch_descriptors=0),
    ):
        pass
    with ns.override(threads=3), ns.override(mode="loop") as inner:
        assert inner.threads == 3
    with (
        pytest.raises(ns.BadArgumentError, match=r"^threads=1.5 is no positive"),
        ns.override(threads=1.5),
    ):
        pass


def test_version_that_counts():
    settings = Settings(driver_version=ns.DriverVersion(12, 4))
    assert settings.cap(ns.DriverVersion(13, 0)) == (12, 4)
    assert settings.cap(ns.DriverVersion(11, 8)) == (11, 8)
    assert Settings().cap(ns.DriverVersion(13, 0)) == (13, 0)


@pytest.mark.parametrize("mode", ["auto", " Auto "])
def test_auto_in_a_call_lifts_what_override_and_environment_force(monkeypatch, mode):
    assert mode_in_force(mode) == (None, "")
    with ns.override(mode="loop"):
        assert mode_in_force(mode) == (None, "")
        assert mode_in_force(None) == (ns.Mode.LOOP, "override")
        assert mode_in_force("batch") == (ns.Mode.BATCH, "the mode argument")
    environment = Settings(mode=ns.Mode.KERNEL)
    monkeypatch.setattr(settings_module, "_environment_settings", lambda: environment)
    assert mode_in_force(mode) == (None, "")
    assert mode_in_force(None)[0] is ns.Mode.KERNEL


def test_who_forces_a_mode(monkeypatch):
    environment = Settings(mode=ns.Mode.KERNEL)
    monkeypatch.setattr(settings_module, "_environment_settings", lambda: environment)
    assert mode_source() == "the environment variable NUMBA_SWAP_MODE"
    with ns.override(policy="latency"):
        assert mode_source() == "the environment variable NUMBA_SWAP_MODE"
    with ns.override(mode="loop"):
        assert mode_source() == "override"


# Arrays compare element by element: one that holds a good value is no such value.
ARRAYS = [
    np.array([1, 2]),
    np.array([1]),
    np.array(["loop"]),
    np.array(["auto"]),
    np.array("loop"),
    np.array([None]),
    np.zeros((200, 200)),
    [np.zeros((200, 200))] * 9,
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{type(value).__name__}")
@pytest.mark.parametrize("name", ["mode", "policy", "max_blocks", "block_axis"])
@pytest.mark.parametrize("swapped_before", [True, False])
def test_arrays_are_no_options(name, value, swapped_before):
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
        plan, rows = ns.plan_blocks(host, device, [[0, 1]]), np.array([[0, 1], [2, 3]])
        good = {"mode": "auto", "policy": "throughput", "max_blocks": 2, "block_axis": 0}[name]
        calls = {
            "swap": lambda option: ns.swap_blocks(host, device, rows, **{name: option}),
            "exchange": lambda option: ns.exchange(device, host, rows, rows, **{name: option}),
        }
        if name != "block_axis":
            calls["run"] = lambda option: plan.run(**{name: option})
        for call in calls.values():
            for _ in range(3 * swapped_before):
                call(good).wait()
            with pytest.raises(ns.BadArgumentError, match=f"^{name}=") as caught:
                call(value)
            assert len(str(caught.value)) < 400
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{type(value).__name__}")
def test_arrays_override_nothing(value):
    for name in ("mode", "policy", "batch_descriptors"):
        with (
            pytest.raises(ns.BadArgumentError, match=f"^{name}="),
            ns.override(**{name: value}),
        ):
            pass


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), 1 << 40])
def test_any_integer_is_a_number_of_thread_blocks(value):
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
        for _ in range(3):
            ns.swap_blocks(host, device, np.array([[0, 1]]), max_blocks=value).wait()
