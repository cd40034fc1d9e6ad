"""Two GPUs: how they are linked, and access of one to the memory of the other."""

from __future__ import annotations

import enum

from numba_swap.device.device import Device
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.errors import DriverCallError


class Link(enum.StrEnum):
    """How one GPU reaches the memory of another.

    The driver does not name the link. What it tells is whether there is access, and whether atomic
    operations work across it, as they do over NVLink and not over PCIe.

    Attributes
    ----------
    NVLINK, PCIE
        Kernels reach it, once access is enabled.
    NONE
        They do not: only the driver copies between the two, by way of the host.
    """

    NVLINK = "NVLink"
    PCIE = "PCIe"
    NONE = "no peer access"


def find_link(driver: Driver, device: int, peer: int) -> Link:
    """Ask how a GPU reaches the memory of another; no context is made for that."""
    if not driver.can_access_peer(device, peer):
        return Link.NONE
    atomics = driver.peer_attribute(abi.P2P_NATIVE_ATOMIC_SUPPORTED, device, peer)
    return Link.NVLINK if atomics else Link.PCIE


def why_no_access(device: Device, peer: Device) -> str | None:
    """Let kernels on a GPU reach the memory of another; return why they cannot, None if they can.

    It is enabled once, for this pair and this way only, in their primary contexts. Where that
    fails, it is not tried again.
    """
    reached = device.reached
    if peer.ordinal not in reached:
        reached[peer.ordinal] = _enable(device, peer)
    return reached[peer.ordinal]


def _enable(device: Device, peer: Device) -> str | None:
    driver = device.driver
    try:
        other = peer.primary_context
        with driver.activate(device.primary_context):
            driver.enable_peer_access(other)
    except DriverCallError as error:
        return (
            f"device {device.ordinal} was refused access to the memory of device {peer.ordinal} "
            f"({error}), which is not tried again in this process"
        )
    return None
