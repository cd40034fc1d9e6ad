"""`numba_swap.tools.units` by the name under which the notebooks import it."""

from numba_swap.tools.units import GIB, KIB, MIB, format_bytes, format_ns

__all__ = ["GIB", "KIB", "MIB", "format_bytes", "format_ns"]
