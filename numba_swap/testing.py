"""For tests of your own code: a simulated driver, and driver calls that fail on purpose.

`simulate` puts a driver over host memory in place of the real one, so that a test needs no GPU.
A `Fault` says which call of which C function of that driver fails, and how. The `FaultPlan` of a
simulation is ``gpu.library.faults``: `add` faults to it, and look up in `struck` what has failed.

>>> import numba_swap as ns
>>> from numba_swap.testing import Fault, simulate
>>> with simulate(driver_version=(12, 8)) as gpu:
...     host, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
...     gpu.library.faults.add(Fault("cuMemcpyBatchAsync", code=2, fail_index=1))
...     try:
...         ns.swap_blocks(host, device, [[0, 3], [2, 1]], mode="batch")
...     except ns.DriverCallError as error:
...         print(error.function, error.name, error.failing_index)
cuMemcpyBatchAsync CUDA_ERROR_OUT_OF_MEMORY 1
"""

from numba_swap.driver.simulated.faults import Fault, FaultPlan
from numba_swap.driver.simulated.gpu import simulate

__all__ = ["Fault", "FaultPlan", "simulate"]
