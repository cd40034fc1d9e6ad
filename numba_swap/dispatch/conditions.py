"""What a choice follows from besides the copies: what the machine can do, and the circumstances."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from numba_swap.device.context import Context
from numba_swap.device.device import Device
from numba_swap.device.devices import Devices, devices_of
from numba_swap.device.peers import Link
from numba_swap.dispatch.settings import Policy, Settings, current_settings
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.entry_points import LookupResult
from numba_swap.driver.version import DriverVersion


@dataclass(frozen=True, eq=False)
class Capabilities:
    """What a driver and one of its GPUs can do, as far as the modes ask; one object for each.

    Attributes
    ----------
    version : DriverVersion
        The driver version that counts: the driver's, or the lower one that is pretended.
    pretended : bool
        Whether it is pretended.
    lookups : mapping of str to LookupResult
        What the driver answered for each of its functions.
    device : int
        The GPU.
    peers : frozenset of int
        The other GPUs whose memory kernels on this one may reach.
    concurrent_managed : bool
        Whether host and GPU may use managed memory at the same time.
    pageable_access : bool
        Whether the GPU reaches pageable memory in place, as HMM and ATS machines do.
    simulated : bool
        Whether the driver is simulated.
    """

    version: DriverVersion
    pretended: bool
    lookups: Mapping[str, LookupResult]
    device: int = 0
    concurrent_managed: bool = True
    simulated: bool = False
    pageable_access: bool = False
    peers: frozenset[int] = frozenset()

    @property
    def driver_words(self) -> str:
        """The driver in words, for reasons."""
        return f"driver {self.version}{' (pretended)' if self.pretended else ''}"


def driver_capabilities(
    driver: Driver,
    settings: Settings,
    device: int = 0,
    *,
    concurrent_managed: bool = True,
    pageable_access: bool = False,
    peers: frozenset[int] = frozenset(),
) -> Capabilities:
    """Return what a driver can do, on a GPU of which no more is known than this."""
    version = settings.cap(driver.version)
    return Capabilities(
        version,
        version < driver.version,
        driver.entry_points.answers,
        device,
        concurrent_managed,
        driver.simulated,
        pageable_access,
        peers,
    )


def capabilities_of(device: Device, settings: Settings) -> Capabilities:
    """Return what a GPU can do with the driver version that counts; found out once."""
    known = device.capabilities.get(settings.driver_version)
    if known is None:
        concurrent = bool(device.attribute(abi.DEVICE_CONCURRENT_MANAGED_ACCESS))
        found = driver_capabilities(
            device.driver,
            settings,
            device.ordinal,
            concurrent_managed=concurrent,
            pageable_access=bool(device.attribute(abi.DEVICE_PAGEABLE_MEMORY_ACCESS)),
            peers=_peers_of(device),
        )
        known = device.capabilities.setdefault(settings.driver_version, found)
    return cast("Capabilities", known)


def _peers_of(device: Device) -> frozenset[int]:
    devices, ordinal = devices_of(device.driver), device.ordinal
    others = [peer for peer in range(device.driver.device_count()) if peer != ordinal]
    return frozenset(peer for peer in others if devices.link(ordinal, peer) is not Link.NONE)


class Conditions(NamedTuple):
    """The circumstances under which copies run, as far as the choice of a mode asks.

    Attributes
    ----------
    capabilities : Capabilities
        What the machine can do.
    capturing : bool
        Whether the stream is being captured into a graph.
    policy : Policy
        What the choice is to be good for.
    max_blocks : int or None
        The most thread blocks that a kernel may have, by the user's word and the policy.
    beside : bool
        Whether this is a part of a call, of which other parts run beside it.
    duplex : bool
        Whether the other direction of the host link is busy meanwhile.
    shares_engines : bool
        Whether this is one of several streams that share what the copy engines get: a batch is
        then not spread any further.
    threads : int or None
        How many threads of the host move rows of pageable memory, if the user says so.
    """

    capabilities: Capabilities
    capturing: bool = False
    policy: Policy = Policy.THROUGHPUT
    max_blocks: int | None = None
    beside: bool = False
    duplex: bool = False
    shares_engines: bool = False
    threads: int | None = None

    @property
    def may_use_private_streams(self) -> bool:
        """Whether it may: a graph keeps its one stream, and so does haste."""
        return not self.capturing and self.policy is not Policy.LATENCY


class LaunchContext(NamedTuple):
    """Where and how work is submitted.

    Attributes
    ----------
    stream : int
        Handle of the stream.
    context : Context
        The stream's context, the calling thread's current one.
    conditions : Conditions
        The circumstances.
    key : hashable
        Of several parts that run at once, which one this is: each has its own private streams.
    others : tuple of (int, Context)
        Other streams in whose order the work stands, too, with their contexts: it comes after what
        they hold, and before what follows there. Those of other GPUs.
    """

    stream: int
    context: Context
    conditions: Conditions
    key: Hashable = ()
    others: tuple[tuple[int, Context], ...] = ()

    @property
    def driver(self) -> Driver:
        """The driver."""
        return self.context.driver

    @property
    def device(self) -> Device:
        """The GPU."""
        return self.context.device

    @property
    def devices(self) -> Devices:
        """All GPUs of the driver."""
        return devices_of(self.context.driver)

    def under(self, **changes: Any) -> LaunchContext:
        """Return the same place under other conditions."""
        return self._replace(conditions=self.conditions._replace(**changes))

    def on(self, device: int) -> LaunchContext:
        """Return the same circumstances on another GPU, where no stream is chosen yet."""
        if device == self.device.ordinal:
            return self
        context = self.devices.primary(device)
        capabilities = capabilities_of(context.device, current_settings())
        return self._replace(context=context).under(capabilities=capabilities)
