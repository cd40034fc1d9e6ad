"""How long copies take in each mode: a small model, fitted to measurements.

The time of a swap is a start-up, plus a share for every copy and a share for every byte. Both
shares depend on how long the copy is, for copy engines change their ways with the length (below
some 28 KiB an engine is fed another way, and the time a copy jumps). Within a class of lengths
they are constants, so that the sum over all copies needs only the number of copies, and of bytes,
in each class: mixed sizes are judged by what is really copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from numba_swap.device.tuning import DEFAULT_TUNING, Tuning
from numba_swap.dispatch.settings import DIRECT_MODES, Mode
from numba_swap.dispatch.workload import BOX_ROUTES, PEER_ROUTES, Workload, pinned_route


class ModeCost(NamedTuple):
    """The time of one mode on one route, in microseconds.

    Attributes
    ----------
    start_us : float
        Of a swap, whatever it copies.
    fork_us : float
        Of spreading it over private streams, if the mode does.
    copy_us : tuple of float
        A copy, for each class of lengths.
    megabyte_us : tuple of float
        A million bytes, for each class of lengths.
    call_us : float
        Of boxes, a copy of the driver; then `copy_us` is the time of a row.
    full_blocks : float
        Of a kernel: as many thread blocks as its time a byte needs; fewer take longer in
        proportion. 0 for the other modes.
    """

    start_us: float
    fork_us: float
    copy_us: tuple[float, ...]
    megabyte_us: tuple[float, ...]
    full_blocks: float = 0.0
    call_us: float = 0.0

    def predict_us(
        self,
        workload: Workload,
        tuning: Tuning = DEFAULT_TUNING,
        *,
        forked: bool = False,
        max_blocks: int | None = None,
    ) -> float:
        """Return the predicted time from call to completion.

        Parameters
        ----------
        workload : Workload
            What is copied.
        tuning : Tuning, optional
            The other figures of the machine.
        forked : bool
            Whether a mode that can do so spreads it over private streams.
        max_blocks : int, optional
            The most thread blocks of a kernel.
        """
        time = self.start_us + self.fork_us if forked else self.start_us
        time += workload.calls * self.call_us
        moving = 0.0
        copy_us, megabyte_us = self.copy_us, self.megabyte_us
        for i, count, nbytes in workload.terms:
            time += count * copy_us[i]
            moving += nbytes * megabyte_us[i]
        moving *= 1e-6
        if self.full_blocks:
            bits = workload.alignment_bits
            if bits & 15 and not workload.calls:
                moving *= tuning.odd_factor if bits & 3 else tuning.unaligned_factor
            if max_blocks is not None and max_blocks < self.full_blocks:
                moving *= self.full_blocks / max_blocks
        return time + moving


class SharedCost(NamedTuple):
    """The time of equally long copies that the kernel and the copy engines share, at once.

    Attributes
    ----------
    share : float
        Of the copies, what goes to the batch.
    start_us, megabyte_us : float
        The time of a swap in microseconds, and of a million bytes.
    """

    share: float
    start_us: float
    megabyte_us: float


class CostModel(NamedTuple):
    """The costs of all modes, and where they come from.

    Attributes
    ----------
    routes : mapping
        For the key of a route, the costs of the modes that were measured there. Where predictions
        are equal, the mode that stands first comes first: the one that uses the least of the
        machine.
    source : str
        On what they were measured, for people.
    tuning : Tuning
        The other figures of that machine.
    boxes_source : str
        The same of boxes, if that was another machine.
    shared : mapping
        For the key of a route and a class of lengths, the cost of both engines at once, where that
        was measured to be faster than either.
    estimated : str
        Which costs of pageable memory were measured elsewhere, if any, for people.
    peers_source : str
        The same of copies between two GPUs.
    peers : mapping
        For each kind of pair of GPUs that was measured, as `pair_key` names it, its routes.
    """

    routes: Mapping[str, Mapping[Mode, ModeCost]]
    source: str
    tuning: Tuning = DEFAULT_TUNING
    boxes_source: str = ""
    shared: Mapping[tuple[str, int], SharedCost] = MappingProxyType({})
    estimated: str = ""
    peers_source: str = ""
    peers: Mapping[str, Mapping[str, Mapping[Mode, ModeCost]]] = MappingProxyType({})

    def between(self, pair: str) -> CostModel:
        """Return the costs for a pair of GPUs: those measured of its kind, if any were."""
        measured = self.peers.get(pair)
        if measured is None:
            return self
        return self._replace(
            routes={**self.routes, **measured}, peers_source=f"{self.source}, between GPUs: {pair}"
        )

    def source_of(self, route: str) -> str:
        """Return on what the costs of a route were measured, for people."""
        if route in PEER_ROUTES:
            return self.peers_source or self.source
        if self.estimated and pinned_route(route) is not None:
            return f"{self.source}; {self.estimated}"
        return (route in BOX_ROUTES and self.boxes_source) or self.source

    def predict(
        self,
        workload: Workload,
        *,
        max_blocks: int | None = None,
        spread: bool = True,
        threads: int | None = None,
    ) -> list[tuple[float, Mode]]:
        """Return the predicted microseconds of every mode.

        Parameters
        ----------
        workload : Workload
            What is copied.
        max_blocks : int, optional
            The most thread blocks of a kernel.
        spread : bool
            Whether a batch may use private streams.
        threads : int, optional
            How many threads of the host move what is staged, if the user says so.

        Returns
        -------
        list of (float, Mode)
            Infinite where nothing was measured; what is staged is told where it was measured.
        """
        measured, tuning = self.routes[workload.route], self.tuning
        forked = spread and tuning.spread_over(workload.copies, workload.nbytes) > 1
        predicted, expected = [], len(DIRECT_MODES)
        for mode, cost in measured.items():
            us = cost.predict_us(workload, tuning, forked=forked, max_blocks=max_blocks)
            if mode is Mode.STAGED:  # fewer threads take longer over the rows, in proportion
                fewer = max(1.0, tuning.host_threads / tuning.threads(threads))
                us = cost.start_us + fewer * (us - cost.start_us)
                expected += 1
            predicted.append((us, mode))
        if len(measured) < expected:
            predicted += [(math.inf, mode) for mode in DIRECT_MODES if mode not in measured]
        return predicted

    def predict_shared(self, workload: Workload) -> tuple[float, float] | None:
        """Return the share of the batch, and the predicted microseconds of both engines at once.

        None for copies of several lengths, or at addresses that a kernel is slower with, and where
        that was not measured, or did not pay.
        """
        if not workload.alike or len(workload.terms) != 1:
            return None
        if workload.alignment_bits & 15 and not workload.calls:
            return None
        ((number, _, nbytes),) = workload.terms
        cost = self.shared.get((workload.route, number))
        if cost is None:
            return None
        return cost.share, cost.start_us + nbytes * cost.megabyte_us * 1e-6

    def predict_mode(
        self, mode: Mode, workload: Workload, *, max_blocks: int | None = None
    ) -> float:
        """Return the predicted microseconds of one mode; infinite if nothing was measured."""
        cost = self.routes[workload.route].get(mode)
        if cost is None:
            return math.inf
        forked = self.tuning.spread_over(workload.copies, workload.nbytes) > 1
        return cost.predict_us(workload, self.tuning, forked=forked, max_blocks=max_blocks)
