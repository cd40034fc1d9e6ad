"""What is known of pairs of arrays that blocks were copied between, for the next time.

Programs that page copy between the same pools over and over, a few blocks each time: everything but
the block ids is then as it was. `plan_cache` remembers, for as many pairs as fit, how the arrays
lie and match, and how copies between them ran last. It keeps no array alive, and whatever changed
about one (its memory, shape, strides, whether it may be written) is noticed at the next use.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from numba_swap.copies.inputs.array_state import StateReader, state_reader
from numba_swap.copies.layers import LayerPair
from numba_swap.device.devices import Devices
from numba_swap.dispatch.settings import check_positive

DEFAULT_PAIRS = 256
_MOST_DECISIONS = 1024
_MOST_STREAMS = 16

_T = TypeVar("_T")
Key = tuple[Any, ...]


class PlanCacheInfo(NamedTuple):
    """How the cache of array pairs, and of the ways that views lie, does.

    Attributes
    ----------
    hits, misses : int
        Calls that found their arrays known and unchanged, or were copied as earlier views were, and
        calls that did not.
    maxsize, currsize : int
        How many pairs, and how many ways that views lie, are remembered at most; and both now.
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int


class ArrayPair:
    """What is known of copies between two arrays, or two lists of layers.

    Attributes
    ----------
    layers : list of LayerPair
        How they lie and match; they keep nothing alive.
    """

    def __init__(
        self,
        devices: Devices,
        arrays: Sequence[tuple[Any, StateReader]],
        layers: Sequence[LayerPair],
        on_death: Callable[[Any], None],
    ) -> None:
        self._devices = weakref.ref(devices)
        # Of each array: a weak reference, and its state when it was read.
        self._known = [(weakref.ref(array, on_death), read, read(array)) for array, read in arrays]
        self.layers = [pair.owned_by(None, None) for pair in layers]
        self._makers: dict[int, Callable[[], object]] = {}
        self._prepared: dict[int, Any] = {}

    def prepared(self, stream: int) -> Any:
        """Return what was prepared for a stream; None if that is nothing."""
        make = self._makers.pop(stream, None) if self._makers else None
        if make is not None:
            try:
                self._prepared[stream] = make()
            except LookupError:  # it cannot be done again
                self._prepared.pop(stream, None)
        return self._prepared.get(stream)

    def prepare(self, stream: int, make: Callable[[], object]) -> None:
        """Let something be made the next time that it is asked for: many pairs are used once."""
        if len(self._prepared) + len(self._makers) >= _MOST_STREAMS:
            self._prepared.clear()
            self._makers.clear()
        self._makers[stream] = make

    def is_of(self, devices: Devices, arrays: Sequence[Any]) -> bool:
        """Whether these are the arrays, unchanged, that it knows."""
        if self._devices() is not devices:
            return False
        try:
            for (ref, read, state), array in zip(self._known, arrays, strict=False):
                if ref() is not array or read(array) != state:
                    return False
        except Exception:  # what an array raises says that it changed: it is read anew
            return False
        return True

    def layers_of(self, src: Any, dst: Any) -> list[LayerPair]:
        """Return the layers, keeping the arrays alive, as if they had just been read.

        What memory they lie in is asked anew: it may have been freed, or pinned, since.
        """
        if isinstance(src, (list, tuple)):
            ends = zip(self.layers, src, dst, strict=True)
            return [pair.owned_by(*arrays, ask_anew=True) for pair, *arrays in ends]
        return [self.layers[0].owned_by(src, dst, ask_anew=True)]


