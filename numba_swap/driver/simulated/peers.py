"""Which simulated devices reach the memory of which others, and for whom that was enabled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from numba_swap.driver import abi
from numba_swap.driver.simulated.memory import SimulatedFailure
from numba_swap.errors import BadArgumentError

PeerAccess: TypeAlias = bool | str | Sequence[Sequence[bool | str]]

# What a driver tells of each link: how it ranks (the best is 0), access, and native atomics.
_LINKS: dict[bool | str, tuple[int, int, int]] = {
    True: (0, 1, 1),
    "NVLink": (0, 1, 1),
    "PCIe": (1, 1, 0),
    False: (2, 0, 0),
}
_TOLD = (abi.P2P_PERFORMANCE_RANK, abi.P2P_ACCESS_SUPPORTED, abi.P2P_NATIVE_ATOMIC_SUPPORTED)


class Peers:
    """Links between devices, and the contexts that may use them. Not thread-safe by itself.

    Parameters
    ----------
    devices : int
        How many there are.
    access : bool, str, or matrix of these
        Whether kernels of each device (row) may reach the memory of each other one (column):
        ``True`` or ``"NVLink"``, ``"PCIe"``, ``False``; one value for all pairs.

    Raises
    ------
    BadArgumentError
        If it is none of these.
    """

    def __init__(self, devices: int, access: PeerAccess = True) -> None:
        self._links = [
            [_LINKS[_link_of(access, devices, i, j)] for j in range(devices)]
            for i in range(devices)
        ]
        self._enabled: dict[int, set[int]] = {}

    def can_access(self, device: int, peer: int) -> bool:
        """Whether access may be enabled; a device is no peer of itself."""
        return device != peer and bool(self._links[device][peer][1])

    def attribute(self, code: int, device: int, peer: int) -> int:
        """Return one attribute of a pair."""
        if code not in _TOLD:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        return self._links[device][peer][_TOLD.index(code)]

    def enable(self, context: int, device: int, peer: int) -> None:
        """Let a context, of a device, reach the memory of another device."""
        if not self.can_access(device, peer):
            raise SimulatedFailure(abi.ERROR_PEER_ACCESS_UNSUPPORTED)
        if peer in self.enabled(context):
            raise SimulatedFailure(abi.ERROR_PEER_ACCESS_ALREADY_ENABLED)
        self._enabled.setdefault(context, set()).add(peer)

    def enabled(self, context: int) -> set[int]:
        """Return the devices whose memory a context was enabled to reach."""
        return self._enabled.get(context, set())


def _link_of(access: PeerAccess, devices: int, device: int, peer: int) -> bool | str:
    if isinstance(access, (bool, str)):
        link = access
    else:
        if len(access) != devices or any(len(row) != devices for row in access):
            raise BadArgumentError(
                f"peer_access={access!r} has no row and column for each of {devices} devices"
            )
        link = access[device][peer]
    if not isinstance(link, (bool, str)) or link not in _LINKS:
        raise BadArgumentError(
            f"peer_access: {link!r} is no link: give True or 'NVLink', 'PCIe', or False"
        )
    return link
