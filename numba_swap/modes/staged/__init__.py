"""Pageable memory by way of pinned memory: threads of the host move rows, pieces cross the link."""

from numba_swap.modes.staged.run import load, reserve, room, submit, why_not

__all__ = ["load", "reserve", "room", "submit", "why_not"]
