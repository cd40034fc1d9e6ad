"""Paying on purpose for what the first swap would pay for."""

from __future__ import annotations

from typing import Any

from numba_swap.copies.copies import no_copies
from numba_swap.device.device import Device
from numba_swap.device.devices import Devices
from numba_swap.dispatch.conditions import Conditions, capabilities_of
from numba_swap.dispatch.settings import Mode, current_settings
from numba_swap.errors import BadArgumentError, ModeUnavailableError, brief
from numba_swap.modes.kernel import exchange, launch
from numba_swap.swap.verbs import current_devices


def warm_up(device: int | None = None) -> None:
    """Pay on purpose for what the first swap would pay for: compilers, and the GPU's context.

    The first process on a machine compiles the kernels and the compiled parts of planning,
    which are kept in Numba's cache on disk. On H200 machines that took 7 to 10 seconds in all, and
    later processes 2, most of it to import Numba and to make the context. Nothing is copied.

    Parameters
    ----------
    device : int, optional
        Which GPU; by default that of the calling thread's context, or else the first.

    Raises
    ------
    BadArgumentError
        There is no such GPU.
    DriverUnavailableError
        No CUDA driver or device.
    ModeUnavailableError
        This driver can run the kernel, but Numba cannot compile it; the reason says why. The
        other modes work all the same.
    """
    devices = current_devices()
    settings = current_settings()
    if settings.cap(devices.driver.version) < launch.SINCE:
        return
    if device is None:
        current = devices.driver.probe(0)[0]
        gpu = devices.context(current).device if current else devices[0]
        there = devices.in_a_context(gpu.ordinal)
    else:
        gpu = _gpu_of(devices, device)
        there = devices.driver.activate(gpu.primary_context)
    with there:
        conditions = Conditions(capabilities_of(gpu, settings))
        ends = no_copies().ends
        obstacle = launch.why_not(ends, conditions)
        for some in (ends, ends._replace(strided=True)):
            obstacle = obstacle or launch.load(gpu, some)
        obstacle = obstacle or exchange.load(gpu)
    if obstacle is not None:
        raise ModeUnavailableError(Mode.KERNEL, obstacle)


def _gpu_of(devices: Devices, ordinal: Any) -> Device:
    count = devices.driver.device_count()
    if type(ordinal) is not int or ordinal not in range(count):
        raise BadArgumentError(
            f"device={brief(ordinal)} is no GPU: this machine has those from 0 to {count - 1}"
        )
    return devices[ordinal]
