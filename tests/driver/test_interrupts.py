"""Ctrl-C inside a call of the simulated driver is the caller's `KeyboardInterrupt`, and no more."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import numba_swap as ns

ROWS = np.array([[i, 63 - i] for i in range(64)])
MODES = ["loop", "batch", "kernel"]


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


@pytest.fixture
def swap(gpu):
    """Enqueue a swap of 64 blocks, with other contents each time; return it and what checks it."""
    host, device = gpu.pinned_array((64, 64), np.uint8), gpu.device_array((64, 64), np.uint8)
    stream = gpu.stream()

    def enqueue(mode, before=None):
        host[:] = np.arange(64)[:, None] + host[0, 0] + 1
        if before is not None:
            gpu.library.enqueue(stream.handle, before)
        transfer = ns.swap_blocks(host, device, ROWS, stream=stream, mode=mode)

        def check():
            transfer.wait()
            assert transfer.done()
            assert (device.copy_to_host()[ROWS[:, 1]] == host[ROWS[:, 0]]).all()

        return transfer, check

    host[:] = 0
    return enqueue


def press_ctrl_c_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_while_work_runs(swap, mode):
    """What runs is done to its end, as on a GPU; the rest is done when it is waited for again."""
    ran = []

    def work():
        press_ctrl_c_after(0.02)
        time.sleep(0.1)
        ran.append("to the end")

    transfer, check = swap(mode, before=work)
    with pytest.raises(KeyboardInterrupt):
        transfer.wait()
    assert ran == ["to the end"]
    check()
    assert ran == ["to the end"]


@pytest.mark.parametrize("mode", MODES)
def test_work_that_raises_it_is_still_to_be_done(swap, mode):
    tries = []

    def work():
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt

    transfer, check = swap(mode, before=work)
    with pytest.raises(KeyboardInterrupt):
        transfer.wait()
    check()
    assert len(tries) == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "function",
    [
        "cuCtxGetCurrent",
        "cuStreamIsCapturing",
        "cuPointerGetAttributes",
        "cuThreadExchangeStreamCaptureMode",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuMemcpyAsync",
        "cuMemcpyBatchAsync",
        "cuLaunchKernel",
    ],
)
def test_ctrl_c_in_any_call(gpu, swap, mode, function):
    swap(mode)[1]()
    times = []

    def interrupt(*arguments):
        times.append(1)
        if len(times) == 1:
            raise KeyboardInterrupt

    gpu.library.faults.watch(function, interrupt)
    try:
        swap(mode)[0].wait()
    except KeyboardInterrupt:
        assert times
    else:
        assert not times  # not called in this mode
    swap(mode)[1]()
    assert gpu.library.internal_error is None


def test_one_that_nobody_has_raised_comes_on_leaving():
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ns.simulate() as other:  # noqa: PT012
        other.library.faults.watch("cuThreadExchangeStreamCaptureMode", interrupt)
        with other.driver.relaxed_capture():  # its code is not looked at
            pass


def test_a_handler_of_the_users_own_is_called_and_kept(swap):
    heard = []
    former = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        handler = signal.getsignal(signal.SIGINT)
        transfer, check = swap("loop", before=lambda: os.kill(os.getpid(), signal.SIGINT))
        transfer.wait()
        assert heard == [signal.SIGINT]
        check()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_ctrl_c_is_not_for_other_threads(swap):
    """The main thread gets it, wherever it is; a thread in the midst of work does not."""
    transfer, check = swap("loop", before=lambda: time.sleep(0.1))
    waiting = threading.Thread(target=transfer.wait)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        press_ctrl_c_after(0.02)
        time.sleep(1)
    waiting.join()
    check()


@pytest.fixture
def interrupted():
    """Run something under a hail of signals; each time one of them interrupts it, at most once."""
    armed, heard, over = [], [], threading.Event()

    def handler(number, frame):
        if armed:
            armed.clear()
            heard.append(number)
            raise KeyboardInterrupt

    def press():
        while not over.wait(0.002):
            os.kill(os.getpid(), signal.SIGINT)

    def run(action):
        try:
            armed.append(True)
            result = action()
            armed.clear()
        except KeyboardInterrupt:
            return None
        return result

    former = signal.signal(signal.SIGINT, handler)
    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        yield run
    finally:
        over.set()
        pressing.join()
        signal.signal(signal.SIGINT, former)
    assert heard


def until_done(action):
    """Do something again if it is interrupted: by what came in a call whose code nobody reads."""
    while True:
        try:
            return action()
        except KeyboardInterrupt:
            pass


@pytest.mark.parametrize("mode", ["loop", "batch"])
def test_ctrl_c_at_any_line(interrupted, mode, monkeypatch):
    """Also before the first one of a function that C has called."""
    unheard = []
    monkeypatch.setattr("sys.unraisablehook", unheard.append)
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((64, 64), np.uint8), gpu.device_array((64, 64), np.uint8)
        ns.swap_blocks(host, device, ROWS, mode=mode).wait()
        for value in range(200):
            host[:] = value
            transfer = interrupted(lambda: ns.swap_blocks(host, device, ROWS, mode=mode))
            if transfer is not None:
                interrupted(transfer.wait)
                until_done(transfer.wait)
                assert (until_done(device.copy_to_host) == value).all()
        until_done(gpu.library.raise_interrupt)
    # (In a finalizer it is Python that loses one.)
    assert not [lost.err_msg for lost in unheard if "ctypes" in (lost.err_msg or "")]
