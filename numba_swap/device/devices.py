"""All GPUs of a driver, and the memory that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from numba_swap.device.context import Context
from numba_swap.device.device import Device
from numba_swap.device.peers import Link, find_link
from numba_swap.device.resources import HostBuffers
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver


class Devices:
    """All GPUs of one driver.

    Attributes
    ----------
    driver : Driver
        The driver.
    host_buffers : HostBuffers
        Pinned memory for descriptors.
    views : dict
        What the floors above know of copies between views, to find it again.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.views: dict[Any, Any] = {}
        self.host_buffers = HostBuffers(self._allocate_pinned)
        self._devices: dict[int, Device] = {}
        self._contexts: dict[int, Context] = {}
        self._links: dict[tuple[int, int], Link] = {}

    def __getitem__(self, ordinal: int) -> Device:
        device = self._devices.get(ordinal)
        if device is None:  # of several threads that come first, all get that of one
            device = self._devices.setdefault(ordinal, Device(self.driver, ordinal))
        return device

    def context(self, handle: int) -> Context:
        """Return what is kept for a context, which must be the calling thread's."""
        context = self._contexts.get(handle)
        if context is None:
            device = self[self.driver.current_device()]
            context = self._contexts.setdefault(handle, Context(self.driver, device, handle))
        return context

    def primary(self, ordinal: int) -> Context:
        """Return what is kept for the primary context of a GPU, whatever context is current."""
        device = self[ordinal]
        handle = device.primary_context
        context = self._contexts.get(handle)
        if context is None:
            context = self._contexts.setdefault(handle, Context(self.driver, device, handle))
        return context

    def link(self, device: int, peer: int) -> Link:
        """Return how a GPU reaches the memory of another; asked for once."""
        link = self._links.get((device, peer))
        if link is None:
            link = self._links[device, peer] = find_link(self.driver, device, peer)
        return link

    def _allocate_pinned(self, nbytes: int, device: int | None) -> int:
        """Allocate in whatever context is current; in that of a device if there is none."""
        with self.in_a_context(device):
            return self.driver.host_alloc(nbytes)

    def asking_about(self, addresses: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Let the calling thread have a context while the driver is asked what memory is.

        Without one the driver does not tell by which address a kernel reaches it. A thread that
        has none gets that of the GPU whose memory is among it, and of no other.

        Parameters
        ----------
        addresses : sequence of int
            Where the memory begins.
        """
        if not addresses or self.driver.probe(0)[0]:
            return contextlib.nullcontext()
        known = [info for info in map(self.driver.pointer_info, addresses) if info.memory_type]
        # Memory of a GPU comes before host memory, which was pinned in the context of one.
        known.sort(key=lambda info: info.memory_type != abi.MEMORYTYPE_DEVICE)
        device = self[known[0].device if known else 0]
        return self.driver.activate(device.primary_context)

    @contextlib.contextmanager
    def in_a_context(self, device: int | None) -> Iterator[None]:
        """Let the calling thread have a context: its own, or else that of a device."""
        if self.driver.probe(0)[0]:
            yield
            return
        with self.driver.activate(self[device or 0].primary_context):
            yield


def devices_of(driver: Driver) -> Devices:
    """Return the GPUs of a driver, always the same object for one driver.

    It is kept with the driver, which knows nothing of it, and goes when the driver goes.
    """
    kept = vars(driver)
    found: Devices | None = kept.get("devices")
    if found is None:  # of several threads that come first, all get that of one
        found = kept.setdefault("devices", Devices(driver))
    return found