class PlanCache:
    """What `swap_blocks`, `exchange` and `copy` remember of the arrays that they were given.

    A call between arrays that are remembered, and unchanged, reads nothing of them again; copies
    that run as one kernel are then planned and launched in one compiled call. `copy` remembers how
    its views lay: views of the same shape and strides elsewhere in memory of the same sort, such as
    the next tile of a field, are copied in one compiled call, too. The cache keeps no array alive.
    When it is full, a random pair makes room: so a loop over a few more pairs than fit still finds
    most of them.

    Examples
    --------
    >>> import numba_swap as ns
    >>> ns.plan_cache.clear()
    >>> with ns.simulate() as gpu:
    ...     host, device = gpu.pinned_array((8, 64)), gpu.device_array((8, 64))
    ...     for step in range(3):
    ...         ns.swap_blocks(host, device, [[step, 0], [step + 3, 5]]).wait()
    >>> ns.plan_cache.info()
    PlanCacheInfo(hits=2, misses=1, maxsize=256, currsize=1)
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._pairs: dict[Key, ArrayPair] = {}
        self._homes: weakref.WeakSet[Devices] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def info(self) -> PlanCacheInfo:
        """Return hits, misses, and how many pairs are remembered."""
        views = sum(len(devices.views) for devices in list(self._homes))
        return PlanCacheInfo(self._hits, self._misses, self._maxsize, len(self._pairs) + views)

    def clear(self) -> None:
        """Forget all pairs, and count from 0 again."""
        with self._lock:
            self._pairs.clear()
            for devices in self._homes:
                devices.views.clear()
            self._hits = self._misses = 0

    def resize(self, maxsize: int) -> None:
        """Remember so many pairs at most; 0 remembers none.

        Parameters
        ----------
        maxsize : int
            The number of pairs.

        Raises
        ------
        BadArgumentError
            If it is no integer from 0 on.
        """
        if type(maxsize) is not int or maxsize != 0:
            check_positive(maxsize, "maxsize")
        with self._lock:
            self._maxsize = maxsize
            for known in (self._pairs, *(devices.views for devices in self._homes)):
                while len(known) > maxsize:
                    _evict(known)

    def find(
        self, devices: Devices, src: Any, dst: Any, axis: int, verb: str = "swap"
    ) -> ArrayPair | None:
        """Return what is known of two arrays, or lists of layers; None if that is nothing."""
        if type(axis) is not int:  # some are equal to one, and no axis
            return None
        key, arrays = _key(src, dst, axis, verb)
        pair = self._pairs.get(key)
        if pair is None or not pair.is_of(devices, arrays):
            self._misses += 1
            return None
        self._hits += 1
        return pair

    def remember(
        self,
        devices: Devices,
        src: Any,
        dst: Any,
        axis: int,
        layers: Sequence[LayerPair],
        verb: str = "swap",
    ) -> ArrayPair | None:
        """Remember how arrays lie; None if nothing can be remembered of them."""
        if not self._maxsize or type(axis) is not int:
            return None
        key, arrays = _key(src, dst, axis, verb)
        readers = [state_reader(array) for array in arrays]
        if not layers or None in readers:
            return None
        known = [(array, read) for array, read in zip(arrays, readers, strict=True) if read]
        try:
            # (A finalizer may run at any time, also while the lock is held: it takes none.)
            pair = ArrayPair(devices, known, layers, self._forget(key))
        except Exception:  # objects without weak references, or that can be read only once
            return None
        self._put(key, pair)
        return pair

    def views_of(self, devices: Devices) -> dict[Key, Any] | None:
        """Return what is known of copies between views that lie alike; None if nothing may be.

        It is kept with the GPUs, and goes when they go. Whoever puts more in calls `trim_views`.
        """
        if not self._maxsize:
            return None
        self._homes.add(devices)
        return devices.views

    def count(self, *, hit: bool) -> None:
        """Count a call whose views were known, or were not."""
        if hit:
            self._hits += 1
        else:
            self._misses += 1

    def trim_views(self, views: dict[Key, Any]) -> None:
        """Forget some of what is known of views, if it is more than may be."""
        with self._lock:
            while len(views) > self._maxsize:
                _evict(views)

    def _put(self, key: Key, known: ArrayPair) -> None:
        with self._lock:
            if key not in self._pairs:
                while len(self._pairs) >= max(1, self._maxsize):
                    _evict(self._pairs)
            self._pairs[key] = known

    def _forget(self, key: Key) -> Callable[[Any], None]:
        """Return what forgets a pair when one of its arrays dies."""
        pairs = self._pairs

        def forget(_: Any) -> None:
            pairs.pop(key, None)

        return forget


def _evict(known: dict[Key, Any]) -> None:
    keys = list(known)  # of a moment: arrays may die meanwhile
    if keys:
        known.pop(random.choice(keys), None)  # noqa: S311 -- any will do


def _key(src: Any, dst: Any, axis: int, verb: str) -> tuple[Key, Sequence[Any]]:
    """Return the key of two arrays or lists of layers, and the arrays."""
    if isinstance(src, (list, tuple)) and isinstance(dst, (list, tuple)):
        arrays = (*src, *dst)
        return (verb, len(src), *map(id, arrays), axis), arrays
    return (verb, id(src), id(dst), axis), (src, dst)


class ByCount(Generic[_T]):
    """What follows from a number of rows, made once for each.

    Parameters
    ----------
    make : callable
        Gets the number of rows.
    """

    def __init__(self, make: Callable[[int], _T]) -> None:
        self._make = make
        self._made: dict[int, _T] = {}

    def __call__(self, rows: int) -> _T:
        """Return what follows from so many rows."""
        try:
            return self._made[rows]
        except KeyError:
            if len(self._made) >= _MOST_DECISIONS:
                self._made.clear()
            return self._made.setdefault(rows, self._make(rows))


plan_cache = PlanCache(DEFAULT_PAIRS)
