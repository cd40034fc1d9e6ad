"""What may be looked at as pairs, and what has to be looked at copy by copy."""

import numpy as np
import pytest
from machines import random_bytes

import numba_swap as ns


@pytest.mark.parametrize("direction", [0, 1])
def test_a_block_over_the_end_of_a_registration_is_refused(rng, direction):
    """Also where the rows of both directions go together as they stand."""
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        host, device = random_bytes(rng, (64, 96)), gpu.device_array((64, 96), np.uint8)
        flat, middle = host.reshape(-1), 32 * 96 + 48
        gpu.library.register_host(flat[:middle])
        gpu.library.register_host(flat[middle:])
        rows = [np.array([[0, 1], [2, 3]]), np.array([[1, 0], [3, 2]])]
        ns.exchange(device, host, *rows).wait()
        rows[direction][1, 1 - direction] = 32
        with pytest.raises(ns.BadPlanError, match="where one registration"):
            ns.exchange(device, host, *rows)
