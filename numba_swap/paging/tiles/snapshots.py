"""Blocks of one moment, brought to the host while the steps go on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.copies.inputs.arrays import view_array
from numba_swap.device.context import Context
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.settings import check_positive
from numba_swap.driver import abi
from numba_swap.errors import BadArgumentError, BadPlanError, UnsupportedArrayError, brief
from numba_swap.paging.tiles.arrays import arrays_of
from numba_swap.paging.tiles.slots import Mark
from numba_swap.swap.boxes import copy
from numba_swap.swap.running.transfer import Transfer
from numba_swap.swap.verbs import current_devices, swap_blocks


class _Place:
    """Device and host memory of one snapshot; it grows to the most blocks that it ever held."""

    def __init__(self, context: Context, stream: int) -> None:
        self.stream = stream
        self.length = 0
        self.stage: Any = None
        self.host: npt.NDArray[Any] = np.empty(0)
        self.staged = Mark(context)
        self.transfers: list[Transfer] = []

    def grow(self, arrays: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if shape[0] > self.length:
            self.stage = arrays.device_array(shape, dtype)
            self.host = arrays.pinned_array(shape, dtype)
            self.length = shape[0]


class Snapshot:
    """Blocks as they were at one moment; made by `Snapshots.take`.

    Attributes
    ----------
    ids : ndarray of int64
        Which blocks.
    data : ndarray
        They, in pinned host memory: valid after `wait`, until `release`.
    """

    def __init__(self, owner: Snapshots, place: _Place, ids: npt.NDArray[np.int64]) -> None:
        self.ids = ids
        self._owner = owner
        self._place: _Place | None = place

    @property
    def data(self) -> npt.NDArray[Any]:  # noqa: D102 -- see the class
        return self._held().host[: len(self.ids)]

    def wait(self) -> None:
        """Block until the data is here.

        Raises
        ------
        DriverCallError
            If a copy failed on the GPU.
        BadPlanError
            If it was released.
        """
        for transfer in reversed(self._held().transfers):  # the last one comes after the others
            transfer.wait()

    def release(self) -> None:
        """Give the memory back for a later snapshot; the second time nothing happens."""
        place, self._place = self._place, None
        if place is not None:
            self._owner._give_back(place)

    def restore(self, stream: Any = None) -> Transfer:
        """Copy the blocks back to where they were, once they are here.

        Parameters
        ----------
        stream : stream, int or None, optional
            As for `numba_swap.swap_blocks`.

        Returns
        -------
        Transfer
            What to wait on, before `release`.

        Raises
        ------
        NumbaSwapError
            As for `wait` and `numba_swap.swap_blocks`.
        """
        self.wait()
        rows = np.stack([np.arange(len(self.ids)), self.ids], axis=1)
        return swap_blocks(self.data, self._owner.array, rows, stream=stream)

    def _held(self) -> _Place:
        if self._place is None:
            raise BadPlanError("the snapshot was released: its memory may hold another one")
        return self._place


class Snapshots:
    """A ring of snapshots of blocks of a device array, written while the steps go on.

    `take` copies the blocks within the device, in your stream: that is the moment. From there they
    go to pinned host memory in a stream of their own.

    Parameters
    ----------
    array : device array
        Blocks along its first axis, C-contiguous; anything with ``__cuda_array_interface__``.
    depth : int, optional
        How many snapshots there are at a time. Each takes memory for its blocks, on the device
        and, pinned, on the host, when it is first used.
    to : callable, or array, optional
        Where snapshots go: called with each `Snapshot`, when its data is here, in order, in a
        thread of its own; or an array of the host (NumPy, Zarr), of which ``to[ids] = data`` is
        set. The snapshot is released afterwards. It must not call this object.

    Attributes
    ----------
    array
        As given.

    Raises
    ------
    UnsupportedArrayError
        What is no device array.
    BadArgumentError
        A depth that is no positive integer; what is neither callable nor an array.
    DriverUnavailableError
        No CUDA driver or device.

    Notes
    -----
    Used in ``with``, it waits at the end for what is to be written. If writing a snapshot fails,
    the next `take`, `wait` or `close` raises that error, with a note that names the blocks; later
    ones are written all the same. One thread may call it at a time.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     tiles = gpu.device_array((6, 4))
    ...     tiles.copy_to_device(np.arange(24).reshape(6, 4))
    ...     stream = gpu.stream()
    ...     snaps = ns.Snapshots(tiles, depth=2)
    ...     snap = snaps.take([5, 0], stream=stream)
    ...     tiles.copy_to_device(np.zeros((6, 4)), stream)  # later work does not change it
    ...     snap.wait()
    ...     print(snap.data)
    ...     snap.restore(stream).wait()
    ...     snap.release()
    ...     print(tiles.copy_to_host()[4:])
    [[20. 21. 22. 23.]
     [ 0.  1.  2.  3.]]
    [[ 0.  0.  0.  0.]
     [20. 21. 22. 23.]]
    """

    def __init__(
        self, array: Any, depth: int = 3, *, to: Callable[[Snapshot], object] | Any = None
    ) -> None:
        check_positive(depth, "depth")
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None or isinstance(array, np.ndarray):
            raise UnsupportedArrayError(f"array is a {type(array).__name__}: give a device array")
        if to is not None and not callable(to) and not hasattr(to, "__setitem__"):
            raise BadArgumentError(f"to={brief(to)}: give a callable, or an array of the host")
        view = view_array(array, "array")
        if not view.shape:
            raise UnsupportedArrayError("array has no axes: give one of blocks")
        self.array = array
        self._shape, self._dtype = view.shape, np.dtype(interface["typestr"])
        devices = current_devices()
        self._driver = devices.driver
        info = devices.driver.pointer_info(view.address)
        if view.address and info.memory_type != abi.MEMORYTYPE_DEVICE:
            raise UnsupportedArrayError("array does not lie in device memory")
        with devices.driver.activate(devices[info.device].primary_context):
            self._context = devices.context(devices[info.device].primary_context)
            streams = self._context.private_streams(depth, "snapshots")
        self._to = to
        self._errors: list[BaseException] = []
        self._changed = threading.Condition()
        self._free = [_Place(self._context, stream) for stream in streams]
        self._depth = depth
        self._queue: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(
        self, ids: Sequence[int] | npt.ArrayLike | None = None, *, stream: Any = None
    ) -> Snapshot:
        """Take a snapshot of blocks, as they are after the work that is in a stream now.

        If all of the ring is being written, this waits until there is room.

        Parameters
        ----------
        ids : array_like of int, optional
            Which blocks, in the order wanted; by default all.
        stream : stream, int or None, optional
            As for `numba_swap.swap_blocks`: the blocks are staged there.

        Returns
        -------
        Snapshot
            With `to`, it is released when it is written.

        Raises
        ------
        BadPlanError
            Ids that are no blocks. Or all snapshots are in use, and only you can release one.
        Exception
            What writing an earlier snapshot raised.
        """
        self._raise_error()
        numbers = np.arange(self._shape[0]) if ids is None else np.asarray(ids)
        if numbers.size == 0:
            numbers = numbers.astype(np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise BadPlanError(f"ids={brief(ids)}: give block numbers, in one row")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self._shape[0]:
            raise BadPlanError(f"ids={brief(ids)} are not all among the {self._shape[0]} blocks")
        handle = stream_handle(stream)
        place = self._take_place()
        try:
            with self._driver.activate(self._context.handle):
                self._fill(place, numbers, stream, handle)
        except BaseException:
            self._give_back(place)
            raise
        snapshot = Snapshot(self, place, numbers.astype(np.int64))
        if self._to is not None:
            self._hand_over(snapshot)
        return snapshot

    def _fill(self, place: _Place, ids: npt.NDArray[Any], stream: Any, handle: int) -> None:
        place.grow(arrays_of(self._driver), (len(ids), *self._shape[1:]), self._dtype)
        place.transfers = []
        if not len(ids):
            return
        # If a snapshot was released before it was here, it may be overwritten now: nobody looks.
        rows = np.stack([ids, np.arange(len(ids))], axis=1)
        stage = place.stage[: len(ids)]
        place.transfers.append(swap_blocks(self.array, stage, rows, stream=stream))
        place.staged.record(handle)
        place.staged.hold_back(place.stream)
        host = place.host[: len(ids)]
        place.transfers.append(copy(stage, host, stream=place.stream, policy="overlap"))

    def wait(self) -> None:
        """Block until all that was handed over to `to` is written.

        Raises
        ------
        Exception
            What writing a snapshot raised.
        """
        if self._thread is not None:
            with self._changed:
                self._changed.wait_for(lambda: len(self._free) == self._depth)
        self._raise_error()

    def close(self) -> None:
        """Do what `wait` does, and end the thread."""
        try:
            self.wait()
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
                thread.join()

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_place(self) -> _Place:
        with self._changed:
            if self._to is not None:
                self._changed.wait_for(lambda: self._free)
                self._raise_error()
            if not self._free:
                raise BadPlanError(
                    f"all {self._depth} snapshots are in use: release one, or make more (depth)"
                )
            return self._free.pop(0)

    def _give_back(self, place: _Place) -> None:
        with self._changed:
            self._free.append(place)
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._errors:
            raise self._errors.pop(0)

    def _hand_over(self, snapshot: Snapshot) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write, name="numba_swap snapshots", daemon=True
            )
            self._thread.start()
        self._queue.put(snapshot)

    def _write(self) -> None:
        while (snapshot := self._queue.get()) is not None:
            try:
                with self._driver.activate(self._context.handle):
                    snapshot.wait()
                if callable(self._to):
                    self._to(snapshot)
                else:
                    self._to[snapshot.ids] = snapshot.data
            except BaseException as error:
                error.add_note(
                    f"This was raised while a snapshot of blocks {brief(snapshot.ids)} was written."
                )
                self._errors.append(error)
            finally:
                snapshot.release()
