"""A CUDA driver over host memory: the same C functions, reached through the same look-up."""

from numba_swap.driver.simulated.faults import Fault, FaultPlan
from numba_swap.driver.simulated.library import SimulatedLibrary

__all__ = ["Fault", "FaultPlan", "SimulatedLibrary"]
