"""The arrays of both sides, layer by layer, read once and matched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.ends import Ends
from numba_swap.copies.forms import fold
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.copies.layout import PairLayout, match_blocks
from numba_swap.copies.provenance import BlockRows
from numba_swap.device.memory import Addresses, MemoryKind, known_as_a_whole
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadPlanError


class ArgumentNames(NamedTuple):
    """What the user calls the arguments, for messages."""

    mapping: str = "block_mapping"
    src: str = "src"
    dst: str = "dst"


NAMES = ArgumentNames()

# Runs of a block that an exchange still copies one by one, and so can pair. Blocks of key-value
# caches have 2, tiles of fields hundreds.
_MOST_RUNS = 32


class LayerPair(NamedTuple):
    """The two arrays between which blocks are copied, one of each side, and how they match.

    Attributes
    ----------
    src, dst : BlockArray
        The arrays.
    layout : PairLayout
        How blocks of one map onto blocks of the other.
    suffix : str
        Which layer this is, for messages, if there are several.
    """

    src: BlockArray
    dst: BlockArray
    layout: PairLayout
    suffix: str = ""

    @property
    def same_blocks(self) -> bool:
        """Whether both sides have the very same blocks, which share no bytes."""
        layout = self.layout
        return (
            layout.run_bytes > 0
            and not layout.may_alias
            and (self.src.address, layout.src_step) == (self.dst.address, layout.dst_step)
            and np.array_equal(layout.src_offsets, layout.dst_offsets)
        )

    @property
    def ends(self) -> Ends:
        """What copies from one to the other have in common."""
        producers = (self.src.view.stream, self.dst.view.stream)
        return Ends.of(
            self.src.allocations,
            self.dst.allocations,
            (self.src.view.owner, self.dst.view.owner),
            () if producers == (None, None) else tuple(s for s in producers if s is not None),
        )

    @property
    def alignment_bits(self) -> int:
        """All addresses and lengths of copies between the two, or-ed."""
        return self.layout.alignment_bits | self.src.address | self.dst.address

    def check_writable(self) -> None:
        """Refuse a destination that cannot be written: called where there are rows that write it.

        Raises
        ------
        BadPlanError
            If it is read-only, or its elements may share memory.
        """
        if self.dst.view.readonly:  # so are most broadcast arrays: this says it plainer
            raise BadPlanError(f"{self.dst.name} is read-only, so it cannot be a destination")
        if self.layout.unwritable is not None:
            both = _both(self.src, self.dst, self.suffix)
            raise BadPlanError(f"{both}: {self.layout.unwritable}")

    def is_boxed(self, *, in_order: bool) -> bool:
        """Whether a block is copied as boxes, not run by run.

        In the order of the rows, as exchanges are, a few runs are left as they are: only runs go
        out and in pair by pair.
        """
        if len(self.layout.src_offsets) <= (_MOST_RUNS if in_order else 1):
            return False  # without asking what memory it is
        return all(
            len(array.allocations) == 1 and known_as_a_whole(array.allocations)
            for array in (self.src, self.dst)
        )

    def copies_a_block(self, *, in_order: bool) -> int:
        """Return how many copies a block takes, if it has any bytes."""
        layout = self.layout
        if self.is_boxed(in_order=in_order):
            return len(fold(layout.axes).dst_offsets)
        return len(layout.src_offsets)

    def rows(
        self,
        columns: tuple[Addresses, Addresses],
        name: str,
        holds: object,
        mapping: Integers,
        *,
        reordered: bool = False,
        offsets: tuple[Integers, Integers] | None = None,
    ) -> BlockRows:
        """Return where copies, one of every run of every block, come from; see `BlockRows`.

        `offsets` are where the copies of a block begin in it, at the destination and at the
        source, if they are not its runs.
        """
        layout = self.layout
        # Where all blocks lie at one address, it does not tell which is meant.
        ids = (
            None if layout.dst_step else mapping[:, 1].copy(),
            None if layout.src_step else mapping[:, 0].copy(),
        )
        return BlockRows(
            columns,
            (self.dst.address, self.src.address),
            (layout.dst_step, layout.src_step),
            offsets or (layout.dst_offsets, layout.src_offsets),
            mapping if reordered else None,
            name,
            self.suffix,
            holds,
            ids,
        )

    def reversed(self) -> LayerPair:
        """Return the pair for copies the other way."""
        layout = _match(self.dst, self.src, self.suffix)
        return LayerPair(self.dst, self.src, layout, self.suffix)

    def owned_by(self, src: object, dst: object, *, ask_anew: bool = False) -> LayerPair:
        """Return the same, keeping other objects alive; see `BlockArray.owned_by`."""
        return self._replace(
            src=self.src.owned_by(src, ask_anew=ask_anew),
            dst=self.dst.owned_by(dst, ask_anew=ask_anew),
        )


def read_arrays(
    driver: Driver, src: Any, dst: Any, block_axis: int, names: ArgumentNames = NAMES
) -> list[LayerPair]:
    """Read the arrays of both sides, once, and match their blocks.

    Parameters
    ----------
    driver : Driver
        Asked what kind of memory the arrays are.
    src, dst : array or sequence of arrays
        One array each, or as many layers each.
    block_axis : int
        Axis along which the blocks lie.
    names : ArgumentNames, optional
        For messages.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If they are no arrays, or do not match.
    """
    many = [isinstance(side, (list, tuple)) for side in (src, dst)]
    if many == [False, False]:
        return [_read_pair(driver, src, dst, block_axis, names, "")]
    if many != [True, True] or len(src) != len(dst):
        lengths = [len(side) if isinstance(side, (list, tuple)) else "one" for side in (src, dst)]
        raise BadPlanError(
            f"{names.src} and {names.dst} must be one array each or equally many layers, not "
            f"{lengths[0]} and {lengths[1]} (a list or tuple means layers; for data give an array)"
        )
    return [
        _read_pair(driver, *pair, block_axis, names, f" of layer {i}")
        for i, pair in enumerate(zip(src, dst, strict=True))
    ]


def _read_pair(
    driver: Driver, src: Any, dst: Any, block_axis: int, names: ArgumentNames, suffix: str
) -> LayerPair:
    source = BlockArray(driver, src, block_axis, names.src + suffix)
    destination = BlockArray(driver, dst, block_axis, names.dst + suffix)
    return LayerPair(source, destination, _match(source, destination, suffix), suffix)


def _match(src: BlockArray, dst: BlockArray, suffix: str) -> PairLayout:
    return match_blocks(src.view, dst.view, dst.axis, _both(src, dst, suffix))


def _both(src: BlockArray, dst: BlockArray, suffix: str) -> str:
    return f"{src.name.removesuffix(suffix)} and {dst.name}"


def device_of(layers: Sequence[LayerPair]) -> int | None:
    """Return the GPU whose memory takes part; None if none does."""
    return next(
        (
            allocation.device
            for pair in layers
            for array in (pair.src, pair.dst)
            for allocation in array.allocations
            if allocation.kind in (MemoryKind.DEVICE, MemoryKind.MANAGED)
        ),
        None,
    )
