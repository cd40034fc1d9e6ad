"""The memory that arms copy between, what must arrive, and the check that it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.tools.bench.ab.spec.cases import DIRECTIONS, Case
from numba_swap.tools.bench.ab.spec.errors import WrongBytesError
from numba_swap.tools.bench.gpu import BenchGPU, Bytes
from numba_swap.tools.bench.memory import BenchMemory, Mapping
from numba_swap.tools.units import MIB

# Written before each run of a cold case: more than an H200's L2 cache of 50 MiB, and than the
# last-level cache of one processor socket of its day.
FLUSH_BYTES = 512 * MIB
_SIMULATED_FLUSH_BYTES = 1 * MIB
_ODD = 0x9E3779B97F4A7C15  # odd, so that multiples of it by different words are different words


class CheckedMemory(BenchMemory):
    """Source and destination of one case after the other, on one GPU.

    Parameters
    ----------
    gpu : BenchGPU
        Where.
    cases : sequence of Case
        All that will be prepared; memory is taken once, for the largest.

    Attributes
    ----------
    flush_bytes : int
        What `flush` writes.
    """

    def __init__(self, gpu: BenchGPU, cases: Sequence[Case]) -> None:
        most_bytes = max(case.blocks * case.block_bytes for case in cases)
        super().__init__(gpu, most_bytes, most_bytes)
        self.flush_bytes = _SIMULATED_FLUSH_BYTES if gpu.simulated else FLUSH_BYTES
        words = np.arange(1, 1 + -(-most_bytes // 8), dtype=np.uint64)
        words *= np.uint64(_ODD)
        self._all_content: Bytes = words.view(np.uint8)[:most_bytes]
        self._scratch = gpu.host_bytes("pinned", most_bytes)
        self._filled: set[str] = set()
        self._expected: tuple[Mapping, Bytes] | None = None
        self._flush: tuple[Bytes, Any, Any] | None = None

    def prepare(self, case: Case) -> None:
        """Fill the memory for a case: the source with words that all differ.

        The destination starts from the source's bytes inverted: none agrees with what may arrive.
        """
        self._case = case
        self._content = self._all_content[: case.blocks * case.block_bytes]
        self._expected = None
        self._fill_device("blank", lambda into, content: np.invert(content, out=into))
        if case.direction != "h2d":
            self._fill_device("device", np.copyto)
        elif case.memory not in self._filled:
            np.copyto(self.host(case.memory), self._all_content)
            self._filled.add(case.memory)
        # What will be written must be filled again before it is a source.
        self._filled.discard({"h2d": "device", "d2h": case.memory}.get(case.direction, ""))

    def _fill_device(self, name: str, write: Callable[[Bytes, Bytes], object]) -> None:
        if name not in self._filled:
            write(self._scratch, self._all_content)
            self.gpu.copy(self.device(name), self._scratch, self.device_bytes)
            self._filled.add(name)

    def arrays(self) -> tuple[Any, Any]:
        """Return source and destination, shape (blocks, block_bytes), as new objects each time.

        What the library remembers of arrays it remembers for each object, so arms that share
        objects would not be independent.
        """
        case = self._case
        direction = DIRECTIONS[case.direction]
        return self.blocks(direction, case.block_bytes, case.memory, self._content.size)

    def clear(self) -> None:
        """Take away what an earlier arm has copied."""
        self.gpu.copy(self.arrays()[1], self.device("blank"), self._content.size)

    def check(self, mapping: Mapping, arm: str) -> None:
        """Compare every byte of the destination with what must be there.

        Parameters
        ----------
        mapping : ndarray of int64, shape (n, 2)
            What was to be copied.
        arm : str
            Who copied, for the message.

        Raises
        ------
        WrongBytesError
            Naming the first block that is wrong.
        """
        case = self._case
        destination = self.arrays()[1]
        if isinstance(destination, np.ndarray):
            found: Bytes = destination.reshape(-1)
        else:
            found = self._scratch[: self._content.size]
            self.gpu.copy(found, destination, found.size)
        if self._expected is None or self._expected[0] is not mapping:
            expected = np.invert(self._content)
            rows = expected.reshape(-1, case.block_bytes)
            rows[mapping[:, 1]] = self._content.reshape(-1, case.block_bytes)[mapping[:, 0]]
            self._expected = mapping, expected
        expected = self._expected[1]
        if np.array_equal(_as_words(found), _as_words(expected)):
            return
        wrong = (found != expected).reshape(-1, case.block_bytes).any(axis=1)
        block = int(wrong.argmax())
        meant = block in mapping[:, 1]
        raise WrongBytesError(
            f"{arm}, {case}: {int(wrong.sum())} destination blocks are wrong, the first is "
            f"{block}, " + ("which was to be written" if meant else "which was not to be touched")
        )

    def flush(self) -> None:
        """Write other memory on the host and within the device; see `Case.cache`."""
        if self._flush is None:
            one, other = (self.gpu.device_bytes(self.flush_bytes) for _ in range(2))
            self._flush = np.zeros(self.flush_bytes, np.uint8), one, other
        host, one, other = self._flush
        host += np.uint8(1)
        self.gpu.copy(one, other, self.flush_bytes)


def _as_words(array: Bytes) -> npt.NDArray[Any]:
    return array.view(np.uint64) if array.size % 8 == 0 else array
