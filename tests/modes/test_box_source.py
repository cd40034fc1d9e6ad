"""The kernel of boxes without a GPU: its PTX, and its parts in Python, word by word."""

import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from numba_swap.modes.kernel import box_source, box_ways
from numba_swap.modes.kernel.access import host_memory


@pytest.fixture(scope="module")
def ptx():
    from numba import cuda

    from numba_swap.modes.kernel.copy_source import KERNEL_SIGNATURE

    text, _ = cuda.compile_ptx(box_source.box_kernel, KERNEL_SIGNATURE, cc=(9, 0))
    return text


def test_ptx_has_128_bit_accesses_with_four_in_flight(ptx):
    loads = [m.start() for m in re.finditer(r"ld\.global\.v2\.u64", ptx)]
    stores = [m.start() for m in re.finditer(r"st\.global\.v2\.u64", ptx)]
    assert len(loads) >= 5
    assert len(stores) >= 5
    assert sum(load < stores[0] for load in loads) >= 4


@pytest.mark.parametrize("width", ["u8", "u16", "u32", "u64"])
def test_ptx_has_accesses_of_every_width(ptx, width):
    assert len(re.findall(rf"ld\.global\.{width}", ptx)) >= 4
    assert len(re.findall(rf"st\.global\.{width}", ptx)) >= 4


def test_ptx_stays_in_integers_registers_and_global_memory(ptx):
    assert not re.search(r"\.f64|\.f32", ptx)
    assert not re.search(r"(ld|st)\.local|\.local ", ptx)
    assert not re.search(r"\bld\.[usb]\d|\bst\.[usb]\d", ptx)  # generic: the address space was lost
    assert not re.search(r"\bcall", ptx)  # all of it is inlined


class Memory:
    """A few bytes, whose accesses are noted."""

    def __init__(self, content):
        self.bytes = np.frombuffer(bytearray(len(content) + 64), np.uint8)
        self.base = -self.bytes.ctypes.data % 16
        self.bytes[self.base : self.base + len(content)] = content
        self.address = self.bytes.ctypes.data + self.base
        self.seen = []
        plain = host_memory()
        self.access = types.SimpleNamespace(
            **{name: self._noting(name, function) for name, function in vars(plain).items()}
        )

    def _noting(self, name, function):
        width = int(re.sub("[a-z]", "", name))

        def note(address, *value):
            assert address % width == 0
            self.seen.append((address - self.address, width))
            return function(address, *value)

        return note

    def content(self, first, last):
        return self.bytes[self.base + first : self.base + last].tolist()


UNITS = [
    (unit, low, high)
    for unit in (1, 2, 4, 8)
    for low in range(0, 16, unit)
    for high in range(low, 17, unit)
]


@pytest.mark.parametrize("over", [0, 1])
def test_part_of_a_word_is_moved_and_no_more(over):
    """Every window of a word, in every unit, to every place that the unit allows."""
    for unit, low, high in UNITS:
        memory = Memory(range(100, 132))
        load, store = box_ways._part_of_word(memory.access)
        first, second = load(memory.address + 16, low, high, unit, over)
        read = {i for at, width in memory.seen for i in range(at - 16, at - 16 + width)}
        if over and low < high:
            assert read == {*range(16)}
        else:
            assert read == {*range(low, high)}
        for shift in range(0, 16, unit):
            target = Memory([7] * 64)
            _, store = box_ways._part_of_word(target.access)
            store(target.address + 16 + shift, first, second, low, high, unit)
            wrote = sorted(i for at, width in target.seen for i in range(at, at + width))
            assert wrote == [*range(16 + shift + low, 16 + shift + high)]
            want = [7] * 64
            want[16 + shift + low : 16 + shift + high] = range(116 + low, 116 + high)
            assert target.content(0, 64) == want


def test_a_whole_word_takes_one_access():
    memory = Memory(range(32))
    load, store = box_ways._part_of_word(memory.access)
    store(memory.address, *load(memory.address + 16, 0, 16, 1, 0), 0, 16, 1)
    assert memory.seen == [(16, 16), (0, 16)]
    assert memory.content(0, 16) == [*range(16, 32)]


@pytest.mark.parametrize("unit", [1, 2, 4, 8])
def test_one_unit_is_moved_if_it_is_the_rows(unit):
    """Bytes with the highest bit set, too: nothing is taken for a sign."""
    for at in range(-2 * unit, 24, unit):
        memory = Memory([255 - i for i in range(48)])
        get, put = box_ways._one_unit(memory.access)
        value = get(memory.address, at, 16, unit)
        put(memory.address + 24, value, at, 16, unit)
        if 0 <= at < 16:
            assert memory.seen == [(at, unit), (24 + at, unit)]
            assert memory.content(24 + at, 24 + at + unit) == memory.content(at, at + unit)
        else:
            assert memory.seen == []


@pytest.mark.parametrize("by", range(1, 16))
def test_words_are_put_together_from_two(rng, by):
    """Of 64-bit words with a sign, as the GPU has them."""
    for content in (rng.integers(0, 256, 32, dtype=np.uint8), np.full(32, 255, np.uint8)):
        words = content.view(np.int64).tolist()
        shifted = [word & (2**64 - 1) for word in box_ways._shift(*words, by)]
        assert np.array(shifted, np.uint64).tobytes() == content[by : by + 16].tobytes()


def test_going_on_by_a_number_of_words():
    for row_words in (1, 3, 5):
        for rows in (1, 2, 4):
            for tile in (1, 2, 7, 32):
                plane_words = rows * row_words
                rest = tile % plane_words
                step = rest % row_words, rest // row_words, tile // plane_words
                for word in range(3 * plane_words):
                    place = word % row_words, word // row_words % rows, word // plane_words
                    after = word + tile
                    assert box_ways._advance(*place, row_words, rows, step) == (
                        after % row_words,
                        after // row_words % rows,
                        after // plane_words,
                    )


@pytest.mark.parametrize(
    ("at", "left", "window"),
    [
        (0, 1, (0, 16)),
        (-5, 1, (5, 16)),
        (-15, 1, (15, 16)),
        (16, 1, (0, 4)),
        (-12, 1, (12, 16)),
        (20, 1, (0, 0)),
        (32, 1, (0, 0)),
        (0, 0, (0, 0)),
        (-5, 0, (5, 5)),
        (0, -3, (0, 0)),
    ],
)
def test_which_bytes_of_a_word_are_the_rows(at, left, window):
    low, high = box_ways._window(at, 20, left)
    assert (low, high) == window or low == high == max(low, window[0])
    assert (low == high) == (window[0] == window[1])
    short = box_ways._window(-5, 3, 1)
    assert short == (5, 8)


def test_source_runs_under_numbas_simulator_in_its_own_process():
    """With NUMBA_ENABLE_CUDASIM=1, which Numba reads when it is imported."""
    code = """
import numpy as np, numba_swap as ns
from numba.core import config
assert config.ENABLE_CUDASIM
rng = np.random.default_rng(3)
with ns.simulate(driver_version=(12, 4)) as gpu:
    src, dst = gpu.pinned_array((9, 17), np.uint8), gpu.device_array((7, 11), np.uint8)
    src[:] = rng.integers(0, 256, src.shape)
    transfer = ns.copy(src[1:8, 3:14], dst, mode="kernel")
    transfer.wait()
    assert transfer.decision.mode == "kernel", transfer.decision
    assert np.array_equal(dst.copy_to_host(), src[1:8, 3:14])
print("right")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )
    assert result.stdout == "right\n", result.stderr
