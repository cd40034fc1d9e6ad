"""Move thousands of scattered memory blocks between host and GPU in one call.

>>> import numpy as np
>>> import numba_swap as ns
>>> with ns.simulate(driver_version=(12, 8)) as gpu:
...     host = gpu.pinned_array((4, 8), np.float32)
...     host[:] = np.arange(32).reshape(4, 8)
...     device = gpu.device_array((6, 8), np.float32)
...     transfer = ns.swap_blocks(host, device, [[0, 5], [3, 1]])
...     transfer.wait()
...     bool((device.copy_to_host()[[5, 1]] == host[[0, 3]]).all())
True

Public are the names of ``numba_swap.__all__``, of ``numba_swap.testing.__all__`` (simulated
drivers, and driver calls that fail on purpose) and of ``numba_swap.ab.__all__`` (read, judge and
draw what ``numba-swap ab`` measured); all else may change. Import the two modules on their own:
``from numba_swap import testing``.
"""

from typing import TYPE_CHECKING, Any

from numba_swap._version import __version__
from numba_swap.copies.ends import Direction
from numba_swap.dispatch.decision import Decision, Estimate
from numba_swap.dispatch.settings import Mode, Policy, override
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import (
    BadArgumentError,
    BadPlanError,
    BlocksLostError,
    CacheFullError,
    CalibrationError,
    CapturedTransferError,
    DriverCallError,
    DriverUnavailableError,
    EntryPointNotFoundError,
    LeaseConflictError,
    ModeUnavailableError,
    NumbaSwapError,
    TransferTimeoutError,
    UnsupportedArrayError,
)
from numba_swap.paging.cache.block_cache import BlockCache, CacheStats
from numba_swap.paging.cache.lease import Lease
from numba_swap.paging.cache.memory import suggest_slots
from numba_swap.paging.tiles.run import Step
from numba_swap.paging.tiles.snapshots import Snapshot, Snapshots
from numba_swap.paging.tiles.streaming import TileStream, stream_tiles
from numba_swap.paging.tiles.tiling import Tiling
from numba_swap.paging.tiles.visits import run_steps
from numba_swap.swap.boxes import (
    copy,
    copy_boxes,
    copy_many,
    plan_boxes,
    plan_copy,
    plan_many,
)
from numba_swap.swap.exchange.plan import ExchangePlan
from numba_swap.swap.exchange.verbs import exchange, plan_exchange
from numba_swap.swap.gather import gather, scatter
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.plans.plan_cache import plan_cache
from numba_swap.swap.running.transfer import Transfer, wait_all
from numba_swap.swap.verbs import plan_blocks, swap_blocks, swap_blocks_batch
from numba_swap.swap.warming import warm_up

if TYPE_CHECKING:
    from numba_swap.driver.simulated.gpu import simulate
    from numba_swap.tools.bench.calibrate import calibrate
    from numba_swap.tools.explain import explain_copy
    from numba_swap.tools.info.driver_info import driver_info

__all__ = [
    "BadArgumentError",
    "BadPlanError",
    "BlockCache",
    "BlocksLostError",
    "CacheFullError",
    "CacheStats",
    "CalibrationError",
    "CapturedTransferError",
    "CopyPlan",
    "Decision",
    "Direction",
    "DriverCallError",
    "DriverUnavailableError",
    "DriverVersion",
    "EntryPointNotFoundError",
    "Estimate",
    "ExchangePlan",
    "Lease",
    "LeaseConflictError",
    "Mode",
    "ModeUnavailableError",
    "NumbaSwapError",
    "Policy",
    "Snapshot",
    "Snapshots",
    "Step",
    "TileStream",
    "Tiling",
    "Transfer",
    "TransferTimeoutError",
    "UnsupportedArrayError",
    "__version__",
    "calibrate",
    "copy",
    "copy_boxes",
    "copy_many",
    "driver_info",
    "exchange",
    "explain_copy",
    "gather",
    "override",
    "plan_blocks",
    "plan_boxes",
    "plan_cache",
    "plan_copy",
    "plan_exchange",
    "plan_many",
    "run_steps",
    "scatter",
    "simulate",
    "stream_tiles",
    "suggest_slots",
    "swap_blocks",
    "swap_blocks_batch",
    "wait_all",
    "warm_up",
]

_LATE = {
    "calibrate": "numba_swap.tools.bench.calibrate",
    "driver_info": "numba_swap.tools.info.driver_info",
    "explain_copy": "numba_swap.tools.explain",
    "simulate": "numba_swap.driver.simulated.gpu",
}


def __getattr__(name: str) -> Any:
    """Import what few programs need only when it is asked for."""
    if name in _LATE:
        import importlib

        value = globals()[name] = getattr(importlib.import_module(_LATE[name]), name)
        return value
    raise AttributeError(f"module 'numba_swap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
