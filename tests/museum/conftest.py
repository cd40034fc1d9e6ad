"""The museum: real libraries of old NVIDIA drivers, fetched by scripts/fetch_drivers."""

import json
import os
import runpy
from pathlib import Path

import pytest

FETCH = Path(__file__).parents[2] / "scripts" / "fetch_drivers"
FACTS = json.loads(Path(__file__).with_name("facts.json").read_text())["drivers"]


@pytest.fixture(scope="session")
def skip_or_fail():
    """Skip; but in CI, where all is meant to be there, a test that does not run is a failure."""

    def end(reason):
        if os.environ.get("CI", "") not in ("", "0", "false"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)

    return end


@pytest.fixture(scope="session")
def fetch_script():
    """What scripts/fetch_drivers defines: it says where the museum is and what belongs to it."""
    return runpy.run_path(str(FETCH))


@pytest.fixture(scope="session", params=[name for name in FACTS if FACTS[name]["museum"]])
def release(request):
    """Release branch of a museum driver, for example 470."""
    return request.param


@pytest.fixture(scope="session")
def facts(release):
    """What the driver is known to answer."""
    return FACTS[release]


@pytest.fixture(scope="session")
def folder(release, fetch_script, skip_or_fail):
    """Folder that holds the driver's libcuda.so.1."""
    path = fetch_script["cache_folder"]() / release
    if not (path / "libcuda.so.1").is_file():
        skip_or_fail(f"driver {release} is not in {path.parent}: run scripts/fetch_drivers")
    return path
