"""Streams, events and captured graphs, with all work put off as long as CUDA's rules allow.

Submitting work runs nothing. Work runs when something needs its result, and then only that work
and what CUDA orders before it: earlier work of its stream, the recordings that its stream waits
for, and the mutual order of the legacy default stream and the blocking streams. So whatever a
program under test has forgotten to order is certain to be still undone when it matters.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from numba_swap.driver import abi
from numba_swap.driver.simulated.interrupts import raise_interrupt, run_to_the_end
from numba_swap.driver.simulated.memory import SimulatedFailure

_CAPTURE_MERGE, _CAPTURE_UNMATCHED, _CAPTURE_UNJOINED = 902, 903, 904
_CAPTURE_ISOLATION, _CAPTURED_EVENT = 905, 907

Action: TypeAlias = Callable[[], None]


@dataclass(eq=False, slots=True)
class Operation:
    """Something to do, or only a point in time, after all that it depends on."""

    action: Action | None
    depends: tuple[Operation, ...]
    graph: Graph | None = None
    done: bool = False


@dataclass(eq=False, slots=True)
class Stream:
    """A queue, of which only the end is needed: `last`, and `node` while it is captured."""

    context: int
    blocking: bool
    legacy: bool = False
    last: Operation | None = None
    graph: Graph | None = None
    node: Operation | None = None


@dataclass(eq=False, slots=True)
class Event:
    """The point in a stream that was recorded last; None before the first time."""

    context: int
    operation: Operation | None = None


@dataclass(eq=False, slots=True)
class Graph:
    """What was captured: nodes in an order in which none comes before what it depends on.

    Once something was done that a capture does not allow, it is not `valid`, and lost.
    """

    streams: list[Stream]
    nodes: list[Operation] = field(default_factory=list)
    open: bool = True
    valid: bool = True
    last_launch: Operation | None = None


class Timeline:
    """Everything submitted to one simulated driver. Not thread-safe by itself.

    Attributes
    ----------
    sticky : int
        Code of the first failure of work that ran, 0 if there is none. Nothing runs after it.
    """

    def __init__(self) -> None:
        self.sticky = abi.SUCCESS
        # Handles look like addresses, and no two objects of any sort have the same.
        self.handles = itertools.count(0x5117_0000_1000, 0x100)
        self._streams: dict[int, Stream] = {}
        self._default_streams: dict[tuple[int, int], Stream] = {}
        self._events: dict[int, Event] = {}
        self._dying: list[Stream] = []  # destroyed ones, for the work that is left in them

    # -- objects ----------------------------------------------------------------------------

    def create_stream(self, context: int, blocking: bool) -> int:
        """Return the handle of a new stream."""
        handle = next(self.handles)
        self._streams[handle] = Stream(context, blocking)
        return handle

    def destroy_stream(self, handle: int) -> None:
        """Forget a handle; the work that is left in the stream is still to be done."""
        self._dying.append(self.stream(handle, None))
        del self._streams[handle]

    def create_event(self, context: int) -> int:
        """Return the handle of a new event."""
        handle = next(self.handles)
        self._events[handle] = Event(context)
        return handle

    def living(self) -> Counter[str]:
        """Count events and streams."""
        return Counter(events=len(self._events), streams=len(self._streams))

    def stream(self, handle: int, context: int | None) -> Stream:
        """Find a stream; the default ones are those of a context, and of this thread."""
        if handle > abi.STREAM_PER_THREAD:
            try:
                return self._streams[handle]
            except KeyError:
                raise SimulatedFailure(abi.ERROR_INVALID_HANDLE) from None
        if context is None:
            raise SimulatedFailure(abi.ERROR_INVALID_CONTEXT)
        if handle == abi.STREAM_PER_THREAD:
            key = (context, threading.get_ident())
            return self._default_streams.setdefault(key, Stream(context, blocking=True))
        return self._legacy(context)

    def event(self, handle: int) -> Event:
        """Find an event."""
        try:
            return self._events[handle]
        except KeyError:
            raise SimulatedFailure(abi.ERROR_INVALID_HANDLE) from None

    def _legacy(self, context: int) -> Stream:
        # It counts as blocking, so that everything that asks for "the ordered ones" finds it.
        legacy = Stream(context, blocking=True, legacy=True)
        return self._default_streams.setdefault((context, 0), legacy)

    def _all_streams(self) -> Iterable[Stream]:
        self._dying = [stream for stream in self._dying if stream.last and not stream.last.done]
        return [*self._streams.values(), *self._default_streams.values(), *self._dying]

    # -- submitting -------------------------------------------------------------------------

    def submit(
        self, stream: Stream, action: Action | None, after: tuple[Operation, ...] = ()
    ) -> Operation:
        """Put work at the end of a stream, or of what is captured from it."""
        self._check_capture(stream)
        if stream.graph is not None:
            depends = after if stream.node is None else (stream.node, *after)
            stream.node = Operation(action, depends, stream.graph)
            stream.graph.nodes.append(stream.node)
            return stream.node
        before = [stream]
        if stream.legacy:
            before = self._ordered_with(stream)
        elif stream.blocking:
            before.append(self._legacy(stream.context))
        ends = (*(other.last for other in before), *after)
        stream.last = Operation(action, tuple(end for end in ends if end and not end.done))
        return stream.last

    def record(self, event: Event, stream: Stream) -> None:
        """Let an event stand for all that is in a stream now."""
        if event.context != stream.context:
            raise SimulatedFailure(abi.ERROR_INVALID_HANDLE)
        event.operation = self.submit(stream, None)

    def wait(self, stream: Stream, event: Event) -> None:
        """Let a stream wait for an event as it is recorded now; a captured one draws it in."""
        self._check_capture(stream)
        recorded = event.operation
        if recorded is None:
            return
        if recorded.graph is not stream.graph:
            if recorded.graph is None:
                raise self._lost(_CAPTURE_ISOLATION, stream.graph)
            if not recorded.graph.open:
                raise SimulatedFailure(_CAPTURED_EVENT)
            if stream.graph is not None:
                raise self._lost(_CAPTURE_MERGE, stream.graph, recorded.graph)
            if stream.legacy:
                raise self._lost(abi.ERROR_STREAM_CAPTURE_IMPLICIT, recorded.graph)
            stream.graph = recorded.graph
            stream.graph.streams.append(stream)
        self.submit(stream, None, (recorded,))

    # -- running ----------------------------------------------------------------------------

    def run(self, wanted: Operation) -> None:
        """Do one operation, and first all that it depends on, however long the chain is."""
        stack = [wanted]
        while stack:
            operation = stack[-1]
            waiting = [before for before in operation.depends if not before.done]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if operation.done:
                continue
            raise_interrupt()
            action, depends = operation.action, operation.depends
            operation.action, operation.depends, operation.done = None, (), True
            if action is not None and not self.sticky:
                try:
                    run_to_the_end(action)
                except SimulatedFailure as failure:
                    self.sticky = failure.code
                except KeyboardInterrupt:  # by the action itself: it is still to be done
                    operation.action, operation.depends, operation.done = action, depends, False
                    raise
        raise_interrupt()

    def query(self, event: Event) -> bool:
        """Return whether an event is over. If not, do its work, so that the next time it is.

        Polling thus ends, always with the second query.
        """
        operation = self._outside_capture(event)
        if operation is None or operation.done:
            return True
        self.run(operation)
        return False

    def synchronize_event(self, event: Event) -> None:
        """Do all that an event stands for."""
        operation = self._outside_capture(event)
        if operation is not None:
            self.run(operation)

    def synchronize_stream(self, stream: Stream) -> None:
        """Do all that is in a stream."""
        if stream.graph is not None:
            raise self._lost(abi.ERROR_STREAM_CAPTURE_UNSUPPORTED, stream.graph)
        self.run(self.submit(stream, None))

    def synchronize(self) -> None:
        """Do all that was ever submitted."""
        for stream in self._all_streams():
            if stream.last is not None:
                self.run(stream.last)

    def _outside_capture(self, event: Event) -> Operation | None:
        if event.operation is not None and event.operation.graph is not None:
            raise self._lost(_CAPTURED_EVENT, event.operation.graph)
        return event.operation

    # -- capture ----------------------------------------------------------------------------

    def capture_status(self, stream: Stream) -> int:
        """Return whether a stream is being captured, and whether that is lost already.

        The legacy stream never is, and cannot be used while a blocking stream is. To ask does no
        harm.
        """
        if stream.legacy and self._captured_beside(stream):
            raise SimulatedFailure(abi.ERROR_STREAM_CAPTURE_IMPLICIT)
        if stream.graph is None:
            return abi.CAPTURE_STATUS_NONE
        valid = stream.graph.valid
        return abi.CAPTURE_STATUS_ACTIVE if valid else abi.CAPTURE_STATUS_INVALIDATED

    def forbid(self) -> None:
        """Fail if any stream is being captured, whose graph is lost then."""
        graphs = [stream.graph for stream in self._all_streams() if stream.graph is not None]
        if graphs:
            raise self._lost(abi.ERROR_STREAM_CAPTURE_UNSUPPORTED, *graphs)

    def _check_capture(self, stream: Stream) -> None:
        """Fail if work in a stream would meddle with a capture, or has."""
        if stream.graph is not None and not stream.graph.valid:
            raise SimulatedFailure(abi.ERROR_STREAM_CAPTURE_INVALIDATED)
        captured = self._captured_beside(stream) if stream.legacy else []
        if captured:
            raise self._lost(abi.ERROR_STREAM_CAPTURE_IMPLICIT, *captured)

    def _ordered_with(self, legacy: Stream) -> list[Stream]:
        """Return all streams that the legacy one waits for, itself among them."""
        return [s for s in self._all_streams() if s.blocking and s.context == legacy.context]

    def _captured_beside(self, legacy: Stream) -> list[Graph]:
        return [s.graph for s in self._ordered_with(legacy) if s.graph is not None]

    @staticmethod
    def _lost(code: int, *graphs: Graph | None) -> SimulatedFailure:
        """Make the failure of what no capture allows; the graphs are lost."""
        for graph in graphs:
            if graph is not None:
                graph.valid = False
        return SimulatedFailure(code)

    def begin_capture(self, stream: Stream) -> None:
        """Record what is submitted to a stream from now on instead of queueing it."""
        if stream.legacy or stream.graph is not None:
            raise SimulatedFailure(abi.ERROR_STREAM_CAPTURE_UNSUPPORTED)
        stream.graph = Graph([stream])

    def end_capture(self, stream: Stream) -> Graph:
        """End a capture with the stream that began it, and return what was recorded."""
        graph = stream.graph
        if graph is None or graph.streams[0] is not stream:
            raise SimulatedFailure(_CAPTURE_UNMATCHED)
        ends = [other.node for other in graph.streams]
        for other in graph.streams:
            other.graph = other.node = None
        graph.open = False
        if not graph.valid:
            raise SimulatedFailure(abi.ERROR_STREAM_CAPTURE_INVALIDATED)
        joined: set[Operation] = set()
        stack = ends[:1]
        while stack:
            node = stack.pop()
            if node is not None and node not in joined:
                joined.add(node)
                stack.extend(node.depends)
        if not joined.issuperset(end for end in ends if end is not None):
            raise SimulatedFailure(_CAPTURE_UNJOINED)
        return graph

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Submit all of a graph to a stream; launches of one graph follow one another."""
        if stream.graph is not None:
            raise SimulatedFailure(abi.ERROR_STREAM_CAPTURE_UNSUPPORTED)
        previous = () if graph.last_launch is None else (graph.last_launch,)
        start = self.submit(stream, None, previous)
        copies: dict[Operation, Operation] = {}
        for node in graph.nodes:
            copies[node] = Operation(
                node.action, tuple(copies[b] for b in node.depends) or (start,)
            )
        graph.last_launch = self.submit(stream, None, tuple(copies.values()))
