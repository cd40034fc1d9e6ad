"""One GPU: its context, attributes, kernels, costs, and what is known of it."""

from __future__ import annotations

from numba_swap.device.tuning import DEFAULT_TUNING, SIMULATED_TUNING, Tuning
from numba_swap.driver.calls import Driver
from numba_swap.driver.version import DriverVersion


class Device:
    """One GPU.

    Attributes
    ----------
    driver : Driver
        The driver.
    ordinal : int
        Its number there.
    kernels : dict of str to int
        Handles of the kernels that were loaded on it, by name.
    kernel_failures : dict of str to str
        Why others could not be loaded: each is tried once in a process.
    costs : object or None
        What copies cost here, for `dispatch.calibration`, which finds that out.
    costs_between : dict
        The same for copies to and from other GPUs, by their numbers.
    choices : dict
        How copies like some are run here, for `swap.select`; empty again when costs change.
    tuning : Tuning
        The figures of this machine.
    reached : dict of int to (str or None)
        Other GPUs to whose memory access was asked for, with the reason where it was refused; for
        `device.peers`.
    capabilities : dict
        What it can do, by the driver version that counts; for `dispatch.capabilities`.
    """

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver = driver
        self.ordinal = ordinal
        self.kernels: dict[str, int] = {}
        self.kernel_failures: dict[str, str] = {}
        self.costs: object | None = None
        self.costs_between: dict[int, tuple[object, object]] = {}
        self.choices: dict[object, object] = {}
        self.tuning: Tuning = SIMULATED_TUNING if driver.simulated else DEFAULT_TUNING
        self.reached: dict[int, str | None] = {}
        self.capabilities: dict[DriverVersion | None, object] = {}
        self._attributes: dict[int, int] = {}
        self._primary = 0

    @property
    def name(self) -> str:
        """What the driver calls it."""
        return self.driver.device_name(self.ordinal)

    def attribute(self, code: int) -> int:
        """One ``CUdevice_attribute``; asked for once."""
        if code not in self._attributes:
            self._attributes[code] = self.driver.device_attribute(code, self.ordinal)
        return self._attributes[code]

    @property
    def primary_context(self) -> int:
        """Its primary context, the one that Numba, CuPy and PyTorch use; made if need be.

        It is retained and never released: releasing it at exit would race with the libraries
        that share it.
        """
        if not self._primary:
            # Threads that get here together retain it once each, which is harmless; making it
            # takes long, so no lock is held meanwhile.
            self._primary = self.driver.primary_context(self.ordinal)
        return self._primary
