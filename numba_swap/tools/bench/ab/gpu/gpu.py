"""`numba_swap.tools.bench.gpu` by the name under which the notebooks import it."""

from numba_swap.tools.bench.gpu import open_gpu

__all__ = ["open_gpu"]
