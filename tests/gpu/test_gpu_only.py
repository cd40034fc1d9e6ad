"""What only a real GPU and its other users can show."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.driver.current import default_driver

pytestmark = pytest.mark.gpu
MODES = ["auto", "batch", "kernel", "loop"]
if "NUMBA_SWAP_DRIVER_VERSION" in os.environ:
    MODES.remove("batch")


def test_kind_of_memory_as_the_driver_tells():
    from numba import cuda

    from numba_swap.copies.inputs.arrays import view_array
    from numba_swap.device.memory import find_allocation

    driver = default_driver()
    driver.current_context()
    arrays = {
        "device": cuda.device_array(1000, np.uint8),
        "pinned": cuda.pinned_array(1000, np.uint8),
        "managed": cuda.managed_array(1000, np.uint8),
    }
    for kind, array in arrays.items():
        view = view_array(array, kind)
        allocation = find_allocation(driver, view.address + 10)
        assert allocation.kind == kind
        assert allocation.start <= view.address
        assert allocation.stop >= view.address + 1000
        assert allocation.device_offset == 0
        print(kind, allocation, view)
    mapped = cuda.mapped_array(1000, np.uint8)
    allocation = find_allocation(driver, view_array(mapped, "mapped").address)
    assert allocation.kind == "pinned"
    assert find_allocation(driver, np.zeros(1000).ctypes.data) is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("library", ["cupy", "torch"])
def test_arrays_of_other_libraries(library, mode, rng):
    content = rng.integers(0, 256, (10, 64), dtype=np.uint8)
    module = pytest.importorskip(library)
    if library == "torch":
        host = module.from_numpy(content).pin_memory()
        device = module.zeros((10, 64), dtype=module.uint8, device="cuda")
        half = (
            module.randn(10, 32).to(module.bfloat16).pin_memory(),
            module.zeros((10, 32), dtype=module.bfloat16, device="cuda"),
        )
        module.cuda.synchronize()
        ns.swap_blocks(*half, [[3, 4], [4, 3]], mode=mode).wait()
        assert module.equal(half[1][4].cpu(), half[0][3])
        assert module.equal(half[1][3].cpu(), half[0][4])
        assert half[1].abs().sum(dim=1).count_nonzero() == 2
    else:
        from numba import cuda

        host = cuda.pinned_array(content.shape, np.uint8)
        host[...] = content
        device = module.zeros((10, 64), dtype=module.uint8)
    transfer = ns.swap_blocks(host, device, [[9, 0], [1, 5]], mode=mode)
    transfer.wait()
    got = device.cpu().numpy() if library == "torch" else device.get()
    want = np.zeros_like(content)
    want[0], want[5] = content[9], content[1]
    assert np.array_equal(got, want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "bool", "complex64"])
def test_tensors_of_types_that_no_interface_knows(dtype, mode, rng):
    """The usual types of key-value caches among them, which `__cuda_array_interface__` lacks."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch, dtype):
        pytest.skip(f"this PyTorch has no {dtype}")
    content = torch.from_numpy(rng.integers(0, 2, (10, 64), dtype=np.uint8))
    host = content.pin_memory().view(getattr(torch, dtype))
    device = torch.zeros((10, 64), dtype=torch.uint8, device="cuda").view(host.dtype)
    torch.cuda.synchronize()
    ns.swap_blocks(host, device, [[9, 0], [1, 5]], mode=mode).wait()
    assert torch.equal(device.view(torch.uint8).cpu()[[0, 5]], content[[9, 1]])
    back = torch.zeros((10, 64), dtype=torch.uint8).pin_memory().view(host.dtype)
    ns.swap_blocks(device, back, [[5, 3]], mode=mode).wait()
    assert torch.equal(back.view(torch.uint8)[3], content[1])


