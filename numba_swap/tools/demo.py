"""A swap of scientific data through every mode, checked byte for byte: ``numba-swap demo``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.dispatch.decision import Decision
from numba_swap.dispatch.settings import Mode, override
from numba_swap.driver.current import default_driver
from numba_swap.driver.simulated.gpu import simulate
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import DriverUnavailableError, ModeUnavailableError
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.checks import check_memory

Field = npt.NDArray[np.float32]

SIMULATED_VERSIONS = (
    DriverVersion(11, 4),
    DriverVersion(12, 4),
    DriverVersion(12, 8),
    DriverVersion(13, 0),
)
_TILE = 256
_BYTES_A_POINT = 40  # most while its spectrum is made


@dataclass(frozen=True)
class DemoRow:
    """One line of the demonstration.

    Attributes
    ----------
    driver : str
        Which driver, and whether it is real, pretended or simulated.
    asked : str
        The mode asked for.
    decision : Decision
        Mode and reason of the swap to the device.
    nbytes : int
        Bytes moved, both ways.
    seconds : float
        Time of both swaps; no measure of anything where the driver is simulated.
    correct : bool
        Whether every byte came back, and nothing else changed.
    """

    driver: str
    asked: str
    decision: Decision
    nbytes: int
    seconds: float
    correct: bool


def compute_field(size: int, seed: int = 0) -> Field:
    """Make a turbulent field: noise with a power spectrum that falls as ``k ** (-5 / 3)``.

    Parameters
    ----------
    size : int
        Points along each of the two axes.
    seed : int
        Seed of the noise.

    Returns
    -------
    ndarray of float32, shape (size, size)
        The field, with mean 0 and standard deviation 1.
    """
    from scipy import fft

    noise = np.random.default_rng(seed).standard_normal((size, size))
    k = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :])
    k[0, 0] = np.inf  # no mean
    # In two dimensions a shell of radius k holds k modes, so amplitudes fall as k ** (-4 / 3).
    field = fft.irfft2(fft.rfft2(noise) * k ** (-4 / 3), s=noise.shape)
    scaled: Field = (field / field.std()).astype(np.float32)
    return scaled


def cut_tiles(field: Field) -> Field:
    """Cut a field into square tiles, shape ``(tiles, 256, 256)``."""
    n = field.shape[0] // _TILE
    tiles = field.reshape(n, _TILE, n, _TILE).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(n * n, _TILE, _TILE)


def run_demo(size: int | None = None, *, force_simulation: bool = False) -> list[DemoRow]:
    """Swap half the tiles of a field out to the device and back, on several drivers.

    On a machine with a GPU: the driver pretending to be 12.4 and 11.4, and as it is. Elsewhere:
    simulated drivers 11.4, 12.4, 12.8 and 13.0. The last one also in each mode that it has.

    Parameters
    ----------
    size : int, optional
        Points along each axis of the field, a multiple of 256; 4096 on a GPU, 1024 simulated.
    force_simulation : bool
        Simulate even where there is a GPU.

    Raises
    ------
    BadArgumentError
        If the field needs more memory than the machine has.
    """
    gpu = not force_simulation and _has_gpu()
    size = size or (4096 if gpu else 1024)
    check_memory(_BYTES_A_POINT * size**2, f"a field of {size} x {size} points")
    with override(mode="auto"):  # whatever the environment forces
        return list(_real_rows(size) if gpu else _simulated_rows(size))


def _simulated_rows(size: int) -> Iterator[DemoRow]:
    tiles = cut_tiles(compute_field(size))
    for version in SIMULATED_VERSIONS:
        with simulate(driver_version=version) as gpu:
            yield from _rows_of(
                gpu, tiles, f"{version} simulated", version == SIMULATED_VERSIONS[-1]
            )


def _real_rows(size: int) -> Iterator[DemoRow]:
    tiles = cut_tiles(compute_field(size))
    real = default_driver().version
    for version in reversed(SIMULATED_VERSIONS):
        if version < min(real, DriverVersion(12, 8)):
            with override(driver_version=version):
                yield from _rows_of(_NumbaMemory, tiles, f"{real} as {version}", all_modes=False)
    yield from _rows_of(_NumbaMemory, tiles, f"{real}", all_modes=True)


def _rows_of(gpu: Any, tiles: Field, driver: str, all_modes: bool) -> Iterator[DemoRow]:
    yield _swap_out_and_in(gpu, tiles, driver)
    for mode in Mode if all_modes else ():
        # A mode that this driver does not have, or this memory, is left out.
        with contextlib.suppress(ModeUnavailableError):
            yield _swap_out_and_in(gpu, tiles, driver, mode)


def format_demo(rows: list[DemoRow]) -> str:
    """Lay the rows out as a table."""
    head = ("driver", "asked", "mode", "copies out", "bytes out and in", "time", "every byte")
    lines = [
        (
            row.driver,
            row.asked,
            str(row.decision.mode),
            str(row.decision.copies),
            str(row.nbytes),
            "no measure" if row.decision.simulated else f"{row.seconds * 1e6:.0f} us",
            "right" if row.correct else "WRONG",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    ]
    reasons = [f"{row.driver}, {row.asked}: {row.decision.reason}" for row in rows]
    return "\n".join([*table, "", "Why:", *reasons])


def _has_gpu() -> bool:
    try:
        return default_driver().device_count() > 0
    except DriverUnavailableError:
        return False


class _NumbaMemory:
    """Numba's arrays under the names of a simulated GPU's."""

    @staticmethod
    def pinned_array(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        from numba import cuda

        array: npt.NDArray[Any] = cuda.pinned_array(shape, dtype)
        return array

    @staticmethod
    def device_array(shape: tuple[int, ...], dtype: Any) -> Any:
        from numba import cuda

        return cuda.device_array(shape, dtype)


def _swap_out_and_in(gpu: Any, tiles: Field, driver: str, mode: Mode | str = "auto") -> DemoRow:
    """Move a random half of the tiles into shuffled device slots and back to other places."""
    rng = np.random.default_rng(1)
    n = len(tiles)
    chosen, slots = rng.permutation(n)[: n // 2], rng.permutation(n // 2)
    host = gpu.pinned_array(tiles.shape, np.float32)
    host[...] = tiles
    back = gpu.pinned_array(tiles.shape, np.float32)
    back[...] = np.nan
    device = gpu.device_array((n // 2, _TILE, _TILE), np.float32)
    out = plan_blocks(host, device, np.stack([chosen, slots], axis=1))
    into = plan_blocks(device, back, np.stack([slots, n - 1 - chosen], axis=1))
    if not out.explain(mode=mode).simulated:
        with _timed():  # the first run of a mode compiles it
            out.run(mode=mode).wait()
            into.run(mode=mode).wait()
        back[...] = np.nan
    with _timed() as elapsed:
        transfer = out.run(mode=mode)
        into.run(mode=mode).wait()
    want = np.full_like(tiles, np.nan)
    want[n - 1 - chosen] = tiles[chosen]
    return DemoRow(
        driver=driver,
        asked=str(mode),
        decision=transfer.decision,
        nbytes=out.nbytes + into.nbytes,
        seconds=elapsed[0],
        correct=back.tobytes() == want.tobytes() and host.tobytes() == tiles.tobytes(),
    )


@contextmanager
def _timed() -> Iterator[list[float]]:
    elapsed = [0.0]
    start = time.perf_counter()
    yield elapsed
    elapsed[0] = time.perf_counter() - start
