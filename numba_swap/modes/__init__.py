"""Three ways to move the bytes; each module has the same two verbs, none knows the others.

``why_not(driver, copies, situation)`` says why the mode cannot run a copy, or None; ``submit(...)``
enqueues it.
"""

from types import ModuleType

from numba_swap.modes import batch, kernel, loop
from numba_swap.settings import Mode

MODES: dict[Mode, ModuleType] = {Mode.BATCH: batch, Mode.LOOP: loop, Mode.KERNEL: kernel}
