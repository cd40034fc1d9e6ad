"""The ways to move the bytes: a module for each `Mode`, of its name, none of which knows another.

(But for `staged`, whose pieces cross the link by the kernel or the loop.)

A new mode is a module here, a member of `Mode`, and a row of the calibration's grid. It has
these functions:

``why_not(ends, conditions)``
    Why the mode cannot run copies between such kinds of memory, or None. Pure.
``load(device, ends)``
    Make the mode ready on a GPU for such copies; why that cannot be, or None. Asked before the
    first use, and cheap afterwards.
``submit(copies, launch, work)``
    Enqueue copies in the stream of a `LaunchContext`; `work` keeps alive what it is told to.
    The caller marks the end.

One that needs memory besides that of the copies has two more:

``room(copies, device)``
    Why there is no such memory, or None.
``reserve(copies, launch)``
    Take it, which may take its time, before other calls into the stream have to wait for this one;
    return what holds it until `submit` takes it.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Ends
from numba_swap.device.device import Device
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.conditions import Conditions, LaunchContext
from numba_swap.dispatch.settings import Mode


class ModeModule(Protocol):
    """What each module of a mode has."""

    def why_not(self, ends: Ends, conditions: Conditions) -> str | None:
        """Return why the mode cannot run such copies; None if it can."""

    def load(self, device: Device, ends: Ends) -> str | None:
        """Make the mode ready; return why that cannot be, None if it is."""

    def submit(self, copies: Copies, launch: LaunchContext, work: InFlight) -> None:
        """Enqueue the copies."""


MODES: dict[Mode, ModeModule] = {
    mode: cast("ModeModule", importlib.import_module(f"{__name__}.{mode}")) for mode in Mode
}


def why_not_here(mode: Mode, copies: Copies, launch: LaunchContext) -> str | None:
    """Return why a mode cannot run copies on this GPU; None if it can, and is ready to."""
    module: Any = MODES[mode]
    obstacle: str | None = module.why_not(copies.ends, launch.conditions)
    obstacle = obstacle or module.load(launch.device, copies.ends)
    return obstacle or why_no_room(mode, copies, launch.device)


def why_no_room(mode: Mode, copies: Copies, device: Device) -> str | None:
    """Return why there is no memory for what a mode needs besides copies; None if there is."""
    module: Any = MODES[mode]
    if not hasattr(module, "room"):
        return None
    obstacle: str | None = module.room(copies, device)
    return obstacle
