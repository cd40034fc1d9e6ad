import contextvars

import pytest

import numba_swap as ns
from numba_swap.settings import Settings, current_settings, settings_from_environment


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
    [("NUMBA_SWAP_MODE", "fast"), ("NUMBA_SWAP_DRIVER_VERSION", "twelve")],
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


def test_override_stays_in_its_context():
    """Another context that was there before sees nothing of it."""
    outside = contextvars.copy_context()
    with ns.override(mode="loop"):
        assert current_settings().mode is ns.Mode.LOOP
        assert outside.run(current_settings).mode is not ns.Mode.LOOP
