"""What is copied: direction, sizes, counts, kind of memory, cache, and which blocks."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.schema import name_of, one_line, read_file
from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.memory import Mapping, scatter
from numba_swap.tools.units import MIB, format_bytes

DIRECTIONS = {"h2d": Direction.H2D, "d2h": Direction.D2H, "d2d": Direction.D2D}
MEMORY_KINDS = ("pinned", "registered", "pageable", "managed")
CACHES = ("warm", "cold")
DEFAULT_SPAN_BYTES = 64 * MIB
_MOST_MAPPING_BYTES = 256 * MIB
_MOST_BLOCKS = 1 << 48
_MOST_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Case:
    """One thing to copy; two results of the same case can be compared.

    Attributes
    ----------
    direction : {"h2d", "d2h", "d2d"}
        Between which sides.
    block_bytes, count : int
        Size of a block, and how many move.
    memory : {"pinned", "registered", "pageable", "managed", "device"}
        Kind of the host side; ``"device"`` where there is none.
    cache : {"warm", "cold"}
        Warm: the same blocks were moved by the run before. Cold: before every run that is timed,
        `CheckedMemory.flush_bytes` of other memory are written on the host and within the device,
        more than the last caches of most machines hold. That evicts what a cache chooses to evict;
        it is no guarantee that nothing is left.
    seed : int
        Seed of the random blocks.
    span_bytes : int
        Memory of each side over which the blocks are scattered.
    mapping_name, mapping_digest : str or None
        Name of the file that the mapping was read from, and SHA-256 of its rows; None for random
        blocks.
    """

    direction: str
    block_bytes: int
    count: int
    memory: str = "pinned"
    cache: str = "warm"
    seed: int = 0
    span_bytes: int = DEFAULT_SPAN_BYTES
    mapping_name: str | None = None
    mapping_digest: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that one run moves."""
        return self.block_bytes * self.count

    @property
    def blocks(self) -> int:
        """Blocks of each side."""
        return self.span_bytes // self.block_bytes

    def __str__(self) -> str:
        words = [self.direction, f"{self.count} x {format_bytes(self.block_bytes)}", self.memory]
        words += [self.cache] if self.cache != "warm" else []
        words += [f"mapping {self.mapping_name}"] if self.mapping_name else []
        return ", ".join(words)


def read_mapping(path: str | Path) -> Mapping:
    """Read rows of source block and destination block.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file, or text with two integers a line, separated by spaces or a comma.

    Raises
    ------
    BadArgumentError
        If it cannot be read, or the rows cannot be a mapping.
    """
    path = Path(path)
    try:
        content = read_file(path, _MOST_MAPPING_BYTES)
        if path.suffix == ".npy":
            rows = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        else:
            text = content.decode("utf-8-sig").replace(",", " ")
            rows = np.array([line.split() for line in text.splitlines() if line.strip()], object)
            rows = rows.astype(np.int64)
    except OverflowError:
        raise BadArgumentError(f"mapping {name_of(path)}: a number is too large") from None
    except Exception as error:  # NumPy has many for what is no such file
        raise BadArgumentError(f"mapping {name_of(path)}: {one_line(error)}") from None
    if rows.ndim != 2 or rows.shape[1] != 2 or not rows.size or rows.dtype.kind not in "iu":
        raise BadArgumentError(
            f"mapping {name_of(path)}: shape {rows.shape} of {rows.dtype} is not that of rows "
            "[source block, destination block]"
        )
    for block in (rows.min(), rows.max()):
        if not 0 <= block < _MOST_BLOCKS:
            raise BadArgumentError(f"mapping {name_of(path)}: {block} is no block")
    mapping: Mapping = np.ascontiguousarray(rows, dtype=np.int64)
    if len(np.unique(mapping[:, 1])) < len(mapping):
        raise BadArgumentError(f"mapping {name_of(path)}: a destination block is written twice")
    return mapping


def random_mapping(case: Case) -> Mapping:
    """Make a mapping of random blocks that are no neighbours, the same for the same case."""
    rng = np.random.default_rng((case.seed, case.count, case.block_bytes))
    return scatter(rng, case.count, case.blocks, case.blocks)


def make_cases(
    directions: Sequence[str],
    sizes: Sequence[int],
    counts: Sequence[int],
    memories: Sequence[str] = ("pinned",),
    caches: Sequence[str] = ("warm",),
    seed: int = 0,
    span_bytes: int = DEFAULT_SPAN_BYTES,
) -> list[Case]:
    """Return every combination, the counts in rising order within each block size.

    Memory is widened beyond `span_bytes` where twice the blocks do not fit. Within a device there
    is no host side, so only one case is made there whatever kinds of memory are named.

    Raises
    ------
    BadArgumentError
        If a word is unknown or a number not positive.
    """
    for words, known in (
        (directions, tuple(DIRECTIONS)),
        (memories, MEMORY_KINDS),
        (caches, CACHES),
    ):
        for word in words:
            if word not in known:
                raise BadArgumentError(f"{word!r} is none of {', '.join(known)}")
    for number in (*sizes, *counts, span_bytes):
        if number < 1:
            raise BadArgumentError(f"{number} is no positive number")
    if seed < 0:
        raise BadArgumentError(f"seed={seed} is negative")
    if seed > _MOST_SEED:
        raise BadArgumentError(f"seed={seed} is more than {_MOST_SEED}")
    cases = [
        Case(
            direction,
            size,
            count,
            "device" if direction == "d2d" else memory,
            cache,
            seed,
            max(2 * count, span_bytes // size) * size,
        )
        for direction, memory, cache, size, count in itertools.product(
            directions, memories, caches, sorted(set(sizes)), sorted(set(counts))
        )
    ]
    return list(dict.fromkeys(cases))


def cases_of_mapping(cases: Sequence[Case], mapping: Mapping, name: str) -> list[Case]:
    """Turn random cases into those of a mapping, one for each but the count.

    Parameters
    ----------
    cases : sequence of Case
        Their counts do not matter.
    mapping : ndarray of int64, shape (n, 2)
        The rows.
    name : str
        What to call it; not a path, which would tell about the machine.
    """
    digest = hashlib.sha256(mapping.tobytes()).hexdigest()
    blocks = int(mapping.max()) + 1
    return list(
        dict.fromkeys(
            Case(
                case.direction,
                case.block_bytes,
                len(mapping),
                case.memory,
                case.cache,
                0,
                blocks * case.block_bytes,
                name,
                digest,
            )
            for case in cases
        )
    )
