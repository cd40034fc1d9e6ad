"""Three ways to move the bytes; each module has the same two verbs, none knows the others.

``why_not(driver, copies, situation)`` says why the mode cannot run a copy, or None; ``submit(...)``
enqueues it.
"""

from types import ModuleType

from numba_swap.dispatch.settings import Mode
from numba_swap.modes import batch, loop
from numba_swap.modes.kernel import launch as kernel

MODES: dict[Mode, ModuleType] = {Mode.BATCH: batch, Mode.LOOP: loop, Mode.KERNEL: kernel}