@pytest.mark.parametrize("mode", MODES)
def test_between_the_users_own_kernels(mode):
    """A slow kernel writes the source, another reads the destination, all in the same stream."""
    from numba import cuda

    @cuda.jit
    def fill(array, value, spin):
        i = cuda.grid(1)
        x = 0.0
        for k in range(spin):
            x += (k * 0.5) % 3.0
        if i < array.size:
            array[i] = value if x >= 0.0 else 0.0

    @cuda.jit
    def add(array, out):
        i = cuda.grid(1)
        if i < array.size:
            out[i] = array[i] + 1.0

    n, blocks = 1 << 16, 64
    for stream in (cuda.default_stream(), cuda.stream(), None):
        launch = cuda.default_stream() if stream is None else stream
        src, dst, out = (cuda.device_array(n) for _ in range(3))
        for value in (1.0, 2.0, 3.0):
            fill[(n + 255) // 256, 256, launch](src, value, 20000)
            pairs = np.stack([np.arange(blocks), np.arange(blocks)[::-1]], axis=1)
            ns.swap_blocks(
                src.reshape(blocks, -1), dst.reshape(blocks, -1), pairs, stream=stream, mode=mode
            )
            add[(n + 255) // 256, 256, launch](dst, out)
            assert (out.copy_to_host(stream=launch) == value + 1.0).all()


@pytest.mark.parametrize("mode", ["kernel", "loop"])
def test_captured_swap_replays(mode):
    torch = pytest.importorskip("torch")
    src = torch.zeros((8, 1000), dtype=torch.uint8).pin_memory()
    dst = torch.zeros((8, 1000), dtype=torch.uint8, device="cuda")
    plan = ns.plan_blocks(src, dst, [[i, 7 - i] for i in range(8)])
    plan.run(mode=mode).wait()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        transfer = plan.run(stream=stream.cuda_stream, mode=mode)
        decision = plan.explain(stream=stream.cuda_stream)
    with pytest.raises(ns.CapturedTransferError):
        transfer.wait()
    assert decision.mode != ns.Mode.BATCH
    for _ in range(5):
        src.copy_(torch.randint(0, 256, src.shape, dtype=torch.uint8))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(dst.cpu(), src.flip(0))


def test_batch_refuses_a_captured_stream():
    torch = pytest.importorskip("torch")
    if "batch" not in MODES:
        pytest.skip("the driver is capped below 12.8")
    src = torch.zeros((8, 1000), dtype=torch.uint8).pin_memory()
    dst = torch.zeros((8, 1000), dtype=torch.uint8, device="cuda")
    plan = ns.plan_blocks(src, dst, [[0, 7], [2, 1]])
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        torch.zeros(1, device="cuda")
        with pytest.raises(ns.ModeUnavailableError, match="captured"):
            plan.run(stream=stream.cuda_stream, mode="batch")


@pytest.mark.parametrize("mode", MODES)
def test_wild_pointers_do_not_kill_the_process(mode):
    code = f"""
import numpy as np, numba_swap as ns
from numba import cuda
src = cuda.pinned_array(4096, np.uint8); dst = cuda.device_array(4096, np.uint8)
s, d = src.ctypes.data, dst.__cuda_array_interface__["data"][0]
for src_ptr, dst_ptr, size in ((0xdead0000, d, 64), (s, 0xdead0000, 64), (s + 4000, d, 1 << 26),
                               (s, d + 4000, 1 << 30), (0, d, 8)):
    try:
        ns.swap_blocks_batch([s, src_ptr], [d + 100, dst_ptr], [1, size], mode={mode!r})
    except ns.BadPlanError as error:
        print("refused:", error)
    else:
        raise SystemExit("not refused")
ns.swap_blocks_batch([s], [d], [4096], mode={mode!r}).wait()
print("alive")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("refused:") == 5
    assert "alive" in result.stdout


@pytest.mark.parametrize("mode", MODES)
def test_memory_registered_for_a_while(mode, rng):
    """`cuda.pinned` registers ordinary memory: a kernel reaches it inside, and not afterwards."""
    from numba import cuda

    src = rng.integers(0, 256, (64, 4096), dtype=np.uint8)
    dst = cuda.device_array(src.shape, np.uint8)
    mapping = 2 * np.stack([rng.permutation(32), rng.permutation(32)], axis=1)
    for _ in range(3):
        dst.copy_to_device(np.zeros_like(src))
        with cuda.pinned(src):
            transfer = ns.swap_blocks(src, dst, mapping, mode=mode)
            transfer.wait()
            assert transfer.decision.mode == ("kernel" if mode == "auto" else mode)
        assert np.array_equal(dst.copy_to_host()[mapping[:, 1]], src[mapping[:, 0]])
        decision = ns.plan_blocks(src, dst, mapping).explain()
        assert decision.mode != "kernel"


@pytest.mark.parametrize("mode", MODES)
def test_per_thread_default_stream_in_many_threads(mode, rng):
    """Handle 2 is another stream in every thread; eight of them swap at once."""
    from numba import cuda

    dst = cuda.device_array((256, 2048), np.uint8)
    errors = []

    def work(number):
        try:
            src = cuda.pinned_array((32, 2048), np.uint8)
            back = cuda.pinned_array((32, 2048), np.uint8)
            own = np.arange(32) + 32 * number
            for step in range(20):
                src[:] = np.random.default_rng([number, step]).integers(0, 256, src.shape)
                there = np.stack([np.random.default_rng(step).permutation(32), own], axis=1)
                ns.swap_blocks(src, dst, there, stream=2, mode=mode)
                ns.swap_blocks(dst, back, there[:, ::-1].copy(), stream=2, mode=mode).wait()
                assert np.array_equal(back, src)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_short_blocks_over_a_large_host_pool(rng):
    """Rows are grouped by regions of host memory there; every one must arrive all the same."""
    from numba import cuda

    blocks = (5 << 28) // 512  # 1.25 GiB
    host = cuda.pinned_array((blocks, 512), np.uint8)
    device = cuda.device_array((20000, 512), np.uint8)
    chosen = rng.permutation(blocks)[:10000]
    content = rng.integers(0, 256, (10000, 512), dtype=np.uint8)
    host[chosen] = content
    slots = rng.permutation(20000)[:10000]
    ns.swap_blocks(host, device, np.stack([chosen, slots], axis=1)).wait()
    assert np.array_equal(device.copy_to_host()[slots], content)
    host[chosen] = 0
    ns.swap_blocks(device, host, np.stack([slots, chosen], axis=1)).wait()
    assert np.array_equal(host[chosen], content)


def test_captured_swap_within_the_device_replays():
    torch = pytest.importorskip("torch")
    src = torch.zeros((16, 1000), dtype=torch.uint8, device="cuda")
    dst = torch.zeros_like(src)
    plan = ns.plan_blocks(src, dst, [[i, 15 - i] for i in range(16)])
    plan.run(mode="kernel").wait()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        plan.run(stream=stream.cuda_stream)
    del plan
    for _ in range(5):
        src.copy_(torch.randint(0, 256, src.shape, dtype=torch.uint8, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(dst, src.flip(0))
