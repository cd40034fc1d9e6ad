"""The memory that arms copy between, what must arrive, and the check that it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.tools.bench.ab.gpu.gpu import GPU, Bytes, address_of
from numba_swap.tools.bench.ab.spec.cases import Case, Mapping
from numba_swap.tools.bench.ab.spec.errors import WrongBytesError
from numba_swap.tools.bench.ab.spec.units import MIB

# Written before each run of a cold case: more than an H200's L2 cache of 50 MiB, and than the
# last-level cache of one processor socket of its day.
FLUSH_BYTES = 512 * MIB
_SIMULATED_FLUSH_BYTES = 1 * MIB
_SCRATCH = "scratch"
_ODD = 0x9E3779B97F4A7C15  # odd, so that multiples of it by different words are different words


class Pools:
    """Source and destination of one case after the other, on one GPU.

    Parameters
    ----------
    gpu : GPU
        Where.
    cases : sequence of Case
        All that will be prepared; memory is taken once, for the largest.

    Attributes
    ----------
    gpu : GPU
        Where.
    flush_bytes : int
        What `flush` writes.
    """

    def __init__(self, gpu: GPU, cases: Sequence[Case]) -> None:
        self.gpu = gpu
        self.flush_bytes = _SIMULATED_FLUSH_BYTES if gpu.simulated else FLUSH_BYTES
        self._most_bytes = max(case.blocks * case.block_bytes for case in cases)
        gpu.reserve(self._most_bytes)
        words = np.arange(1, 1 + -(-self._most_bytes // 8), dtype=np.uint64)
        words *= np.uint64(_ODD)
        self._all_content: Bytes = words.view(np.uint8)[: self._most_bytes]
        self._event = gpu.driver.create_event()
        self._host: dict[str, Bytes] = {}
        self._filled: set[str] = set()
        self._expected: tuple[Mapping, Bytes] | None = None
        self._flush: tuple[Bytes, Any] | None = None

    def prepare(self, case: Case) -> None:
        """Fill the memory for a case: the source with words that all differ.

        The destination starts from the source's bytes inverted: none agrees with what may arrive.
        """
        self._case = case
        self._content = self._all_content[: case.blocks * case.block_bytes]
        self._expected = None
        if self.gpu.simulated:  # it makes new arrays for each case
            self._filled.clear()
        self._fill_device("blank", lambda into, content: np.invert(content, out=into))
        if case.direction != "h2d":
            self._fill_device("source", np.copyto)
            self._filled.discard(case.memory)  # its host side will be written
        elif case.memory not in self._filled:
            np.copyto(self._host_bytes(case.memory), self._all_content)
            self._filled.add(case.memory)

    def _fill_device(self, name: str, write: Callable[[Bytes, Bytes], object]) -> None:
        if name in self._filled:
            return
        content = self._content if self.gpu.simulated else self._all_content
        scratch = self._host_bytes(_SCRATCH)[: content.size]
        write(scratch, content)
        self._copy(self._device(name), scratch, content.size)
        self._filled.add(name)

    def arrays(self) -> tuple[Any, Any]:
        """Return source and destination, shape (blocks, block_bytes), as new objects each time.

        What the library remembers of arrays it remembers for each object, so arms that share
        objects would not be independent.
        """
        case = self._case
        host = self._host_side().reshape(case.blocks, case.block_bytes)
        if case.direction == "h2d":
            return host, self._device("destination")
        if case.direction == "d2h":
            return self._device("source"), host
        return self._device("source"), self._device("destination")

    def clear(self) -> None:
        """Take away what an earlier arm has copied."""
        destination = self.arrays()[1]
        self._copy(destination, self._device("blank"))

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
            found = self._host_bytes(_SCRATCH)[: self._content.size]
            self._copy(found, destination)
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
            host = np.zeros(self.flush_bytes, np.uint8)
            rows = self.flush_bytes // MIB
            pair = [self.gpu.device_blocks(f"flush {i}", rows, MIB) for i in range(2)]
            self._flush = host, pair
        host, (one, other) = self._flush
        host += np.uint8(1)
        self._copy(one, other, self.flush_bytes)

    def wait(self) -> None:
        """Wait for the stream."""
        self.gpu.driver.record_event(self._event, self.gpu.stream)
        self.gpu.driver.synchronize_event(self._event)

    def _host_side(self) -> Bytes:
        return self._host_bytes(self._case.memory)[: self._content.size]

    def _host_bytes(self, name: str) -> Bytes:
        if name not in self._host:
            kind = "pinned" if name == _SCRATCH else name
            self._host[name] = self.gpu.host_bytes(kind, self._most_bytes)
        return self._host[name]

    def _device(self, name: str) -> Any:
        return self.gpu.device_blocks(name, self._case.blocks, self._case.block_bytes)

    def _copy(self, dst: Any, src: Any, nbytes: int | None = None) -> None:
        length = self._content.size if nbytes is None else nbytes
        self.gpu.driver.memcpy_async(address_of(dst), address_of(src), length, self.gpu.stream)
        self.wait()


def _as_words(array: Bytes) -> npt.NDArray[Any]:
    return array.view(np.uint64) if array.size % 8 == 0 else array
