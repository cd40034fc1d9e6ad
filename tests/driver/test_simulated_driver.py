"""The simulated driver answers as real drivers do (DRIVER-FACTS) and hides no missing fence."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from ctypes import byref, c_bool, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np
import pytest

from numba_swap.device.devices import devices_of
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver
from numba_swap.driver.simulated import Fault, SimulatedLibrary
from numba_swap.driver.simulated.gpu import simulate
from numba_swap.driver.simulated.memory import Kind
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import DriverCallError, DriverUnavailableError, UnsupportedArrayError

VERSIONS = [(11, 4), (12, 0), (12, 4), (12, 8), (13, 0)]
POISON = 0xDEADBEEF
UNWRITTEN = 4711
BATCH = abi.MEMCPY_BATCH_ASYNC.name


@pytest.fixture
def gpu():
    with simulate() as simulated:
        simulated.driver.current_context()
        yield simulated


def context_of(driver):
    """What is kept for the calling thread's context; device 0's if it has none yet."""
    return devices_of(driver).context(driver.current_context())


def address(array):
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return array.__cuda_array_interface__["data"][0]


def copy(gpu, dst, src, stream, nbytes=None):
    """cuMemcpyAsync between arrays."""
    handle = getattr(stream, "handle", stream)
    size = dst.nbytes if nbytes is None else nbytes
    return gpu.driver._cuMemcpyAsync(address(dst), address(src), size, handle)


def batch(gpu, rows, stream, *, orders=(1,), indices=(0,), count=None, revision=1):
    """One batch call of (dst, src, nbytes) rows; returns the code and what failIdx holds after."""
    columns = [(c_uint64 * max(1, len(rows)))(*(row[i] for row in rows)) for i in range(3)]
    attributes = (abi.MemcpyAttributes * max(1, len(orders)))()
    for attribute, order in zip(attributes, orders, strict=False):
        attribute.src_access_order = order
    fail_index = c_size_t(UNWRITTEN)
    arguments = [
        *columns,
        len(rows) if count is None else count,
        attributes if orders else None,
        (c_size_t * max(1, len(indices)))(*indices) if indices else None,
        len(orders),
        byref(fail_index),
        getattr(stream, "handle", stream),
    ]
    if revision == 2:
        del arguments[7]
        return gpu.library.exports[f"{BATCH}_v2"](*arguments), fail_index.value
    return gpu.driver._cuMemcpyBatchAsync(*arguments), fail_index.value


def filled(gpu, value, n=64):
    array = gpu.pinned_array(n, np.uint8)
    array[:] = value
    return array


def zeros(gpu, n=64):
    array = gpu.device_array(n, np.uint8)
    array.copy_to_device(0)
    return array


def peek(array):
    """The bytes as they are now: nothing is synchronised."""
    return array._memory.copy() if hasattr(array, "_memory") else array.copy()


# -- look-up ----------------------------------------------------------------------------------


def ask_v1(library, name, version, flags=0):
    pointer = c_void_p(POISON)
    code = library.exports["cuGetProcAddress"](name, byref(pointer), version, flags)
    return code, pointer.value


def ask_v2(library, name, version, flags=0):
    pointer, status = c_void_p(POISON), c_int(UNWRITTEN)
    function = library.exports["cuGetProcAddress_v2"]
    code = function(name, byref(pointer), version, flags, byref(status))
    return code, pointer.value, status.value


def exported(library, symbol):
    return ctypes.cast(library.exports[symbol], c_void_p).value


@pytest.mark.parametrize("version", VERSIONS)
def test_driver_starts_at_every_version(version):
    library = SimulatedLibrary(DriverVersion(*version))
    driver = Driver(library)
    assert driver.version == version
    assert driver.has(BATCH) == (version >= (12, 8))
    assert ("cuGetProcAddress_v2" in library.exports) == (version >= (12, 0))
    assert library.proc_address.revision == (2 if version >= (12, 0) else 1)
    assert library.path == f"simulated CUDA driver {driver.version}"
    assert driver.simulated
    assert driver.device_count() == 1
    assert driver.device_name(0) == "Simulated GPU"
    assert driver.device_attribute(abi.DEVICE_MULTIPROCESSOR_COUNT, 0) == 2
    assert driver.device_attribute(abi.DEVICE_COMPUTE_CAPABILITY_MAJOR, 0) == 9
    assert driver.device_attribute(abi.DEVICE_CONCURRENT_MANAGED_ACCESS, 0) == 1
    assert driver.error_name(999) == "CUDA_ERROR_UNKNOWN"
    assert driver.error_name(123456) == "unknown error 123456"


def test_no_lookup_function_below_11_3():
    assert SimulatedLibrary(DriverVersion(11, 3)).exports
    with pytest.raises(DriverUnavailableError, match="cuGetProcAddress"):
        SimulatedLibrary(DriverVersion(11, 2))


@pytest.mark.parametrize("version", [v for v in VERSIONS if v < (12, 8)])
def test_batch_is_missing_below_12_8(version):
    library = SimulatedLibrary(DriverVersion(*version))
    for requested in (12080, 13000, library.version.encoded, 0):
        assert ask_v1(library, BATCH.encode(), requested) == (500, POISON)
        if version >= (12, 0):
            assert ask_v2(library, BATCH.encode(), requested) == (0, None, 1)


def test_requested_version_chooses_the_prototype():
    library = SimulatedLibrary(DriverVersion(13, 0))
    nine, eight = exported(library, BATCH), exported(library, f"{BATCH}_v2")
    assert nine != eight
    for requested in (12080, 12090, 12999):
        assert ask_v2(library, BATCH.encode(), requested) == (0, nine, 0)
        assert ask_v1(library, BATCH.encode(), requested) == (0, nine)
    assert ask_v2(library, BATCH.encode(), 13000) == (0, eight, 0)
    for requested in (12070, 0):
        assert ask_v2(library, BATCH.encode(), requested) == (0, None, 2)
        assert ask_v1(library, BATCH.encode(), requested) == (500, POISON)
    assert ask_v2(library, BATCH.encode(), 14000) == (1, POISON, UNWRITTEN)
    assert ask_v2(library, b"cuNonsense", 12080) == (0, None, 1)
    assert ask_v1(library, b"cuNonsense", 12080) == (500, POISON)


def test_no_eight_parameter_batch_on_12_8():
    library = SimulatedLibrary(DriverVersion(12, 8))
    assert f"{BATCH}_v2" not in library.exports
    assert ask_v2(library, BATCH.encode(), 13000)[1] == exported(library, BATCH)


def test_lookup_without_a_place_for_the_status():
    library = SimulatedLibrary(DriverVersion(12, 4))
    pointer = c_void_p(POISON)
    function = library.exports["cuGetProcAddress_v2"]
    assert function(b"cuNonsense", byref(pointer), 12000, 0, None) == 0
    assert pointer.value is None


# -- start and contexts -------------------------------------------------------------------------


def test_nothing_works_before_init_or_without_context():
    driver = Driver(SimulatedLibrary())
    count, event = c_int(), c_void_p()
    assert driver._cuDeviceGetCount(byref(count)) == 3
    driver.initialize()
    assert driver._cuDeviceGetCount(byref(count)) == 0
    assert driver._cuEventCreate(byref(event), 0) == 201
    assert driver._cuMemcpyAsync(1, 1, 1, 0) == 201
    driver.current_context()
    assert driver._cuEventCreate(byref(event), 0) == 0


def test_no_device():
    with pytest.raises(DriverUnavailableError, match="CUDA_ERROR_NO_DEVICE"):
        Driver(SimulatedLibrary(devices=0)).initialize()


def test_contexts_belong_to_threads():
    driver = Driver(SimulatedLibrary(devices=2))
    first = driver.current_context()
    second = driver.primary_context(1)
    seen = []

    def other():
        context = c_void_p(POISON)
        driver._cuCtxGetCurrent(byref(context))
        seen.append(context.value)
        with driver.activate(second):
            seen.append(driver.current_device())
            seen.append(devices_of(driver).context(second).device.ordinal)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [None, 1, 1]
    assert driver.current_context() == first != second
    assert driver.current_device() == 0
    assert devices_of(driver).context(first).device.ordinal == 0
    assert driver._cuCtxSetCurrent(POISON) == 201
    assert driver._cuDevicePrimaryCtxRetain(byref(c_void_p()), 2) == 101
    stream = driver.create_stream()
    with driver.activate(second):
        assert driver.probe(stream) == (second, first, False)
        assert driver.probe(0) == (second, second, False)
        assert driver._cuEventRecord(driver.create_event(), stream) == 400
        kernel = driver.library.register_kernel(print)
        assert driver._cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, None, None) == 400


def test_capture_mode_belongs_to_threads(gpu):
    mode = c_int(2)
    gpu.driver._cuThreadExchangeStreamCaptureMode(byref(mode))
    assert mode.value == 0
    seen = []

    def other():
        value = c_int(1)
        gpu.driver._cuThreadExchangeStreamCaptureMode(byref(value))
        seen.append(value.value)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    gpu.driver._cuThreadExchangeStreamCaptureMode(byref(mode))
    assert (seen, mode.value) == ([0], 2)


def test_invalid_handles(gpu):
    driver = gpu.driver
    assert driver._cuEventQuery(POISON) == 400
    assert driver._cuEventSynchronize(None) == 400
    assert driver._cuStreamWaitEvent(gpu.stream().handle, POISON, 0) == 400
    assert driver._cuMemcpyAsync(1, 1, 1, POISON) == 400
    assert driver._cuEventQuery(gpu.stream().handle) == 400
    assert driver._cuLaunchKernel(POISON, 1, 1, 1, 1, 1, 1, 0, 0, None, None) == 400


# -- memory -------------------------------------------------------------------------------------


def test_pointer_info(gpu):
    device = gpu.device_array(1000, np.uint8)
    pinned = gpu.pinned_array(1000, np.uint8)
    managed = gpu.managed_array(1000, np.uint8)
    pageable = np.empty(1000, np.uint8)
    info = gpu.driver.pointer_info
    start = address(device)
    assert start % 256 == 0
    assert info(start + 999) == (2, False, 0, start + 999, start, 1000)
    assert info(address(pinned)) == (1, False, 0, address(pinned), address(pinned), 1000)
    assert info(address(managed))[:2] == (2, True)
    assert info(address(pageable)) == (0, False, 0, 0, 0, 0)
    assert info(start + 1000) == (0, False, 0, 0, 0, 0)
    gpu.library.register_host(pageable[100:200])
    assert info(address(pageable) + 150)[4:] == (address(pageable) + 100, 100)
    assert info(address(pageable) + 150).memory_type == 1
    with pytest.raises(DriverCallError, match="ALREADY_REGISTERED"):
        gpu.library.register_host(pageable[:101])
    gpu.library.register_host(pageable[:100])
    gpu.library.unregister_host(pageable[100:200])
    assert info(address(pageable) + 150).memory_type == 0


@pytest.mark.parametrize(
    ("attribute", "ctype"),
    [
        (abi.POINTER_MEMORY_TYPE, c_uint),
        (abi.POINTER_DEVICE_POINTER, c_uint64),
        (abi.POINTER_IS_MANAGED, c_bool),
        (abi.POINTER_DEVICE_ORDINAL, c_int),
        (abi.POINTER_RANGE_START, c_uint64),
        (abi.POINTER_RANGE_SIZE, c_uint64),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_attributes_write_their_own_width_only(gpu, attribute, ctype, known):
    array = gpu.device_array(8, np.uint8)
    place = (ctypes.c_uint8 * 16)(*[0xEE] * 16)
    places = (c_void_p * 1)(ctypes.addressof(place))
    where = address(array) if known else POISON
    assert gpu.driver._cuPointerGetAttributes(1, byref(c_int(attribute)), places, where) == 0
    width = ctypes.sizeof(ctype)
    assert bytes(place[width:]) == b"\xee" * (16 - width)
    if not known:
        assert not any(place[:width])


def test_host_alloc_and_free(gpu):
    start = gpu.driver.host_alloc(100)
    assert gpu.driver.pointer_info(start).nbytes == 100
    assert gpu.driver._cuMemFreeHost(start + 1) == 1
    gpu.driver.host_free(start)
    assert gpu.driver.pointer_info(start).memory_type == 0
    assert gpu.driver._cuMemFreeHost(start) == 1
    assert gpu.driver._cuMemFreeHost(address(gpu.device_array(1))) == 1


def test_freed_memory_gives_a_sticky_illegal_address():
    with simulate() as gpu:
        driver = gpu.driver
        driver.current_context()
        stream, event, early = gpu.stream(), driver.create_event(), driver.create_event()
        source, target = filled(gpu, 7), zeros(gpu)
        live, untouched = filled(gpu, 8), zeros(gpu)
        driver.record_event(early, stream.handle)
        assert copy(gpu, target, source, stream) == 0
        driver.record_event(event, stream.handle)
        later = gpu.stream()
        copy(gpu, untouched, live, later)
        gpu.library.free(address(source))
        driver.synchronize_event(early)  # not ordered behind the bad copy
        with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
            driver.synchronize_event(event)
        assert driver._cuEventQuery(early) == 700
        assert copy(gpu, target, target, stream) == 700
        with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
            later.synchronize()
        assert not peek(target).any()
        assert not peek(untouched).any()  # nothing runs after a failure


def test_unreported_failure_is_raised_on_leaving():
    simulation = simulate()
    gpu = simulation.__enter__()
    gpu.driver.current_context()
    source, target = filled(gpu, 7), zeros(gpu)
    copy(gpu, target, source, gpu.stream())
    gpu.library.free(address(source))
    with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
        simulation.__exit__(None, None, None)


def test_memory_dropped_while_work_goes_on_is_missed(gpu):
    stream, target = gpu.stream(), zeros(gpu)
    copy(gpu, target, filled(gpu, 7), stream)
    gc.collect()
    with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
        stream.synchronize()


def test_memory_dropped_on_leaving_is_not_missed():
    with simulate() as gpu:
        gpu.driver.current_context()
        target = zeros(gpu)
        copy(gpu, target, filled(gpu, 7), gpu.stream())
        gc.collect()
    assert (peek(target) == 7).all()
    assert gpu.library.memory.find(address(target)).alive


def test_copy_of_freed_memory_is_refused(gpu):
    source, target = filled(gpu, 7), zeros(gpu)
    gpu.library.free(address(source))
    assert copy(gpu, target, source, gpu.stream()) == 1


def test_much_freed_memory_is_given_up_in_the_end(gpu):
    memory = gpu.library.memory
    for _ in range(5):
        gpu.library.free(gpu.library.allocate(20 << 20, Kind.DEVICE).start)
    assert sum(a.nbytes for a in memory._allocations) <= 64 << 20


# -- cuMemcpyAsync ------------------------------------------------------------------------------


def test_memcpy_arguments(gpu):
    source, target, stream = filled(gpu, 7), zeros(gpu), gpu.stream()
    assert copy(gpu, target, source, stream, nbytes=65) == 1
    assert gpu.driver._cuMemcpyAsync(0, address(source), 8, stream.handle) == 1
    assert copy(gpu, target, source, stream, nbytes=0) == 0
    stream.synchronize()
    assert not peek(target).any()


@pytest.mark.parametrize("handle", [0, 1, 2])
def test_memcpy_works_on_default_streams(gpu, handle):
    source, target = filled(gpu, 7), zeros(gpu)
    assert copy(gpu, target, source, handle) == 0
    assert not peek(target).any()
    gpu.library.synchronize_stream(handle)
    assert (peek(target) == 7).all()


def test_pageable_memcpy_is_synchronous_with_what_it_depends_on(gpu):
    stream, other = gpu.stream(), gpu.stream()
    middle, unrelated, result = zeros(gpu), zeros(gpu), np.zeros(64, np.uint8)
    sources = filled(gpu, 7), filled(gpu, 8)
    copy(gpu, middle, sources[0], stream)
    copy(gpu, unrelated, sources[1], other)
    assert copy(gpu, result, middle, stream) == 0
    assert (result == 7).all()
    assert not peek(unrelated).any()


# -- cuMemcpyBatchAsync -------------------------------------------------------------------------


def rows_of(gpu, count=4):
    """Arrays and rows that copy 16-byte blocks; the source block i holds i + 1."""
    source = gpu.pinned_array((count, 16), np.uint8)
    source[:] = np.arange(1, count + 1)[:, None]
    target = zeros(gpu, 16 * count)
    rows = [[address(target) + 16 * i, address(source) + 16 * i, 16] for i in range(count)]
    return source, target, rows


def landed(target):
    return peek(target).reshape(-1, 16)[:, 0].tolist()


@pytest.mark.parametrize("revision", [1, 2])
def test_batch_copies_when_its_turn_comes(gpu, revision):
    _source, target, rows = rows_of(gpu)
    stream = gpu.stream()
    assert batch(gpu, rows, stream, revision=revision)[0] == 0
    assert landed(target) == [0, 0, 0, 0]
    stream.synchronize()
    assert landed(target) == [1, 2, 3, 4]


def test_batch_promises_no_order(gpu):
    _source, target, rows = rows_of(gpu)
    rows[3][0] = rows[2][0] = rows[0][0]
    assert batch(gpu, rows, 2)[0] == 0
    gpu.library.synchronize_stream(2)
    assert landed(target) == [1, 2, 0, 0]  # the last copy came first


def test_batch_refuses_the_legacy_stream(gpu):
    _source, _target, rows = rows_of(gpu)
    assert batch(gpu, rows, 0) == (1, UNWRITTEN)
    assert batch(gpu, rows, 1) == (1, abi.SIZE_MAX)
    assert batch(gpu, rows, 2) == (0, UNWRITTEN)


def test_batch_refusals_without_an_index(gpu):
    _source, target, rows = rows_of(gpu)
    stream = gpu.stream()
    refused = (1, abi.SIZE_MAX)
    assert batch(gpu, rows, stream, count=0) == refused
    assert batch(gpu, rows, stream, orders=(0,)) == refused
    assert batch(gpu, rows, stream, orders=(4,)) == refused
    assert batch(gpu, rows, stream, orders=(), indices=()) == refused
    assert batch(gpu, rows, stream, indices=(1,)) == refused
    assert batch(gpu, rows, stream, orders=(1, 1), indices=(0, 0)) == refused
    assert batch(gpu, rows, stream, orders=(1, 1), indices=(0, 4)) == refused
    stream.synchronize()
    assert landed(target) == [0, 0, 0, 0]


def test_attribute_indices_have_as_many_entries_as_attributes(gpu):
    _source, target, rows = rows_of(gpu)
    stream = gpu.stream()
    assert batch(gpu, rows, stream, indices=(0, 99, 5, 0))[0] == 0
    stream.synchronize()
    assert landed(target) == [1, 2, 3, 4]


@pytest.mark.parametrize("index", [0, 2, 3])
@pytest.mark.parametrize(
    ("column", "value"), [(0, 0), (1, 0), (2, 0), (2, 10_000)], ids=["dst", "src", "zero", "far"]
)
def test_batch_error_names_its_copy_and_submits_those_before(gpu, index, column, value):
    _source, target, rows = rows_of(gpu)
    stream = gpu.stream()
    rows[index][column] = value
    assert batch(gpu, rows, stream) == (1, index)
    stream.synchronize()
    assert landed(target) == [i + 1 if i < index else 0 for i in range(4)]


def test_eight_parameter_batch_fails_without_an_index(gpu):
    _source, target, rows = rows_of(gpu)
    rows[2][2] = 0
    assert batch(gpu, rows, gpu.stream(), revision=2) == (1, UNWRITTEN)
    gpu.synchronize()
    assert landed(target) == [1, 2, 0, 0]


def test_batch_across_two_registrations_is_refused(gpu):
    host, target, stream = np.ones(64, np.uint8), zeros(gpu), gpu.stream()
    gpu.library.register_host(host[:32])
    gpu.library.register_host(host[32:])
    assert batch(gpu, [(address(target), address(host), 64)], stream) == (1, 0)


@pytest.mark.parametrize("mode", ["copy", "batch"])
@pytest.mark.parametrize(
    ("begin", "end", "code"),
    [(0, 32, 0), (16, 48, 0), (16, 96, 0), (32, 64, 0), (48, 80, 1)],
)
def test_where_a_range_begins_decides_whether_it_is_registered(gpu, mode, begin, end, code):
    """As driver 580 takes it: only what begins in a registered part must end there."""
    memory, stream = np.arange(96, dtype=np.uint8), gpu.stream()
    gpu.library.register_host(memory[32:64])
    target, source = zeros(gpu, 96), memory[begin:end]
    if mode == "copy":
        assert copy(gpu, target, source, stream, end - begin) == code
    else:
        assert batch(gpu, [(address(target), address(source), end - begin)], stream)[0] == code
    stream.synchronize()
    expected = np.zeros(end - begin) if code else source
    assert peek(target)[: end - begin].tolist() == expected.tolist()


def test_a_batch_does_not_look_up_another_address_on_the_gpu():
    with simulate() as gpu:
        gpu.driver.current_context()
        memory, target, stream = np.full(64, 7, np.uint8), zeros(gpu), gpu.stream()
        gpu.library.register_host(memory, device_offset=1 << 30)
        assert copy(gpu, target, memory, stream) == 0
        stream.synchronize()
        assert (peek(target) == 7).all()
        assert batch(gpu, [(address(target), address(memory), 64)], stream)[0] == 0
        with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
            stream.synchronize()
        assert copy(gpu, target, memory, stream) == 700  # for good


def test_pinned_memory_may_be_used_up():
    with simulate(pinned_limit=1 << 16) as gpu:
        gpu.driver.current_context()
        half, other = gpu.pinned_array(1 << 15, np.uint8), np.zeros(1 << 15, np.uint8)
        gpu.library.register_host(other)
        with pytest.raises(DriverCallError, match=r"OUT_OF_MEMORY. 8 bytes of pinned host memory"):
            gpu.driver.host_alloc(8)
        with pytest.raises(DriverCallError, match=r"cuMemHostRegister.*OUT_OF_MEMORY"):
            gpu.library.register_host(np.zeros(8))
        gpu.library.unregister_host(other)
        assert gpu.driver.host_alloc(1 << 15)
        with pytest.raises(DriverCallError, match="OUT_OF_MEMORY"):
            gpu.pinned_array(8)
        assert gpu.device_array(1 << 16)
        del half
        assert gpu.driver.host_alloc(1 << 15)
        gpu.library.memory.pinned_limit = None
        assert len(gpu.pinned_array(1 << 20)) == 1 << 20


# -- device memory in chunks --------------------------------------------------------------------


def test_chunks_are_told_of_one_by_one(gpu):
    array = gpu.device_array(100, np.uint8, chunk_bytes=48)
    at = address(array)
    for begin, end in ((0, 48), (48, 96), (96, 100)):
        for where in (begin, end - 1):
            info = gpu.driver.pointer_info(at + where)
            assert (info.memory_type, info.start, info.nbytes) == (2, at + begin, end - begin)
            assert gpu.driver.is_chunk(at + where)
    assert not gpu.driver.is_chunk(at + 100)
    assert gpu.library._functions.retained == set()


def test_only_chunks_have_a_handle(gpu):
    handle = c_uint64(POISON)
    arrays = [gpu.device_array(8), gpu.pinned_array(8), gpu.managed_array(8), np.zeros(8)]
    for array in arrays:
        code = gpu.driver._cuMemRetainAllocationHandle(byref(handle), address(array))
        assert (code, handle.value) == (1, POISON)
        assert not gpu.driver.is_chunk(address(array))
    chunk = gpu.device_array(8, chunk_bytes=32)
    assert gpu.driver._cuMemRetainAllocationHandle(byref(handle), address(chunk)) == 0
    assert gpu.driver._cuMemRelease(handle.value) == 0
    assert gpu.driver._cuMemRelease(handle.value) == 1


@pytest.mark.parametrize("mode", ["copy", "batch"])
def test_copies_run_on_from_chunk_to_chunk(gpu, mode):
    stream, source = gpu.stream(), gpu.pinned_array(200, np.uint8)
    source[:] = np.arange(200)
    array = gpu.device_array(100, np.uint8, chunk_bytes=16)

    def run(begin, nbytes):
        if mode == "copy":
            at = address(array) + begin
            return gpu.driver._cuMemcpyAsync(at, address(source), nbytes, stream.handle)
        return batch(gpu, [(address(array) + begin, address(source), nbytes)], stream)[0]

    assert run(0, 100) == 0
    stream.synchronize()
    assert array.copy_to_host().tolist() == list(range(100))
    assert run(95, 6) == 1  # beyond the last
    gpu.library.free(address(array) + 16)
    assert run(0, 16) == run(32, 68) == 0
    assert run(0, 48) == run(16, 4) == 1  # a gap
    stream.synchronize()


def test_chunks_go_with_their_array(gpu):
    def known():
        gpu.driver.pointer_info(1)  # what is dead is freed by the next call
        return sum(a.alive for a in gpu.library.memory._allocations)

    before = known()
    array = gpu.device_array(100, np.uint8, chunk_bytes=16)
    assert known() == before + 7
    del array
    assert known() == before


@pytest.mark.parametrize(("order", "expected"), [(1, 7), (2, 0), (3, 0)])
def test_source_access_order(gpu, order, expected):
    stream, middle, target = gpu.stream(), zeros(gpu), zeros(gpu)
    source = filled(gpu, 7)
    copy(gpu, middle, source, stream)
    row = (address(target), address(middle), 64)
    assert batch(gpu, [row], stream, orders=(order,))[0] == 0
    stream.synchronize()
    assert (peek(target) == expected).all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_batch_takes_pageable_memory(gpu, order):
    target, source = zeros(gpu), np.full(64, 7, np.uint8)
    assert batch(gpu, [(address(target), address(source), 64)], 2, orders=(order,))[0] == 0
    assert not peek(target).any()
    gpu.library.synchronize_stream(2)
    assert (peek(target) == 7).all()


# -- order and laziness -------------------------------------------------------------------------


@pytest.mark.parametrize("fenced", [False, True])
def test_a_missing_fence_shows(gpu, fenced):
    producer, consumer = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    source, middle, target = filled(gpu, 7), zeros(gpu), zeros(gpu)
    copy(gpu, middle, source, producer)
    if fenced:
        context_of(gpu.driver).wait_for(before=producer.handle, after=consumer.handle)
    copy(gpu, target, middle, consumer)
    consumer.synchronize()
    assert (peek(target) == (7 if fenced else 0)).all()


def test_a_wait_keeps_the_recording_of_its_moment(gpu):
    driver = gpu.driver
    one, two, waiting = (gpu.stream(non_blocking=True) for _ in range(3))
    first, second = zeros(gpu), zeros(gpu)
    sources = filled(gpu, 7), filled(gpu, 8)
    event = driver.create_event()
    copy(gpu, first, sources[0], one)
    driver.record_event(event, one.handle)
    driver.wait_event(waiting.handle, event)
    copy(gpu, second, sources[1], two)
    driver.record_event(event, two.handle)
    waiting.synchronize()
    assert (peek(first) == 7).all()
    assert not peek(second).any()


def test_work_after_a_recording_is_not_run_by_it(gpu):
    stream, before, after = gpu.stream(), zeros(gpu), zeros(gpu)
    source, event = filled(gpu, 7), gpu.driver.create_event()
    copy(gpu, before, source, stream)
    gpu.driver.record_event(event, stream.handle)
    copy(gpu, after, source, stream)
    gpu.driver.synchronize_event(event)
    assert (peek(before) == 7).all()
    assert not peek(after).any()


@pytest.mark.parametrize("legacy", [0, 1])
@pytest.mark.parametrize("legacy_first", [True, False])
@pytest.mark.parametrize("kind", ["blocking", "per-thread", "non-blocking"])
def test_legacy_stream_is_ordered_with_blocking_streams(gpu, legacy, legacy_first, kind):
    other = 2 if kind == "per-thread" else gpu.stream(non_blocking=kind == "non-blocking").handle
    first, last = (legacy, other) if legacy_first else (other, legacy)
    source, middle, target = filled(gpu, 7), zeros(gpu), zeros(gpu)
    copy(gpu, middle, source, first)
    copy(gpu, target, middle, last)
    gpu.library.synchronize_stream(last)
    assert (peek(target) == (0 if kind == "non-blocking" else 7)).all()


def test_blocking_streams_are_not_ordered_with_each_other(gpu):
    one, two = gpu.stream(), gpu.stream()
    source, middle, target = filled(gpu, 7), zeros(gpu), zeros(gpu)
    copy(gpu, middle, source, one)
    copy(gpu, target, middle, two)
    two.synchronize()
    assert not peek(target).any()


def test_per_thread_streams_differ_between_threads(gpu):
    source, target = filled(gpu, 7), zeros(gpu)

    def other():
        gpu.driver.current_context()
        copy(gpu, target, source, 2)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    gpu.library.synchronize_stream(2)
    assert not peek(target).any()
    gpu.synchronize()
    assert (peek(target) == 7).all()


def test_event_query_runs_the_work_after_saying_not_ready(gpu):
    stream, target, source = gpu.stream(), zeros(gpu), filled(gpu, 7)
    event = gpu.driver.create_event()
    assert gpu.driver.event_done(event)  # never recorded
    copy(gpu, target, source, stream)
    gpu.driver.record_event(event, stream.handle)
    assert not peek(target).any()
    assert not gpu.driver.event_done(event)
    assert gpu.driver.event_done(event)
    assert (peek(target) == 7).all()


def test_long_chains_do_not_recurse(gpu):
    one, two = gpu.stream(), gpu.stream()
    context = context_of(gpu.driver)
    ran = []
    for i in range(3000):
        gpu.library.enqueue(one.handle, lambda i=i: ran.append(i))
        context.wait_for(before=one.handle, after=two.handle)
        context.wait_for(before=two.handle, after=one.handle)
    two.synchronize()
    assert ran == list(range(3000))


def test_dropping_a_long_chain_does_not_recurse():
    library = SimulatedLibrary()
    for _ in range(100_000):
        library.enqueue(2, gc.isenabled)
    del library
    gc.collect()


# -- capture ------------------------------------------------------------------------------------


def test_capture_and_launch(gpu):
    stream, target, source = gpu.stream(), zeros(gpu), filled(gpu, 7)
    library, driver = gpu.library, gpu.driver
    library.begin_capture(stream.handle)
    assert driver.probe(stream.handle)[2]
    copy(gpu, target, source, stream)
    graph = library.end_capture(stream.handle)
    assert not driver.probe(stream.handle)[2]
    stream.synchronize()
    assert len(graph.nodes) == 1
    assert not peek(target).any()
    for value in (8, 9):
        source[:] = value
        library.launch(graph, stream.handle)
        assert not (peek(target) == value).any()
        stream.synchronize()
        assert (peek(target) == value).all()


def test_launches_of_one_graph_follow_one_another(gpu):
    streams, ran = [gpu.stream(non_blocking=True) for _ in range(2)], []
    gpu.library.begin_capture(streams[0].handle)
    gpu.library.enqueue(streams[0].handle, lambda: ran.append(1))
    graph = gpu.library.end_capture(streams[0].handle)
    for stream in streams:
        gpu.library.launch(graph, stream.handle)
    streams[1].synchronize()
    assert ran == [1, 1]


def test_batch_vanishes_from_a_capture(gpu):
    _source, target, rows = rows_of(gpu)
    stream = gpu.stream()
    gpu.library.begin_capture(stream.handle)
    assert batch(gpu, rows, stream)[0] == 900
    graph = gpu.library.end_capture(stream.handle)
    assert graph.nodes == []
    gpu.library.launch(graph, stream.handle)
    stream.synchronize()
    assert landed(target) == [0, 0, 0, 0]


def test_capture_spreads_over_fences(gpu):
    stream, context = gpu.stream(), context_of(gpu.driver)
    source, middle, target = filled(gpu, 7), zeros(gpu), zeros(gpu)
    gpu.library.begin_capture(stream.handle)
    copy(gpu, middle, source, stream)
    (side,) = context.private_streams(1)
    with context.fork_join(stream.handle, [side], list):
        assert gpu.driver.probe(side)[2]
        copy(gpu, target, middle, side)
    graph = gpu.library.end_capture(stream.handle)
    assert not gpu.driver.probe(side)[2]
    gpu.library.launch(graph, stream.handle)
    stream.synchronize()
    assert (peek(target) == 7).all()


def test_capture_refusals(gpu):
    library, driver = gpu.library, gpu.driver
    stream, other, event = gpu.stream(), gpu.stream(), driver.create_event()
    source, target = filled(gpu, 7), zeros(gpu)
    with pytest.raises(DriverCallError, match="900"):
        library.begin_capture(0)
    library.begin_capture(stream.handle)
    assert driver.host_alloc(8)  # in relaxed mode
    driver.record_event(event, stream.handle)
    driver.wait_event(other.handle, event)
    copy(gpu, target, source, other)
    with pytest.raises(DriverCallError, match="UNMATCHED"):
        library.end_capture(other.handle)
    with pytest.raises(DriverCallError, match="UNJOINED"):
        library.end_capture(stream.handle)
    assert not driver.probe(stream.handle)[2]
    assert not driver.probe(other.handle)[2]


def is_capturing(gpu, stream):
    """Code and status."""
    status = c_int(UNWRITTEN)
    return gpu.driver._cuStreamIsCapturing(stream, byref(status)), status.value


@pytest.mark.parametrize(
    ("action", "code"),
    [  # as driver 580 answers
        ("copy in the legacy stream", 906),
        ("record in the legacy stream", 906),
        ("wait in the legacy stream", 906),
        ("wait in the legacy stream for captured work", 906),
        ("allocate", 900),
        ("synchronize", 900),
        ("query captured work", 907),
        ("wait for captured work", 907),
        ("wait in the captured stream for other work", 905),
        ("wait in the captured stream for another capture", 902),
    ],
)
def test_what_a_capture_does_not_allow_ends_it(gpu, action, code):
    library, driver = gpu.library, gpu.driver
    stream, other = gpu.stream(), gpu.stream(non_blocking=True)
    source, target = filled(gpu, 7), zeros(gpu)
    event, outside, fresh = (driver.create_event() for _ in range(3))
    if "another capture" in action:
        library.begin_capture(other.handle)
    driver.record_event(outside, other.handle)
    library.begin_capture(stream.handle)
    copy(gpu, target, source, stream)
    driver.record_event(event, stream.handle)
    assert is_capturing(gpu, stream.handle) == (0, 1)

    def code_of(function, *arguments):
        with pytest.raises(DriverCallError) as caught:
            function(*arguments)
        return caught.value.code

    actions = {
        "copy in the legacy stream": lambda: copy(gpu, target, source, 0),
        "record in the legacy stream": lambda: driver._cuEventRecord(fresh, 1),
        "wait in the legacy stream": lambda: driver._cuStreamWaitEvent(0, fresh, 0),
        "wait in the legacy stream for captured work": lambda: driver._cuStreamWaitEvent(
            0, event, 0
        ),
        "allocate": lambda: driver._cuMemHostAlloc(byref(c_void_p()), 8, 0),
        "synchronize": lambda: code_of(library.synchronize_stream, stream.handle),
        "query captured work": lambda: code_of(driver.event_done, event),
        "wait for captured work": lambda: code_of(driver.synchronize_event, event),
        "wait in the captured stream for other work": lambda: driver._cuStreamWaitEvent(
            stream.handle, outside, 0
        ),
        "wait in the captured stream for another capture": lambda: driver._cuStreamWaitEvent(
            stream.handle, outside, 0
        ),
    }
    assert actions[action]() == code
    assert is_capturing(gpu, stream.handle) == (0, 2)
    assert copy(gpu, target, source, stream) == 901
    with pytest.raises(DriverCallError, match=r"901.*CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        library.end_capture(stream.handle)
    assert is_capturing(gpu, stream.handle) == (0, 0)
    if "another capture" not in action:
        assert copy(gpu, target, source, stream) == copy(gpu, target, source, 0) == 0


def test_to_ask_about_the_legacy_stream_ends_no_capture(gpu):
    stream, apart = gpu.stream(), gpu.stream(non_blocking=True)
    source, target = filled(gpu, 7), zeros(gpu)
    assert is_capturing(gpu, 0) == (0, 0)
    gpu.library.begin_capture(apart.handle)  # which the legacy stream does not wait for
    assert is_capturing(gpu, 0) == is_capturing(gpu, 1) == (0, 0)
    assert copy(gpu, target, source, 0) == 0
    gpu.library.begin_capture(stream.handle)
    assert [is_capturing(gpu, handle)[0] for handle in (0, 1, 2)] == [906, 906, 0]
    with pytest.raises(DriverCallError, match=r"906.*cuStreamIsCapturing"):
        gpu.driver.probe(1)
    for each in (stream, apart):
        assert len(gpu.library.end_capture(each.handle).nodes) == 0
    assert is_capturing(gpu, 0) == (0, 0)


# -- kernels, faults, errors of the simulation itself -------------------------------------------


def launch(driver, kernel, blocks, threads, stream, *arguments):
    """Launch with as many of the seven parameters as the registered function takes."""
    driver.launch_kernel(kernel, blocks, threads, stream, (*arguments, *(0,) * 7)[:7], 0)


def test_kernel_launch(gpu):
    seen = []
    kernel = gpu.library.register_kernel(lambda *arguments: seen.append(arguments), parameters=3)
    stream = gpu.stream()
    launch(gpu.driver, kernel, 5, 128, stream.handle, 1, 2**63 - 1, 3)
    assert seen == []
    stream.synchronize()
    assert seen == [(5, 128, 1, 2**63 - 1, 3)]
    with pytest.raises(DriverCallError, match="INVALID_VALUE"):
        launch(gpu.driver, kernel, 5, 2048, stream.handle, 1, 2, 3)
    assert gpu.library.calls["cuLaunchKernel"] == 2


def test_kernel_that_touches_pageable_memory_fails(gpu):
    host, event = np.zeros(8, np.uint8), gpu.driver.create_event()
    check = gpu.library.memory.check_kernel_access
    kernel = gpu.library.register_kernel(lambda b, t, at: check(at, 8), parameters=1)
    pinned = gpu.pinned_array(8, np.uint8)
    launch(gpu.driver, kernel, 1, 1, 0, address(pinned))
    gpu.library.synchronize_stream(0)
    launch(gpu.driver, kernel, 1, 1, 0, address(host))
    gpu.driver.record_event(event, 0)
    with pytest.raises(DriverCallError, match="ILLEGAL_ADDRESS"):
        gpu.driver.synchronize_event(event)


def test_exception_in_a_callback_is_kept(capfd):
    def broken(*_):
        raise ZeroDivisionError("in a kernel")

    def simulation():
        with simulate() as gpu:
            gpu.driver.current_context()
            event = gpu.driver.create_event()
            launch(gpu.driver, gpu.library.register_kernel(broken), 1, 1, 0)
            gpu.driver.record_event(event, 0)
            gpu.driver.synchronize_event(event)

    with pytest.raises(RuntimeError) as caught:
        simulation()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert isinstance(caught.value.__context__, DriverCallError)
    assert caught.value.__context__.code == 999
    assert capfd.readouterr().err == ""


def test_faults(gpu):
    gpu.library.faults.add(Fault("cuMemHostAlloc", 2, call=2))
    assert gpu.driver.host_alloc(64)
    with pytest.raises(DriverCallError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        gpu.driver.host_alloc(64)


def test_library_is_collectable():
    library = SimulatedLibrary()
    driver = Driver(library)
    driver.current_context()
    devices_of(driver).host_buffers.take(100)
    context_of(driver).take_buffer(100)
    gone = weakref.ref(library)
    del library, driver
    gc.collect()
    assert gone() is None


def test_threads_share_one_driver(gpu):
    context = context_of(gpu.driver)
    errors = []

    def work(value):
        try:
            gpu.driver.current_context()
            stream = gpu.stream(non_blocking=True)
            source, target = filled(gpu, value), zeros(gpu)
            for _ in range(50):
                target.copy_to_device(0, stream)
                copy(gpu, target, source, stream)
                event = context.take_event()
                gpu.driver.record_event(event, stream.handle)
                gpu.driver.synchronize_event(event)
                context.give_event(event)
                assert (peek(target) == value).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# -- simulate() ---------------------------------------------------------------------------------


def test_simulations_nest_and_hold_in_all_threads():
    with simulate("12.4") as outer:
        assert current_driver() is outer.driver
        with simulate((13, 0)) as inner:
            seen = []
            thread = threading.Thread(target=lambda: seen.append(current_driver()))
            thread.start()
            thread.join()
            assert seen == [inner.driver]
        assert current_driver() is outer.driver
        assert str(outer.driver.version) == "12.4"
    with pytest.raises(ValueError, match="is not a driver version"), simulate("new"):
        pass


def test_leaving_does_what_is_left():
    with simulate() as gpu:
        gpu.driver.current_context()
        source, target = filled(gpu, 7), zeros(gpu)
        copy(gpu, target, source, gpu.stream(non_blocking=True))
    assert (peek(target) == 7).all()


def test_device_array_views_and_copies(gpu):
    host = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    array = gpu.device_array(host.shape, host.dtype)
    array.copy_to_device(host)
    np.testing.assert_array_equal(array.copy_to_host(), host)
    interface = array.__cuda_array_interface__
    assert interface["version"] == 3
    assert (interface["stream"], interface["strides"]) == (None, None)
    assert (interface["shape"], interface["typestr"]) == (host.shape, host.dtype.str)
    assert array.nbytes == host.nbytes
    view = array[1, ::2, -1:]
    assert view.__cuda_array_interface__["strides"] == view.strides == (32, 4)
    assert address(view) == address(array) + 15 * 4
    np.testing.assert_array_equal(view.copy_to_host(), host[1, ::2, -1:])
    assert array[1, 2, 3].shape == ()
    assert int(array[1, 2, 3].copy_to_host()) == 23
    assert array[None, ..., 0].shape == (1, 2, 3)
    for fancy in ([0], np.array([0]), True, (0, [1])):
        with pytest.raises(UnsupportedArrayError):
            array[fancy]
    with pytest.raises(ValueError, match="broadcast"):
        array.copy_to_device(np.zeros(5))
    empty = gpu.device_array((0, 3))
    assert address(empty) == 0
    assert empty.copy_to_host().shape == (0, 3)


def test_array_copies_with_a_stream_are_put_off(gpu):
    stream, array = gpu.stream(), zeros(gpu)
    source = np.full(64, 7, np.uint8)
    array.copy_to_device(source, stream)
    source[:] = 9
    assert not peek(array).any()
    back = array.copy_to_host(stream)
    stream.synchronize()
    assert (back == 7).all()
    assert stream.__cuda_stream__() == (0, stream.handle)


def test_array_copies_without_a_stream_do_what_they_depend_on_only(gpu):
    blocking, non_blocking = gpu.stream(), gpu.stream(non_blocking=True)
    one, two = zeros(gpu), zeros(gpu)
    one.copy_to_device(1, blocking)
    two.copy_to_device(2, non_blocking)
    assert (one.copy_to_host() == 1).all()
    assert (two.copy_to_host() == 0).all()


@pytest.mark.parametrize("kind", ["device_array", "pinned_array", "managed_array"])
def test_memory_lives_as_long_as_its_last_view(gpu, kind):
    array = getattr(gpu, kind)((4, 4), np.int16)
    start, info = address(array), gpu.driver.pointer_info
    view = array[1:][:, ::2]
    if isinstance(view, np.ndarray):
        view = view.view(np.uint16).T
    del array
    gc.collect()
    assert info(start).nbytes == 32
    del view
    gc.collect()
    assert info(start).nbytes == 0


def test_arrays_outlive_the_simulation():
    with simulate() as gpu:
        pinned, device = gpu.pinned_array(8, np.uint8), gpu.device_array(8, np.uint8)
        gone = weakref.ref(gpu.library)
    del gpu
    gc.collect()
    pinned[:] = 3
    device.copy_to_device(pinned)
    assert (device.copy_to_host() == 3).all()
    del pinned, device
    gc.collect()
    assert gone() is None


# -- what `Driver`, its entry points and what is kept for contexts promise -----------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "found"),
        ({"status": None}, "found"),
        ({"code": 500}, "code 500, an address, status found"),
        ({"address": 0}, "code 0, no address, status found"),
        ({"status": 1}, "code 0, an address, status symbol not found"),
        ({"status": 2, "code": 1}, "code 1, an address, status requested version not sufficient"),
        ({"status": 7}, "code 0, an address, status 7"),
        ({"status": None, "address": 0}, "code 0, no address"),
        (
            {"too_new_for": DriverVersion(12, 4)},
            "code 0, an address, status found, which is not used because this driver is only 12.4",
        ),
    ],
)
def test_answers_to_look_ups(changes, words):
    from numba_swap.driver.entry_points import LookupResult

    answer = LookupResult(
        **{"name": "cuX", "version": 1, "code": 0, "address": 1, "status": 0} | changes
    )
    assert answer.explanation == words
    assert answer.found is (words == "found")


class LookUp:
    """A look-up function that gives all, but for some names."""

    owner = "this driver"

    def __init__(self, encoded=12040, code=0, **answers):
        self.answers = answers

        def get_version(at):
            at[0] = encoded
            return code

        self.function = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(c_int))(get_version)

    def ask(self, name, version):
        from numba_swap.driver.entry_points import LookupResult

        address = ctypes.cast(self.function, c_void_p).value
        return LookupResult(name, version, 0, self.answers.get(name, address), 0)


def test_entry_points_that_the_driver_is_too_old_for():
    from numba_swap.driver.entry_points import EntryPoints
    from numba_swap.errors import EntryPointNotFoundError

    points = EntryPoints(LookUp())
    assert points.answers[BATCH].too_new_for == (12, 4)
    with pytest.raises(EntryPointNotFoundError, match=f"^this driver gave no {BATCH} at version"):
        points.function(BATCH)
    assert points.answers["cuInit"].found
    points.function("cuInit")
    assert EntryPoints(LookUp(abi.MEMCPY_BATCH_ASYNC.version)).answers[BATCH].found
    # Whoever needs the version reports that it cannot be had.
    assert EntryPoints(LookUp(code=3)).answers[BATCH].found
    assert not EntryPoints(LookUp(13000, **{BATCH: 0})).answers[BATCH].found
    with pytest.raises(EntryPointNotFoundError, match=r"^this driver gave no cuInit at version"):
        EntryPoints(LookUp(cuInit=0))


def test_look_ups_without_an_answer_give_no_address():
    library = SimulatedLibrary()
    answer = library.proc_address.ask("cuNoSuchThing", 12000)
    assert (answer.address, answer.status, answer.found) == (0, 1, False)
    old = SimulatedLibrary(DriverVersion(11, 4)).proc_address
    answer = old.ask("cuNoSuchThing", 11000)
    assert (answer.address, answer.status, answer.code) == (0, None, 500)
    assert answer.version == 11000


def test_driver_object_before_and_after_its_first_use():
    driver = Driver(SimulatedLibrary())
    assert driver.initialized is False
    assert driver.device_name(0)
    assert driver.initialized is True
    assert driver.library.calls["cuInit"] == 1
    assert Driver(SimulatedLibrary()).device_attribute(75, 0) >= 0
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = driver.no_such_thing
    driver.current_context()
    driver.current_context()
    driver.device_count()
    assert driver.library.calls["cuInit"] == 1
    assert driver.library.calls["cuCtxSetCurrent"] == 1
    assert driver.library.calls["cuDevicePrimaryCtxRetain"] == 1
    for _ in range(2):
        assert context_of(driver).device is devices_of(driver)[0]
        assert context_of(driver).device.ordinal == 0
    assert driver.library.calls["cuCtxGetDevice"] == 1


def test_missing_entry_points_are_told_wherever_they_are_used():
    from numba_swap.errors import EntryPointNotFoundError

    driver = Driver(SimulatedLibrary(DriverVersion(12, 4)))
    assert not driver.has(BATCH)
    for use in (lambda: driver.address(BATCH), lambda: driver._cuMemcpyBatchAsync):
        with pytest.raises(EntryPointNotFoundError, match=BATCH):
            use()


@pytest.mark.parametrize(
    ("function", "use"),
    [
        ("cuDeviceGetCount", lambda driver: driver.device_count()),
        ("cuDeviceGetName", lambda driver: driver.device_name(0)),
        ("cuDeviceGetAttribute", lambda driver: driver.device_attribute(75, 0)),
        ("cuCtxGetCurrent", lambda driver: driver.probe(0)),
        ("cuStreamGetCtx", lambda driver: driver.probe(driver.create_stream())),
        ("cuStreamIsCapturing", lambda driver: driver.probe(driver.create_stream())),
        ("cuPointerGetAttributes", lambda driver: driver.pointer_info(4096)),
        ("cuMemAlloc", lambda driver: driver.device_alloc(64)),
        ("cuMemFree", lambda driver: driver.device_free(driver.device_alloc(64))),
        ("cuMemGetInfo", lambda driver: driver.memory_info()),
        ("cuMemHostAlloc", lambda driver: driver.host_alloc(64)),
        ("cuMemFreeHost", lambda driver: driver.host_free(driver.host_alloc(64))),
        ("cuStreamCreate", lambda driver: driver.create_stream()),
        ("cuEventCreate", lambda driver: driver.create_event()),
        ("cuEventRecord", lambda driver: driver.record_event(driver.create_event(), 0)),
        ("cuStreamWaitEvent", lambda driver: driver.wait_event(0, driver.create_event())),
        ("cuEventQuery", lambda driver: driver.event_done(driver.create_event())),
        ("cuEventSynchronize", lambda driver: driver.synchronize_event(driver.create_event())),
        ("cuMemcpyAsync", lambda driver: driver.memcpy_async(4096, 4096, 8, 0)),
    ],
)
def test_every_refusal_names_its_function(gpu, function, use):
    gpu.library.faults.add(Fault(function, 1, times=None))
    with pytest.raises(DriverCallError, match=function) as error:
        use(gpu.driver)
    assert (error.value.function, error.value.code) == (function, 1)


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"])
def test_contexts_that_cannot_be_had(function):
    library = SimulatedLibrary()
    driver = Driver(library)
    library.faults.add(Fault(function, 1))
    with pytest.raises(DriverCallError) as error:
        driver.current_context()
    assert error.value.function == function
    current = driver.current_context()
    assert library.calls["cuDevicePrimaryCtxRetain"] == 2  # the one that failed too
    device = devices_of(driver)[0]
    assert device.primary_context == device.primary_context == current
    assert library.calls["cuDevicePrimaryCtxRetain"] == 3  # whoever keeps it retains it once
    library.faults.add(Fault("cuCtxGetDevice", 1, times=2))
    for ask in (driver.current_device, lambda: devices_of(driver).context(current)):
        with pytest.raises(DriverCallError) as error:
            ask()
        assert error.value.function == "cuCtxGetDevice"
    assert devices_of(driver).context(current).device is device


def test_unknown_codes_have_no_name(gpu):
    assert gpu.driver.error_name(1) == "CUDA_ERROR_INVALID_VALUE"
    assert gpu.driver.error_name(4711) == "unknown error 4711"


def test_default_streams():
    assert [Driver.is_default_stream(handle) for handle in (0, 1, 2, 3)] == [True] * 3 + [False]


def test_activating_puts_the_former_context_back():
    driver = Driver(SimulatedLibrary())
    driver.initialize()
    context = driver.primary_context(0)
    with driver.activate(context):
        assert driver.probe(0)[0] == context
    assert driver.probe(0)[0] == 0  # there was none
    assert driver.library.calls["cuCtxSetCurrent"] == 2
    driver.current_context()
    with pytest.raises(ZeroDivisionError), driver.activate(context):
        _ = 1 / 0
    assert driver.library.calls["cuCtxSetCurrent"] == 3  # it was current before
    driver._cuCtxSetCurrent(None)
    with pytest.raises(ZeroDivisionError), driver.activate(context):
        _ = 1 / 0
    assert driver.probe(0)[0] == 0


@pytest.mark.parametrize(
    ("nbytes", "size"), [(1, 4096), (4096, 4096), (4097, 8192), (8192, 8192), (8193, 16384)]
)
def test_sizes_of_buffers(gpu, nbytes, size):
    buffer = devices_of(gpu.driver).host_buffers.take(nbytes)
    assert 8 * len(buffer.words) == gpu.driver.pointer_info(buffer.address).nbytes == size
    device = context_of(gpu.driver).take_buffer(nbytes)
    assert gpu.driver.pointer_info(device.address).nbytes == size


def test_what_is_dropped_is_used_again(gpu):
    context, buffers = context_of(gpu.driver), devices_of(gpu.driver).host_buffers
    assert context.take_spare_event() == 0
    event = context.take_event()
    context.give_event(event)
    assert context.take_event() == event
    assert context.take_spare_event() == 0
    assert buffers.of_size(100).take_spare() is None
    assert buffers.of_size(100) is buffers.of_size(4096) is not buffers.of_size(4097)
    first = buffers.take(100)
    address_of_first = first.address
    assert buffers.take(100).address != address_of_first  # both are in use
    del first
    assert buffers.of_size(100).take_spare().address == address_of_first
    device = context.take_buffer(100)
    address_of_device = device.address
    del device
    assert context.take_buffer(100).address == address_of_device


def test_private_streams_of_each_key(gpu):
    context = context_of(gpu.driver)
    own = context.private_streams(2)
    assert context.private_streams(1) == own[:1]
    assert context.private_streams(2, key=()) == own
    (one,) = context.private_streams(1, "one")
    assert context.private_streams(1, "one") == [one]
    others = [one, *context.private_streams(1, "two"), *context.private_streams(2, ("one", "in"))]
    assert len({*own, *others}) == 6
    assert gpu.library.calls["cuStreamCreate"] == 6


def test_fences_that_fail_give_their_events_back(gpu):
    context, stream = context_of(gpu.driver), gpu.stream().handle
    side = context.private_streams(1)
    lost = []
    for function in ("cuEventRecord", "cuStreamWaitEvent"):
        gpu.library.faults.add(Fault(function, 1))
        with pytest.raises(DriverCallError, match=function):
            context.wait_for(stream, side[0])
        gpu.library.faults.add(Fault(function, 1))
        with (
            pytest.raises(DriverCallError, match=function),
            context.fork_join(stream, side, lambda: lost.append(1)),
        ):
            pytest.fail("the work must not begin")
    assert lost == []
    gpu.library.faults.add(Fault("cuStreamWaitEvent", 1, call=2))
    with (
        pytest.raises(DriverCallError, match="cuStreamWaitEvent"),
        context.fork_join(stream, side, lambda: lost.append(1)),
    ):
        pass
    gpu.library.faults.add(Fault("cuStreamWaitEvent", 1, call=2))
    with (  # the first error is the one to be told
        pytest.raises(ZeroDivisionError),
        context.fork_join(stream, side, lambda: lost.append(2)),
    ):
        _ = 1 / 0
    assert lost == [1, 2]
    assert gpu.library.calls["cuEventCreate"] == 1


def test_a_driver_that_does_not_tell_its_version_or_cannot_start():
    library = SimulatedLibrary()
    library.faults.add(Fault("cuDriverGetVersion", 1, times=None))
    with pytest.raises(DriverCallError) as error:
        Driver(library)
    assert error.value.function == "cuDriverGetVersion"
    library.faults.clear()
    driver = Driver(library)
    library.faults.add(Fault("cuInit", abi.ERROR_NOT_INITIALIZED))
    with pytest.raises(DriverUnavailableError, match="fork"):
        driver.initialize()
    assert not driver.initialized
    with driver.activate(0):  # there is none, and that is what is asked for
        assert driver.initialized
    for call in (1, 2):
        library.faults.add(Fault("cuCtxSetCurrent", 1, call=call))
        context = driver.primary_context(0)
        with pytest.raises(DriverCallError) as error, driver.activate(context):
            pass
        assert error.value.function == "cuCtxSetCurrent"


def test_owner_of_a_look_up_function():
    from numba_swap.driver.entry_points import ProcAddress

    address = ctypes.cast(LookUp().function, c_void_p).value
    assert ProcAddress(address, 1).owner == "the driver"
    assert ProcAddress(address, 2, "somebody").owner == "somebody"


def test_activating_between_two_devices():
    driver = Driver(SimulatedLibrary(devices=2))
    here = driver.current_context()
    there = driver.primary_context(1)
    with driver.activate(there):
        assert driver.probe(0)[0] == there
    assert driver.probe(0)[0] == here


def test_answers_of_the_driver_are_read_with_care(gpu):
    """What real drivers may do and the simulated one does not."""
    driver = gpu.driver

    def write_index(code, index):
        def batch(*arguments):
            arguments[7]._obj.value = index
            return code

        return batch

    for code, index, expected in ((0, 1, None), (1, 1, 1), (1, 2, None), (1, 9, None)):
        driver._cuMemcpyBatchAsync = write_index(code, index)
        assert driver.memcpy_batch_async(0, 0, 0, 2, 0) == (code, expected)
    driver._cuGetErrorName = lambda code, name: 0
    assert driver.error_name(5) == "unknown error 5"

    def write_name(name, length, device):
        name.value = b"GPU \xff"
        return 0

    driver._cuDeviceGetName = write_name
    assert driver.device_name(0) == "GPU \ufffd"
    flags = []
    driver._cuStreamWaitEvent = lambda stream, event, flag: flags.append(flag) or 0
    driver.wait_event(1, 2)
    assert flags == [0]
    driver._call_relaxed = lambda *_: abi.ERROR_NOT_READY
    assert driver.event_done(1) is False


def test_outcomes_of_a_launch(gpu):
    assert gpu.driver._launched(0, 0) is True
    assert gpu.driver._launched(-1, 5) is False  # nothing was done
    for step, function in ((1, "cuLaunchKernel"), (2, "cuEventRecord")):
        with pytest.raises(DriverCallError, match=function) as error:
            gpu.driver._launched(step, 1)
        assert error.value.function == function


def test_the_lowest_code_of_a_query_is_an_error_too(gpu):
    from numba_swap.copies.from_pointers import plan_pointers

    start = address(gpu.device_array(8))
    gpu.library.faults.add(Fault("cuPointerGetAttributes", 1))
    with pytest.raises(DriverCallError, match="cuPointerGetAttributes"):
        plan_pointers(gpu.driver, [start], [start], [8])


def test_events_belong_to_the_context_of_their_stream():
    driver = Driver(SimulatedLibrary(devices=2))
    here, other = context_of(driver), driver.primary_context(1)
    with driver.activate(other):
        there = context_of(driver)
    before, after = driver.library.create_stream(device=1), driver.create_stream()
    made, create = [], driver.create_event
    driver.create_event = lambda: made.append(driver.probe(0)[0]) or create()
    here.wait_for(before, after, there)
    assert made == [there.handle]
    assert driver.probe(0)[0] == here.handle
    assert here.take_spare_event() == 0
    assert there.take_spare_event() != 0
    here.wait_for(after, after)
    assert made == [there.handle, here.handle]


# -- functions launched as kernels ---------------------------------------------------------------


def test_functions_run_in_stream_order():
    with simulate() as gpu:
        array, others = gpu.device_array(4), [gpu.stream(non_blocking=True) for _ in range(2)]
        array.copy_to_device(np.zeros(4))
        ran = []

        def add(a, number):
            ran.append(number)
            a += number

        gpu.launch(add, array[1:], 1, stream=others[0])
        gpu.launch(add, array[2:], 10, stream=others[0].handle)
        gpu.launch(add, array, 100, stream=others[1])
        assert ran == []  # nothing needs it yet
        others[0].synchronize()
        assert ran == [1, 10]
        assert array.copy_to_host().tolist() == [0, 1, 11, 11]
        gpu.synchronize()
        assert ran == [1, 10, 100]
        gpu.launch(add, array, 1000)
        assert array.copy_to_host().tolist() == [1100, 1101, 1111, 1111]


def test_a_function_keeps_its_arrays():
    with simulate() as gpu:
        array, stream, seen = gpu.device_array(4), gpu.stream(non_blocking=True), []
        array.copy_to_device(np.ones(4))
        gpu.launch(lambda a: seen.append(a.sum()), array, stream=stream)
        del array
        gpu.device_array(4)
        stream.synchronize()
        assert seen == [4]


def test_a_launch_can_fail():
    with simulate() as gpu:
        gpu.library.faults.add(Fault("cuLaunchKernel", 2))
        with pytest.raises(DriverCallError, match="cuLaunchKernel"):
            gpu.launch(print)
        assert gpu.library.calls["cuLaunchKernel"] == 1


def test_what_a_function_raises_breaks_the_context():
    def run():
        with simulate() as gpu:
            gpu.launch(lambda: [].pop())
            for call in (gpu.synchronize, lambda: gpu.launch(print)):
                with pytest.raises(DriverCallError, match="719"):
                    call()

    with pytest.raises(RuntimeError, match="launched on it") as caught:
        run()
    assert isinstance(caught.value.__cause__, IndexError)


def test_device_arrays_have_a_length_and_other_shapes():
    with simulate() as gpu:
        array = gpu.device_array((2, 6))
        array.copy_to_device(np.arange(12).reshape(2, 6))
        assert len(array) == 2
        assert (
            array.reshape(3, 4).copy_to_host()[2, 0] == array.reshape((3, -1)).copy_to_host()[2, 0]
        )
        array.reshape(12)[3:].copy_to_device(np.zeros(9))  # a view
        assert array.copy_to_host().sum() == 3
        with pytest.raises(UnsupportedArrayError, match="contiguous"):
            array[:, 1:].reshape(10)


def test_device_memory_may_have_an_end():
    with simulate() as gpu:
        assert gpu.library.memory.free_device_bytes() is None
        gpu.library.memory.device_limit = 100
        array = gpu.device_array(10)
        assert gpu.library.memory.free_device_bytes() == 20
        with pytest.raises(DriverCallError, match="OUT_OF_MEMORY"):
            gpu.device_array(3)
        gpu.pinned_array(100)
        del array
        gpu.device_array(12)
