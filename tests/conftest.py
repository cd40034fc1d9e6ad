"""Fixtures that every test may use."""

import numpy as np
import pytest
from machines import CASES


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
