"""The contract holds on two GPUs, too."""

import pytest
from machines import CASES, TWO_GPUS


@pytest.fixture(params=[*CASES, *TWO_GPUS])
def case(request):
    return request.param
