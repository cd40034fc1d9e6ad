"""In which order streams use slots: every use has a ticket, and a later one waits for it.

Tickets are numbers that grow. A slot remembers the last one of its uses, a block the last one of
its way back to the host; whoever wants either waits, on the GPU, for all tickets up to that one.
That may be more than is needed, never less: what is long over costs nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple, Protocol

from numba_swap.device.context import Context
from numba_swap.device.streams import is_legacy
from numba_swap.driver import abi
from numba_swap.errors import DriverCallError

# So many uses of one stream may be kept before it is asked whether some are over.
_KEPT = 8
_SETTLED_EVERY = 64


class Marker(Protocol):
    """What stands behind a use in its stream."""

    def done(self) -> bool:
        """Whether the stream has passed."""

    def wait_on(self, stream: int) -> None:
        """Let a stream wait for it."""

    def wait(self) -> None:
        """Block until the stream has passed."""


class EventMarker:
    """An event behind all that is in a stream now.

    Where the driver refuses to record it, it is recorded when somebody has to wait: later, but
    behind the same work.
    """

    def __init__(self, context: Context, stream: int) -> None:
        self._context = context
        self._stream = stream
        self._event = 0
        self._over = False
        with contextlib.suppress(DriverCallError):  # a sticky one shows at the next call
            self._record()

    def _record(self) -> None:
        event = self._context.take_event()
        try:
            self._context.driver.record_event(event, self._stream)
        except BaseException:
            self._context.give_event(event)
            raise
        self._event = event

    def done(self) -> bool:
        """Whether the stream has passed; the event is given back then."""
        if self._over:
            return True
        if not self._event:
            self._record()
        if not self._context.driver.event_done(self._event):
            return False
        self.give_back()
        return True

    def give_back(self) -> None:
        """Give the event back: the stream has passed."""
        event, self._event, self._over = self._event, 0, True
        if event:
            self._context.give_event(event)

    def wait_on(self, stream: int) -> None:
        """Let a stream wait for it."""
        if self._over:
            return
        if not self._event:
            self._record()
        self._context.driver.wait_event(stream, self._event)

    def wait(self) -> None:
        """Block until the stream has passed; the event is given back then."""
        if self._over:
            return
        if not self._event:
            self._record()
        self._context.driver.synchronize_event(self._event)
        self.give_back()


class _Use(NamedTuple):
    ticket: int
    marker: Marker
    holds: object


class Tickets:
    """The uses that streams may not have passed yet.

    Attributes
    ----------
    last : int
        The newest ticket.
    """

    def __init__(self) -> None:
        self.last = 0
        self._lines: dict[Hashable, deque[_Use]] = {}

    def draw(self) -> int:
        """Return a new ticket."""
        self.last += 1
        return self.last

    def add(self, ticket: int, stream: int, marker: Marker, holds: object) -> None:
        """Note a use; `holds` stays alive until its stream has passed."""
        line = self._lines.setdefault(_name(stream), deque())
        line.append(_Use(ticket, marker, holds))
        # (A stream passes its uses in their order: of those that are over, the last one tells.)
        if len(line) % _KEPT == 0:
            while len(line) >= _KEPT and _is_over(line[_KEPT - 1].marker):
                for _ in range(_KEPT):
                    _let_go(line.popleft().marker)
        if ticket % _SETTLED_EVERY == 0:
            self._settle()

    def _settle(self) -> None:
        """Forget what is over, also of streams that nobody uses any more."""
        for stream, line in list(self._lines.items()):
            while line and _is_over(line[0].marker):
                line.popleft()
            if not line:
                del self._lines[stream]

    def order(self, stream: int, upto: int) -> None:
        """Let a stream wait for all uses in other streams up to a ticket; the host does not."""
        name = _name(stream)
        if len(self._lines) == (name in self._lines) or not upto:
            return
        for other, line in self._lines.items():
            latest = None
            for use in line:
                if use.ticket > upto:
                    break
                latest = use
            if latest is not None and other != name:
                latest.marker.wait_on(stream)

    def wait(self) -> None:
        """Block until all uses are over."""
        for stream in list(self._lines):
            line = self._lines.pop(stream)
            try:
                for use in line:  # the last one would do, but each has something to give back
                    use.marker.wait()
            except BaseException:
                self._lines[stream] = line
                raise

    def __len__(self) -> int:
        """Return the number of uses that are kept."""
        return sum(map(len, self._lines.values()))


def _name(stream: int) -> Hashable:
    """Return what tells a stream from all others: one handle stands for a stream of each thread."""
    if stream == abi.STREAM_PER_THREAD:
        return stream, threading.get_ident()
    return 0 if is_legacy(stream) else stream


def _let_go(marker: Marker) -> None:
    """Let go of what is known to be over."""
    if isinstance(marker, EventMarker):
        marker.give_back()
    else:
        _is_over(marker)


def _is_over(marker: Marker) -> bool:
    """Whether a stream has passed, as far as the driver can tell."""
    try:
        return marker.done()
    except DriverCallError:
        return False
