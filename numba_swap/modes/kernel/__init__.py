"""All copies in one launch of a Numba kernel that reaches both sides from the GPU."""

from numba_swap.modes.kernel.launch import load, reserve, room, submit, why_not

__all__ = ["load", "reserve", "room", "submit", "why_not"]
