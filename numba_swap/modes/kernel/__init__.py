"""All copies in one launch of a Numba kernel that reaches both sides from the GPU."""

from numba_swap.modes.kernel.launch import load, submit, why_not

__all__ = ["load", "submit", "why_not"]
