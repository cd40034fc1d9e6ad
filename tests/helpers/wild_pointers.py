"""Raw pointers that cannot be right, all tried in one process, which must stay alive.

Run as ``python tests/helpers/wild_pointers.py MODE`` on a GPU; imported by tests for the
simulation.
"""

import ctypes
import json
import mmap
import sys

import numpy as np
from machines import RealGPU, address_of

import numba_swap as ns

SIZE = 4096
FREED_BYTES = 32 << 20  # so much that no driver keeps it for later


def address(array):
    return address_of(array)


def protected_page():
    """The address of mapped memory that may not be touched."""
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    kept.append(area)
    return start


def unmapped_page():
    """An address that was mapped a moment ago."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
    start = libc.mmap(None, FREED_BYTES, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(FREED_BYTES)) == 0
    return start


kept = []


def freed(gpu, make):
    """The address of memory that CUDA knew, and that was freed."""
    array = make(FREED_BYTES, np.uint8)
    start = address(array)
    del array
    if isinstance(gpu, RealGPU):
        from numba import cuda

        gpu.synchronize()
        # Numba frees late, and has two queues of what is to be freed: this one is for memory.
        cuda.current_context().memory_manager.deallocations.clear()
    else:
        gpu.library.synchronize()
    return start


def wild_pointers(gpu, host, device, kinds):
    """Kinds of pointers, as (kind, source, destination, size); each is bad at one side."""
    for name, good, make, end in (
        ("source", address(device), gpu.pinned_array, address(host) + SIZE),
        ("destination", address(host), gpu.device_array, address(device) + SIZE),
    ):
        bad = {
            "null": (0, 8),
            "negative": (-4096, 8),
            "in the first page": (64, 8),
            "wild": (0xDEAD0000, 64),
            "beyond all user space": (1 << 56, 8),
            "not an integer": (4096.5, 8),
            "freed": (lambda make=make: freed(gpu, make), 64),
            "protected": (protected_page, 64),
            "unmapped": (unmapped_page, 64),
            "crossing the end": (end - 100, 101),
            "crossing by terabytes": (end - 1, 1 << 42),
        }
        for kind, (pointer, size) in bad.items():
            if (kind == "freed") not in kinds:
                continue
            if callable(pointer):
                pointer = pointer()  # only now: another mapping could take its place
            pair = (pointer, good) if name == "source" else (good, pointer)
            yield f"{kind} {name}", *pair, size
    if False not in kinds:
        return
    code = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value
    yield "read-only destination", address(host), code, 8
    yield "negative size", address(host), address(device), -8


def try_all(gpu, mode, kinds=(False, True)):
    """Return what each kind of pointer was answered with; check that no byte moved.

    `kinds` says whether to try all but freed memory (False), freed memory (True), or both.
    """
    host, device = gpu.pinned_array(SIZE, np.uint8), gpu.device_array(SIZE, np.uint8)
    content = np.arange(SIZE, dtype=np.int64).astype(np.uint8)
    # What is loaded when it is first needed could be mapped to where memory was freed.
    ns.swap_blocks_batch([address(host)], [address(device)], [SIZE], mode=mode).wait()
    host[:] = 7
    device.copy_to_device(content)
    answers = {}
    for kind, src, dst, size in wild_pointers(gpu, host, device, kinds):
        # A good copy comes first: it must not be made either.
        pointers = [[address(host), src], [address(device) + 100, dst], [1, size]]
        if kind.startswith("freed") and not isinstance(gpu, RealGPU):
            # Freed simulated memory is still mapped: the driver, not the plan, refuses the copy.
            pointers = [[src], [dst], [size]]
        for validate in ("bounds", "full"):
            try:
                ns.swap_blocks_batch(*pointers, mode=mode, validate=validate)
            except ns.NumbaSwapError as error:
                answers[kind] = type(error).__name__
            else:
                answers[kind] = "not refused"
    for side in (host, device) if True in kinds else ():
        claim = {**interface(side), "data": (freed(gpu, gpu.device_array), False)}
        answers["array of freed memory"] = refusal(gpu, claim, mode)
    if False in kinds:
        claim = {**interface(device), "shape": (1 << 40,)}
        answers["array longer than its memory"] = refusal(gpu, claim, mode)
    gpu.synchronize()
    assert (host == 7).all(), answers
    assert np.array_equal(device.copy_to_host(), content), answers
    # The process is alive, and so is the library.
    ns.swap_blocks_batch([address(host)], [address(device)], [SIZE], mode=mode).wait()
    assert (device.copy_to_host() == 7).all()
    return answers


def interface(array):
    return {"shape": array.shape, "typestr": "|u1", "data": (address(array), False), "version": 3}


def refusal(gpu, claim, mode):
    claimed = type("Claimed", (), {"__cuda_array_interface__": claim})()
    other = gpu.pinned_array(claim["shape"][0] if claim["shape"][0] == SIZE else 8, np.uint8)
    try:
        ns.swap_blocks(claimed, other, [[0, 1]], mode=mode)
    except ns.NumbaSwapError as error:
        return type(error).__name__
    return "not refused"


if __name__ == "__main__":
    print(json.dumps(try_all(RealGPU(), sys.argv[1], (sys.argv[2] == "freed",))))
