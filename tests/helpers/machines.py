"""GPUs, real and simulated, behind one interface, and arrays on them."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.inputs.arrays import view_array
from numba_swap.device import in_flight
from numba_swap.dispatch.settings import DRIVER_VERSION_VARIABLE
from numba_swap.driver.simulated.gpu import SimulatedGPU

SIMULATED_MODES = {
    "11.4": ["loop"],
    "12.4": ["kernel", "loop"],
    "12.8": ["batch", "kernel", "loop"],
    "13.0": ["batch", "kernel", "loop"],
}


class RealGPU:
    """The interface of `SimulatedGPU` over Numba."""

    def device_array(self, shape, dtype=np.float64):
        from numba import cuda

        return cuda.device_array(shape, dtype)

    def pinned_array(self, shape, dtype=np.float64):
        from numba import cuda

        return cuda.pinned_array(shape, dtype)

    def managed_array(self, shape, dtype=np.float64):
        from numba import cuda

        return cuda.managed_array(shape, dtype)

    def stream(self):
        from numba import cuda

        return cuda.stream()

    def synchronize(self):
        from numba import cuda

        cuda.synchronize()

    def capture(self, stream, work):
        """Capture what `work` enqueues; return what launches it again, and waits."""
        from cuda.bindings import driver

        def call(function, *arguments):
            code, *values = function(*arguments)
            assert code == driver.CUresult.CUDA_SUCCESS, (function, code)
            return values[0] if values else None

        ns.warm_up()  # nothing is compiled or loaded during a capture
        handle = driver.CUstream(stream.__cuda_stream__()[1])
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        call(driver.cuStreamBeginCapture, handle, mode)
        try:
            work()
        finally:
            graph = call(driver.cuStreamEndCapture, handle)
        launched = call(driver.cuGraphInstantiate, graph, 0)

        def replay():
            call(driver.cuGraphLaunch, launched, handle)
            call(driver.cuStreamSynchronize, handle)

        return replay


class SecondGPU(SimulatedGPU):
    """Two simulated GPUs: memory and streams are of the second, and the first one is current."""

    def device_array(self, shape, dtype=np.float64, *, chunk_bytes=None):
        return super().device_array(shape, dtype, chunk_bytes=chunk_bytes, device=1)

    def stream(self, non_blocking=False):
        return super().stream(non_blocking, device=1)


class BetweenGPUs(SimulatedGPU):
    """Two simulated GPUs: arrays in turn on the one and the other, streams of the first."""

    _made = 0

    def device_array(self, shape, dtype=np.float64, *, chunk_bytes=None):
        self._made += 1
        device = self._made % 2
        return super().device_array(shape, dtype, chunk_bytes=chunk_bytes, device=device)


def capture(gpu, stream, work):
    """Capture what `work` enqueues in a stream; return what launches it again, and waits."""
    if hasattr(gpu, "capture"):
        return gpu.capture(stream, work)
    gpu.library.begin_capture(stream.handle)
    try:
        work()
    finally:
        graph = gpu.library.end_capture(stream.handle)

    def replay():
        gpu.library.launch(graph, stream.handle)
        stream.synchronize()

    return replay


def real_modes() -> list[str]:
    """The modes that a real driver of 12.8 or later has, under the cap in the environment."""
    cap = os.environ.get(DRIVER_VERSION_VARIABLE)
    capped = cap is not None and ns.DriverVersion.parse(cap) < ns.DriverVersion(12, 8)
    return ["kernel", "loop"] if capped else ["batch", "kernel", "loop"]


@dataclass(frozen=True)
class Case:
    """One machine and one mode that it has; of two GPUs, what stands for it."""

    machine: str
    mode: str
    two: type | None = None

    @contextmanager
    def open(self):
        if self.machine == "real":
            yield RealGPU()
        elif self.two is not None:
            with ns.simulate(driver_version=self.machine, devices=2) as gpu:
                driver = gpu.driver
                with driver.activate(driver.primary_context(0)):
                    yield self.two(driver)
        else:
            with ns.simulate(driver_version=self.machine) as gpu:
                yield gpu


def _param(machine: str, mode: str):
    marks = [pytest.mark.gpu] if machine == "real" else []
    return pytest.param(Case(machine, mode), id=f"{machine}-{mode}", marks=marks)


# A simulated GPU and a real one with all modes, for tests that choose among them.
MACHINES = [
    Case("13.0", "auto"),
    pytest.param(Case("real", "auto"), marks=pytest.mark.gpu, id="real"),
]


CASES = [
    _param(machine, mode)
    for machine, modes in {**SIMULATED_MODES, "real": real_modes()}.items()
    for mode in ["auto", *modes]
]

# The same promises where there are two GPUs.
TWO_GPUS = [
    pytest.param(Case("13.0", mode, two), id=f"{two.__name__}-{mode}")
    for two in (SecondGPU, BetweenGPUs)
    for mode in ["auto", *SIMULATED_MODES["13.0"]]
]


MEMORY_KINDS = ["device", "pinned", "pageable", "managed"]


def make_array(gpu, kind: str, content: np.ndarray):
    """An array of a kind of memory that holds `content`."""
    if kind == "device":
        array = gpu.device_array(content.shape, content.dtype)
        array.copy_to_device(content)
        return array
    if kind == "pageable":
        return content.copy()
    array = {"pinned": gpu.pinned_array, "managed": gpu.managed_array}[kind](
        content.shape, content.dtype
    )
    array[...] = content
    return array


def address_of(array) -> int:
    """Where an array of any kind begins."""
    return view_array(array, "array").address


def read_array(gpu, array) -> np.ndarray:
    """The content of an array of any kind, without disturbing anything under test."""
    if hasattr(array, "copy_to_host") and not isinstance(array, np.ndarray):
        return array.copy_to_host()
    gpu.synchronize()
    return np.array(array)


def random_bytes(rng, shape, dtype=np.uint8) -> np.ndarray:
    """Random content of any dtype, from random bytes: no zeros that hide an unwritten block."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    return rng.integers(1, 256, count, dtype=np.uint8).view(dtype).reshape(shape)


class NumberedRows:
    """Where made-up copies come from: each is called by its number, and of no row."""

    def describe(self, index, offset=None):
        return f"copy {index}"

    def describe_merged(self, start, stop):
        return f"copies {start} to {stop - 1}"

    def row(self, index, offset=0):
        return None

    def rows(self, count):
        return None if count else ()


def make_copies(
    dst,
    src,
    size,
    sources=(),
    destinations=(),
    *,
    owners=(),
    producer_streams=(),
    origin=None,
    **others,
) -> Copies:
    """Copies between made-up addresses; `others` are further arguments of `Copies`."""
    ends = Ends.of(sources, destinations, owners, producer_streams)
    return Copies(dst, src, size, ends, NumberedRows() if origin is None else origin, **others)


# More examples than a CI run has time for, and other ones every time.
EXAMPLES_FACTOR = int(os.environ.get("NUMBA_SWAP_EXAMPLES_FACTOR", "1"))


def examples(count: int) -> hypothesis.settings:
    """Settings of a randomised test: always the same examples, unless more are asked for."""
    return hypothesis.settings(
        max_examples=count * EXAMPLES_FACTOR,
        derandomize=EXAMPLES_FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextmanager
def no_reaper():
    """Let no thread of the library call the driver: dropped transfers are waited for at the end.

    Yields the list of them.
    """
    dropped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_flight._reaper, "adopt", dropped.append)
        yield dropped
        for work in dropped:
            with suppress(ns.DriverCallError):
                work.wait_in_own_context()
