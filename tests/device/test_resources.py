"""Memory for descriptors: as much as is asked for, used again, and by one at a time."""

import ctypes
import threading

import numpy as np
import pytest

from numba_swap.device.resources import DeviceBuffer, HostBuffers, buffer_size


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [(1, 4096), (4095, 4096), (4096, 4096), (4097, 8192), (8192, 8192), (1 << 20, 1 << 20)],
)
def test_sizes_are_powers_of_two(nbytes, size):
    assert buffer_size(nbytes) == size


@pytest.fixture
def memory():
    """What was allocated, as (bytes, device)."""
    return []


@pytest.fixture
def buffers(memory):
    kept = []

    def allocate(nbytes, device):
        memory.append((nbytes, device))
        kept.append((ctypes.c_uint64 * (nbytes // 8))())
        return ctypes.addressof(kept[-1])

    yield HostBuffers(allocate)
    kept.clear()


def test_a_buffer_is_used_again_when_it_is_dropped(buffers, memory):
    first = buffers.take(5000, 1)
    assert memory == [(8192, 1)]
    assert (len(first.words), first.words.dtype) == (1024, np.uint64)
    assert first.words.ctypes.data == first.address
    first.words[:] = 7
    second = buffers.take(5000)
    assert memory == [(8192, 1), (8192, None)]
    assert second.address != first.address
    address = first.address
    del first
    again = buffers.take(8192)
    assert again.address == address
    assert (again.words == 7).all()
    assert len(memory) == 2
    buffers.take(100)
    assert memory[2:] == [(4096, None)]


def test_lists_of_one_size_are_one(buffers, memory):
    of_8192 = buffers.of_size(4097)
    assert of_8192.size == 8192
    assert of_8192 is buffers.of_size(8192)
    assert of_8192 is not buffers.of_size(8193)
    assert of_8192.take_spare() is None
    address = buffers.take(8000).address
    spare = of_8192.take_spare()
    assert spare.address == address
    assert of_8192.take_spare() is None


def test_device_memory_goes_back_to_its_list():
    free = [3]
    buffer = DeviceBuffer(5, free)
    assert (buffer.address, free) == (5, [3])
    del buffer
    assert free == [3, 5]


def test_threads_never_have_the_same_memory(buffers):
    taken, lock = [], threading.Lock()

    def work():
        for _ in range(200):
            buffer = buffers.take(4096)
            with lock:
                assert buffer.address not in taken
                taken.append(buffer.address)
            with lock:
                taken.remove(buffer.address)
            del buffer

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not taken
