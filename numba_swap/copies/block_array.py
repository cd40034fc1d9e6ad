"""An array as a pool of blocks, read once."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from numba_swap.copies.inputs.arrays import extent, view_array
from numba_swap.device.memory import Allocation, MemoryKind, allocations_of_range
from numba_swap.driver.calls import Driver
from numba_swap.errors import UnsupportedArrayError

_FIRST_PAGE = 4096  # where no system has memory: a null pointer, or an offset from one


class BlockArray:
    """One array, or one layer: where it lies and how, and in which memory.

    Parameters
    ----------
    driver : Driver
        Asked what kind of memory it is, when that is first wanted.
    array : array
        What the user gave.
    axis : int
        The axis along which its blocks lie.
    name : str
        What the user calls it.

    Attributes
    ----------
    view : ArrayView
        Its layout.

    Raises
    ------
    UnsupportedArrayError
        If it is no array.
    """

    def __init__(self, driver: Driver, array: Any, axis: int, name: str) -> None:
        self.view = view_array(array, name)
        self.axis = axis
        self.name = name
        self._driver = driver

    @property
    def address(self) -> int:
        """Address of its first element."""
        return self.view.address

    @cached_property
    def span(self) -> tuple[int, int]:
        """First address that it touches, and the one after the last."""
        view = self.view
        low, high = extent(view.shape, view.strides, view.itemsize)
        return view.address + low, view.address + high

    @cached_property
    def allocations(self) -> tuple[Allocation, ...]:
        """Every allocation that it touches, in order; none if it holds nothing.

        Raises
        ------
        BadPlanError
            If it runs past the end of a CUDA allocation.
        UnsupportedArrayError
            If it says that CUDA knows its memory, and CUDA does not; or if it lies at 0.
        """
        start, stop = self.span
        if start == stop:
            return ()
        found = allocations_of_range(self._driver, start, stop, self.name)
        unknown = found[0].kind is MemoryKind.PAGEABLE
        if unknown and (self.view.on_cuda or start < _FIRST_PAGE):
            raise UnsupportedArrayError(
                f"{self.name} lies at {self.address:#x}, which is no memory that CUDA knows: "
                "was it freed, or does it belong to a simulation that has ended?"
            )
        return found

    def owned_by(self, owner: object, *, ask_anew: bool = False) -> BlockArray:
        """Return the same, keeping another object alive.

        Parameters
        ----------
        owner : object
            The array; None for a record that keeps nothing alive.
        ask_anew : bool, optional
            Forget what memory it lies in: the driver is asked again when that is wanted.
        """
        twin = copy.copy(self)
        twin.view = self.view._replace(owner=owner)
        if ask_anew:
            twin.__dict__.pop("allocations", None)
        return twin
