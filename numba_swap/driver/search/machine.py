"""What this machine has besides a driver library: graphics processors, kernel module, toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_NVIDIA, _AMD = "0x10de", "0x1002"
# PCI classes: display controllers, and processing accelerators.
_GPU_CLASSES = ("0x03", "0x12")
_MODULE_RELEASE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
_NVCC_RELEASE = re.compile(r"release (\d+\.\d+)")


@dataclass(frozen=True)
class Machine:
    """What the operating system tells of this machine, without any driver library.

    Attributes
    ----------
    nvidia_gpus, amd_gpus : int
        How many are on the PCI bus. None are seen there by WSL.
    amd_driver : bool
        Whether AMD's compute driver (``kfd``) is running.
    module_release : str or None
        Release of NVIDIA's kernel module, 580.159.04 for example; None if it is not loaded.
    wsl : bool
        Whether this is Linux in Windows, which hands the GPU through ``/dev/dxg``.
    """

    nvidia_gpus: int
    amd_gpus: int
    amd_driver: bool
    module_release: str | None
    wsl: bool

    @property
    def is_amd(self) -> bool:
        """Whether what is here to compute with is AMD's."""
        return not self.nvidia_gpus and (self.amd_gpus > 0 or self.amd_driver)

    @property
    def why_no_driver(self) -> str:
        """One sentence: what to do where no NVIDIA driver library can be used."""
        if self.module_release:
            return (
                f"NVIDIA's kernel module {self.module_release} is running, but its library is not "
                "there to be used: in a container, start it with GPUs (docker run --gpus all)."
            )
        if self.nvidia_gpus:
            return "There is an NVIDIA GPU on the PCI bus: install the NVIDIA driver for it."
        if self.is_amd:
            return "This is an AMD machine, and numba_swap needs an NVIDIA GPU."
        if self.wsl:
            return "This is WSL: install the NVIDIA driver in Windows, not in Linux."
        return "There is no NVIDIA GPU on the PCI bus."


def look_at_machine(root: str = "/") -> Machine:
    """Read what the kernel tells under ``/sys``, ``/proc`` and ``/dev``.

    Parameters
    ----------
    root : str
        Folder to take for the root of the file system, for tests.
    """
    top = Path(root)
    gpus = [
        _read(device / "vendor").strip()
        for device in (top / "sys/bus/pci/devices").glob("*")
        if _read(device / "class").startswith(_GPU_CLASSES)
    ]
    module = _MODULE_RELEASE.search(_read(top / "proc/driver/nvidia/version"))
    return Machine(
        nvidia_gpus=gpus.count(_NVIDIA),
        amd_gpus=gpus.count(_AMD),
        amd_driver=(top / "sys/class/kfd").exists() or (top / "dev/kfd").exists(),
        module_release=module and module.group(1),
        wsl=(top / "dev/dxg").exists(),
    )


def find_toolkit(environment: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Find the CUDA toolkit's compiler ``nvcc``: its version and its path.

    It is looked for in ``CUDA_HOME`` and ``CUDA_PATH``, on the ``PATH``, and in
    ``/usr/local/cuda``.
    """
    environment = os.environ if environment is None else environment
    folders = [
        os.path.join(environment[variable], "bin")
        for variable in ("CUDA_HOME", "CUDA_PATH")
        if environment.get(variable)
    ]
    folders += [environment.get("PATH", ""), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603 -- the user's own compiler
            [nvcc, "--version"],
            capture_output=True,
            text=True,
            errors="replace",  # it may speak in any encoding
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _NVCC_RELEASE.search(result.stdout)
    return (match.group(1), nvcc) if match else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
