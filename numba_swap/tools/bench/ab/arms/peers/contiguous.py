"""As many bytes in one contiguous copy: the ceiling of a copy engine."""

from __future__ import annotations

import numpy as np

from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.gpu import address_of


class Contiguous:
    """One ``cuMemcpyAsync`` from the start of the source to the start of the destination."""

    mode = reason = None

    def __init__(self, setup: Setup) -> None:
        self.stream = setup.gpu.stream
        ids = np.arange(setup.case.count, dtype=np.int64)
        self.mapping = np.stack([ids, ids], axis=1)
        self._copy = setup.gpu.driver.memcpy_async
        self._arguments = (
            address_of(setup.destination),
            address_of(setup.source),
            setup.case.nbytes,
            self.stream,
        )
        self._keep = setup.source, setup.destination
        self.wait = setup.gpu.wait

    def enqueue(self) -> None:
        """Submit the copy."""
        self._copy(*self._arguments)


make = Contiguous
