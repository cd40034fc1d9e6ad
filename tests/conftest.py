"""Fixtures that every test may use."""

import numpy as np
import pytest
from machines import CASES

import numba_swap as ns


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


@pytest.fixture(autouse=True)
def _skip_without_gpu(request):
    """Tests marked gpu say once why they cannot run, instead of failing each in its own way."""
    if request.node.get_closest_marker("gpu") is not None and not ns.driver_info()["available"]:
        pytest.skip("no usable GPU: `numba-swap info` says why")
