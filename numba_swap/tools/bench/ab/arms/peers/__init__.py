"""Other ways to move the same blocks, each in a file of its own, imported when it is asked for.

What a peer prepares before the clock starts, its file says.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from numba_swap.tools.bench.ab.arms.actions import Action, Setup
from numba_swap.tools.bench.ab.spec.errors import ArmUnavailableError

# Arm -> module of this folder; each has `make(setup)`.
_MODULES = {
    "contiguous": "contiguous",
    "numba-loop": "numba_loop",
    "cuda.core": "cuda_core",
    "cupy-loop": "cupy_loop",
    "torch-staging": "torch_staging",
}


def make_peer(name: str, setup: Setup) -> Action:
    """Make a peer ready to run.

    Raises
    ------
    ArmUnavailableError
        If its package is not installed, or it cannot do this case.
    """
    action: Action = importlib.import_module(f"{__name__}.{_MODULES[name]}").make(setup)
    return action


def import_for(arm: str, module: str, package: str) -> ModuleType:
    """Import what an arm needs.

    Parameters
    ----------
    arm, module : str
        Who needs what.
    package : str
        What to install to have it.

    Raises
    ------
    ArmUnavailableError
        If it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that it links is missing
        raise ArmUnavailableError(
            f"{arm} needs {module}, from the package {package}: {error}"
        ) from None


def needs_gpu(arm: str, setup: Setup) -> None:
    """Refuse a simulated GPU, for packages that only know real ones.

    Raises
    ------
    ArmUnavailableError
        If the GPU is simulated.
    """
    if setup.gpu.simulated:
        raise ArmUnavailableError(f"{arm} needs a GPU; this one is simulated")
