"""Staged copies: what that needs, and pieces that go round a ring of pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.device.host_threads import host_threads
from numba_swap.device.in_flight import InFlight
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.device.resources import PinnedBuffer
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import Conditions, LaunchContext
from numba_swap.dispatch.ranking import rank
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import workload_of
from numba_swap.errors import DriverCallError
from numba_swap.modes import kernel, loop
from numba_swap.modes.staged.layout import Layout, Piece, layout_of, ring_for


def why_not(ends: Ends, conditions: Conditions) -> str | None:
    """Return why this mode cannot run the copies; None if it can."""
    if ends.direction not in (Direction.H2D, Direction.D2H):
        return f"only copies between host and device are staged, not {ends.direction}"
    host = ends.sources if ends.direction is Direction.H2D else ends.destinations
    if not any(allocation.kind is MemoryKind.PAGEABLE for allocation in host):
        return "no pageable memory takes part"
    if conditions.capturing:
        return (
            "the stream is being captured into a graph, which would not move what threads of the "
            "host move"
        )
    if conditions.duplex:
        return "the other direction runs meanwhile, which threads of the host would hold up"
    return None


def load(device: Device, ends: Ends) -> str | None:
    """Return nothing: pieces go by the kernel if it can be loaded, else by the loop."""
    return None


def room(copies: Copies, device: Device) -> str | None:
    """Return why there is no pinned memory to stage in; None if there is."""
    nbytes = _ring_bytes(copies, device)
    # What is found goes back at once, to be taken when the copies run.
    if devices_of(device.driver).host_buffers.find(nbytes, device.ordinal) is not None:
        return None
    return f"no pinned host memory is left for the {nbytes} bytes of its ring"


def reserve(copies: Copies, launch: LaunchContext) -> PinnedBuffer:
    """Take the ring, and find out where rows are staged."""
    device = launch.device
    layout_of(copies, ring_for(copies.nbytes, device.tuning))
    return launch.devices.host_buffers.take(_ring_bytes(copies, device), device.ordinal)


def submit(copies: Copies, launch: LaunchContext, work: InFlight) -> None:
    """Move the rows between host memory and the ring, and enqueue the pieces in their stream.

    To the device: what is in the stream already is waited for, since it may write what is to be
    read; on return all of the source has been read. To the host: on return all of the destination
    has been written, so that nothing in any stream can come too early for it.

    Raises
    ------
    DriverCallError
        If the driver refuses a piece; those before it were submitted, or have arrived.
    """
    with _Ring.taken(copies, launch, work) as ring:
        if ring.layout.leaves:
            ring.drain()
        else:
            ring.fill()


def _ring_bytes(copies: Copies, device: Device) -> int:
    ring = ring_for(copies.nbytes, device.tuning)
    return ring.piece_bytes * ring.pieces


class _Ring:
    """Pinned memory for some pieces, that others follow when those are through.

    Parameters
    ----------
    copies, launch, work
        As for `submit`.
    events : list of int
        One for each piece under way.
    """

    def __init__(
        self, copies: Copies, launch: LaunchContext, work: InFlight, events: list[int]
    ) -> None:
        device = launch.device
        ring = ring_for(copies.nbytes, device.tuning)
        self.layout: Layout = layout_of(copies, ring)
        self._copies, self._launch, self._work, self._events = copies, launch, work, events
        nbytes = _ring_bytes(copies, device)
        self._buffer = launch.devices.host_buffers.take(nbytes, device.ordinal)
        at = self._buffer.address
        self._places = [at + i * ring.piece_bytes for i in range(ring.pieces)]
        staging = (Allocation(at, at + nbytes, MemoryKind.PINNED, device.ordinal, 0),)
        sides = copies.ends.sources, copies.ends.destinations
        self._ends = Ends.of(*((sides[0], staging) if self.layout.leaves else (staging, sides[1])))
        self._mover: ModuleType | None = None
        # The memory, and of each piece under way what the GPU reads, its table of descriptors.
        self._holds: list[object] = [self._buffer, *[None] * ring.pieces]
        self._threads = device.tuning.threads(launch.conditions.threads)

    @classmethod
    @contextmanager
    def taken(cls, copies: Copies, launch: LaunchContext, work: InFlight) -> Iterator[_Ring]:
        """Take a ring with its events; it is kept until the work is over, whatever happens."""
        context, events = launch.context, list[int]()
        pieces = ring_for(copies.nbytes, launch.device.tuning).pieces
        try:
            while len(events) < pieces:
                events.append(context.take_event())
            ring = cls(copies, launch, work, events)
            work.hold(ring._holds)
            yield ring
        finally:
            for event in events:  # nothing waits for them any more
                context.give_event(event)

    def fill(self) -> None:
        """Move rows to the device."""
        driver, pieces = self._launch.driver, self.layout.pieces
        self._mark(0)
        if not driver.event_done(self._events[0]):
            driver.synchronize_event(self._events[0])
        ready: tuple[int, Copies] | None = None
        for number, piece in enumerate(pieces):
            if number >= len(self._places):
                driver.synchronize_event(self._event(number))
            # The piece before is submitted while threads gather this one.
            with self._moving(number, piece):
                if ready is not None:
                    self._submit(*ready)
                ready = number, self._copies_of(number, piece)
        if ready is not None:
            self._submit(*ready)

    def drain(self) -> None:
        """Move rows to the host."""
        pieces, ahead = self.layout.pieces, len(self._places)
        for number, piece in enumerate(pieces[:ahead]):
            self._submit(number, self._copies_of(number, piece))
        for number, piece in enumerate(pieces):
            self._launch.driver.synchronize_event(self._event(number))
            coming = number + ahead
            following: Copies | None = None
            with self._moving(number, piece):
                if coming < len(pieces):
                    following = self._copies_of(coming, pieces[coming])
            if following is not None:
                self._submit(coming, following)
        self._holds.clear()  # the GPU is through, whenever anybody asks

    def _event(self, number: int) -> int:
        return self._events[number % len(self._events)]

    def _place(self, number: int) -> int:
        return self._places[number % len(self._places)]

    def _copies_of(self, number: int, piece: Piece) -> Copies:
        return self.layout.copies(piece, self._place(number), self._ends)

    def _moving(self, number: int, piece: Piece) -> AbstractContextManager[None]:
        """Let threads move the rows of a piece, while the body runs and after it."""
        job = self.layout.job(piece, self._place(number))
        holds = self._copies, self._buffer, self.layout
        return host_threads().at_work(job, self._threads, holds)

    def _mark(self, number: int) -> None:
        self._launch.driver.record_event(self._event(number), self._launch.stream)

    def _submit(self, number: int, copies: Copies) -> None:
        """Enqueue the copies of a piece between the ring and the device."""
        if self._mover is None:
            self._mover = self._choose(copies)
        self._holds[1 + number % len(self._places)] = copies
        try:
            self._mover.submit(copies, self._launch, self._work)
            self._mark(number)
        except DriverCallError as error:
            raise (error.in_part(number) if number else error) from None

    def _choose(self, copies: Copies) -> ModuleType:
        """Choose what moves pieces like these: one launch, or a copy engine's long copies."""
        launch = self._launch
        for _, mode in rank(find_costs(launch.device), workload_of(copies), launch.conditions):
            if mode is Mode.KERNEL and not (
                kernel.why_not(copies.ends, launch.conditions)
                or kernel.load(launch.device, copies.ends)
                or kernel.room(copies, launch.device)
            ):
                return kernel
            if mode is Mode.LOOP:
                break
        return loop
