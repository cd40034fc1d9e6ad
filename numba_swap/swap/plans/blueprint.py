"""What a plan of blocks was made from, to make others like it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.copies.from_arrays import plan_layers
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.copies.layers import NAMES, LayerPair, read_arrays
from numba_swap.device.devices import Devices
from numba_swap.device.tuning import Tuning
from numba_swap.errors import BadPlanError


class Blueprint(NamedTuple):
    """The arrays and rows of a plan.

    Attributes
    ----------
    devices : Devices
        The GPUs.
    layers : list of LayerPair
        The arrays, kept alive.
    rows : int
        How many rows it was planned for.
    mapping : ndarray of int64 or None
        The rows; None if the addresses of the copies tell.
    in_order : bool
        Whether every row is a copy of its own.
    tuning : Tuning
        The figures of the GPU.
    """

    devices: Devices
    layers: list[LayerPair]
    rows: int
    mapping: Integers | None
    in_order: bool
    tuning: Tuning

    @classmethod
    def of(
        cls,
        devices: Devices,
        layers: list[LayerPair],
        mapping: Integers,
        tuning: Tuning,
        *,
        in_order: bool,
    ) -> Blueprint:
        """Keep what is needed; a copy of the rows only where addresses do not tell them."""
        told = len(layers) == 1 and not layers[0].same_blocks and _tells(layers[0])
        kept = None if told else mapping.copy()
        return cls(devices, layers, len(mapping), kept, in_order, tuning)

    def plan(self, mapping: Integers) -> tuple[Blueprint, Copies]:
        """Plan other rows between the same arrays."""
        layers = [
            pair.owned_by(pair.src.view.owner, pair.dst.view.owner, ask_anew=True)
            for pair in self.layers
        ]
        asked = layers if len(mapping) else []
        addresses = [array.address for pair in asked for array in (pair.src, pair.dst)]
        with self.devices.asking_about(addresses):
            copies = plan_layers(
                self.devices, asked, mapping, NAMES.mapping, self.tuning, in_order=self.in_order
            )
            made = Blueprint.of(self.devices, layers, mapping, self.tuning, in_order=self.in_order)
        return made, copies

    def rebound(self, src: Any, dst: Any, axis: int) -> Blueprint:
        """Return the same for other arrays.

        Raises
        ------
        BadPlanError
            If their blocks are not of the same number or length.
        """
        layers = read_arrays(self.devices.driver, src, dst, axis)
        for old, new in zip(self.layers, layers, strict=False):
            for side in ("src", "dst"):
                views = [getattr(pair, side).view for pair in (old, new)]
                shapes = [(view.shape, view.itemsize) for view in views]
                if shapes[0] != shapes[1]:
                    raise BadPlanError(
                        f"{side}{new.suffix} has the shape {shapes[1][0]} of elements of "
                        f"{shapes[1][1]} bytes, and the plan is for {shapes[0][0]} of "
                        f"{shapes[0][1]}: plan anew for arrays of another geometry"
                    )
        if len(layers) != len(self.layers):
            raise BadPlanError(f"the plan is for {len(self.layers)} layers, not for {len(layers)}")
        return self._replace(layers=layers)

    def reversed(self) -> Blueprint:
        """Return the same for the way back."""
        return self._replace(layers=[pair.reversed() for pair in self.layers])

    def rows_of(self, copies: Copies) -> Integers:
        """Return the rows of the mapping, in some order."""
        if self.mapping is not None:
            return self.mapping
        (pair,) = self.layers
        if not len(copies):
            return np.zeros((0, 2), np.int64)
        # Of neighbours that were merged, the addresses go on by the length of a block.
        run = pair.layout.run_bytes
        counts = (copies.sizes // np.uint64(run)).astype(np.int64)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        sides = (
            (copies.src, pair.src.address, pair.layout.src_step),
            (copies.dst, pair.dst.address, pair.layout.dst_step),
        )
        return np.stack(
            [
                (np.repeat(column.astype(np.int64) - at, counts) + within * run) // step
                for column, at, step in sides
            ],
            axis=1,
        )


def _tells(pair: LayerPair) -> bool:
    """Whether a copy's addresses tell its blocks: contiguous ones, none of them empty."""
    layout = pair.layout
    return bool(
        len(layout.src_offsets) == 1 and layout.run_bytes and layout.src_step and layout.dst_step
    )
