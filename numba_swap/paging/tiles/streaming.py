"""Through a field that is larger than the GPU, tile by tile: in, compute and out overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba_swap.dispatch.settings import (
    Mode,
    Policy,
    check_positive,
)
from numba_swap.errors import BadArgumentError
from numba_swap.paging.tiles.fields import read_fields
from numba_swap.paging.tiles.run import Run, Step, make_run, needs_of, options_of
from numba_swap.paging.tiles.tiling import Order, Tiling
from numba_swap.swap.verbs import current_devices


class TileStream:
    """Steps through the tiles of fields; made by `stream_tiles`. An iterator, to be used once.

    Attributes
    ----------
    written : tuple of int
        Tiles whose new values are on the host, all of them, in the order of arrival.
    unsure : tuple of int
        Tiles that may be written in part: under way, or after a failure of the driver. All others
        are as they were.
    nbytes : int
        Bytes of device memory that are taken meanwhile.
    """

    def __init__(self, run: Run, nbytes: int) -> None:
        self._run = run
        # It refers to the run only, so that it ends when a loop over this object is left.
        self._steps = run.steps()
        self.nbytes = nbytes

    @property
    def written(self) -> tuple[int, ...]:  # noqa: D102 -- see the class
        return tuple(self._run.written)

    @property
    def unsure(self) -> tuple[int, ...]:  # noqa: D102 -- see the class
        return tuple(self._run.unsure)

    def __iter__(self) -> TileStream:
        return self

    def __next__(self) -> Step:
        try:
            return next(self._steps)[1]
        except StopIteration:
            raise
        except BaseException as error:
            error.add_note(self._run.report())
            raise

    def __enter__(self) -> TileStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave early: what was computed before the last step goes to the host, then all is over.

        Raises
        ------
        DriverCallError
            If the driver fails meanwhile.
        """
        self._steps.close()


def stream_tiles(
    reads: Sequence[Any] = (),
    writes: Sequence[Any] = (),
    updates: Sequence[Any] = (),
    *,
    tiling: Tiling,
    depth: int = 3,
    order: Order = "rows",
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = "overlap",
) -> TileStream:
    """Bring the tiles of host fields to the GPU one after another, and what is computed back.

    Parameters
    ----------
    reads : list of ndarray, optional
        Fields that are read, each tile with its halo. Host arrays of the tiling's shape and any
        type, pinned or plain; plain ones are slower, and the host waits for their copies.
    writes : list of ndarray, optional
        Fields that are written, tile by tile. They share no memory with others.
    updates : list of ndarray, optional
        Fields that are read and written in place: all tiles see the old values of their neighbours.
        They stand last in `Step.reads`, and last in `Step.writes`, each time in other memory.
    tiling : Tiling
        How the fields are cut.
    depth : int, optional
        How many tiles are under way at a time: with three, one comes in, one is computed and one
        goes out.
    order : {"rows", "morton"}, optional
        In which order; see `Tiling.order`.
    stream : stream, int or None, optional
        What the first copies come after, as for `numba_swap.swap_blocks`.
    mode, policy : optional
        How each copy runs, as for `numba_swap.swap_blocks`. By default the multiprocessors are left
        to your kernels.

    Returns
    -------
    TileStream
        Iterate over it once: every `Step` is one tile. The loop has to write every element of
        `Step.writes`, in `Step.stream`; the results are fetched when it comes back for the next.

    Raises
    ------
    BadArgumentError
        Arrays of another shape, or that share memory with one that is written; a boundary that a
        field's type cannot hold; a depth that is no positive integer; too little free device
        memory. Nothing was copied.
    UnsupportedArrayError
        What is no NumPy array, or no stream.
    CapturedTransferError
        `stream` is being captured into a graph.
    DriverUnavailableError
        No CUDA driver or device.
    DriverCallError
        Here, or from the iteration; then a note on it says which tiles are written.

    Notes
    -----
    Each of the `depth` tiles under way has a stream, in which it comes in, is computed, and goes
    out; so the stages of different tiles overlap, and device memory is used again in order. The
    host waits only for the tile `depth` tiles ago. The streams are ordered with the legacy default
    stream.

    The halo comes from the host at each step. Where it leaves the field, it is what the boundary
    of the tiling says; with ``"clip"`` the views in `Step.reads` are shorter there, and
    `Step.inner` says where the tile lies in them.

    New values of `updates` are kept in device memory until the last neighbour was loaded: of a
    field cut into cubes in the order of rows about one plane of tiles, of slabs two tiles; of a
    periodic field those of the first plane, too. If that does not fit, the error says so.

    When the loop has ended, all is on the host. It may be left early, by ``break``, by an
    exception or an interrupt: the tiles whose steps were over are then written, that of the step
    that was left is not, and nothing is under way afterwards. Device memory, and views of it, are
    not to be used later. (If you keep the iterator in a variable, it ends only with that: use it in
    ``with``, or call `close`.)

    Examples
    --------
    The mean of both neighbours, in place, of a periodic row:

    >>> import numpy as np
    >>> import numba_swap as ns
    >>> def kernel(old, new):
    ...     new[:] = (old[:-2] + old[2:]) / 2
    >>> with ns.simulate() as gpu:
    ...     u = gpu.pinned_array(8)
    ...     u[:] = [0, 8, 0, 0, 0, 0, 0, 4]
    ...     tiling = ns.Tiling(u.shape, tile=3, halo=1, boundary="periodic")
    ...     for step in ns.stream_tiles(updates=[u], tiling=tiling):
    ...         gpu.launch(kernel, *step.reads, *step.writes, stream=step.stream)
    ...     u
    array([6., 0., 4., 0., 0., 0., 2., 0.])
    """
    fields = read_fields(reads, writes, updates, tiling)
    if not any(fields):
        raise BadArgumentError("reads, writes and updates are empty: give at least one array")
    check_positive(depth, "depth")
    tiling.order(order)  # which checks it
    devices = current_devices()
    depth = min(depth, len(tiling))
    needs = needs_of(fields, tiling, depth, order)
    return TileStream(
        make_run(devices, fields, tiling, order, stream, needs, options_of(mode, policy)),
        needs.nbytes(tiling),
    )
