"""Fixtures that every test may use."""

import numpy as np
import pytest
from machines import CASES

import numba_swap as ns
from numba_swap.device import in_flight
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.driver.current import current_driver


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def gpu(case):
    with case.open() as gpu:
        yield gpu


@pytest.fixture
def mode(case):
    return case.mode


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


@pytest.fixture
def tune():
    """Change figures of `Tuning` for the first GPU of the driver in use, until the test is over."""
    former = []

    def change(**figures):
        device = devices_of(current_driver())[0]
        costs = find_costs(device)
        former.append((device, costs))
        use_costs(device, costs._replace(tuning=costs.tuning._replace(**figures)))

    yield change
    for device, costs in reversed(former):
        use_costs(device, costs)


@pytest.fixture(autouse=True)
def _nothing_is_left_under_way():
    """Work that a fault of one test keeps from ending is not looked at by the next."""
    before = set(in_flight._unfinished)
    yield
    for key, work in list(in_flight._unfinished.items()):
        if key not in before and work._driver.simulated:
            in_flight._unfinished.pop(key, None)


@pytest.fixture(autouse=True)
def _skip_without_gpu(request):
    """Tests marked gpu say once why they cannot run, instead of failing each in its own way."""
    if request.node.get_closest_marker("gpu") is not None and not ns.driver_info()["available"]:
        pytest.skip("no usable GPU: `numba-swap info` says why")
