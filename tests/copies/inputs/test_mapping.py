"""Block ids, addresses and sizes in whatever form: what is none is an error of this package."""

import numpy as np
import pytest

import numba_swap as ns

VERBS = {
    "swap": lambda host, device, rows: ns.swap_blocks(host, device, rows),
    "plan": lambda host, device, rows: ns.plan_blocks(host, device, rows),
    "page_out": lambda host, device, rows: ns.exchange(device, host, rows, [[0, 1]]),
    "page_in": lambda host, device, rows: ns.exchange(device, host, [[0, 1]], rows),
}


@pytest.fixture(params=VERBS)
def refused(request):
    """Hand over rows, which must be refused; return what is said."""
    with ns.simulate() as gpu:
        pools = gpu.pinned_array((8, 16), np.uint8), gpu.device_array((8, 16), np.uint8)
        name = request.param if request.param.startswith("page") else "block_mapping"

        def call(rows):
            for _ in range(2):  # the second time, the arrays are known
                with pytest.raises(ns.BadPlanError, match=name) as caught:
                    VERBS[request.param](*pools, rows)
                VERBS[request.param](*pools, np.array([[2, 3]]))
            assert len(str(caught.value)) < 500
            return str(caught.value)

        yield call


@pytest.mark.parametrize("dtype", [None, np.int64, np.int32, np.float64, object])
@pytest.mark.parametrize("shape", [(1, 0), (2, 0), (3, 0), (0, 3), (0, 1), (0, 2, 2), (2, 2, 0)])
def test_empty_rows_of_a_wrong_shape(refused, shape, dtype):
    rows = np.zeros(shape, dtype)
    message = refused(rows if dtype else rows.tolist() or rows)
    assert f"shape (n, 2), not the shape {shape}" in message


@pytest.mark.parametrize("dtype", [np.int64, np.float64, object])
@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_no_rows_at_all(shape, dtype):
    with ns.simulate() as gpu:
        pools = gpu.pinned_array((8, 16), np.uint8), gpu.device_array((8, 16), np.uint8)
        assert ns.swap_blocks(*pools, np.zeros(shape, dtype)).nbytes == 0


def test_columns_instead_of_rows(refused):
    assert "not the shape (2, 3): give its transpose" in refused([[0, 1, 2], [3, 4, 5]])
    assert "transpose" not in refused([[0, 1, 2]])


class Raising:
    """Its conversion to an array fails, as those of tensors with gradients do."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *args, **kwargs):
        raise self.error

    def __len__(self):
        return 2


class Refusing:
    """Has a CUDA interface and refuses it, as arrays of JAX in host memory do."""

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("only defined for GPU buffers")


class Readable(Refusing):
    def __array__(self, dtype=None, copy=None):
        return np.array([[1, 2]])


@pytest.mark.parametrize(
    "error", [RuntimeError("call detach"), TypeError("call cpu"), OverflowError("too large")]
)
def test_what_cannot_be_read(refused, error):
    assert f"no array of integers: {type(error).__name__}: {error}" in refused(Raising(error))


def test_what_refuses_its_interface_is_read_by_its_values(refused):
    assert "not a Refusing" in refused(Refusing())
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((8, 16), np.uint8), gpu.device_array((8, 16), np.uint8)
        host[1] = 7
        ns.swap_blocks(host, device, Readable()).wait()
        assert (device.copy_to_host()[2] == 7).all()


FIELDS = np.zeros((1, 2), [(f"field {i}", int) for i in range(500)])


@pytest.mark.parametrize(
    "rows",
    [
        [[10**4000, 1]],
        [["x" * 5000, 1]],
        [[np.zeros((40, 40)), 1]],
        np.zeros((1, 2), "V4000"),
        FIELDS,
    ],
    ids=["digits", "letters", "array", "bytes", "fields"],
)
def test_what_is_said_is_short(refused, rows):
    refused(np.array(rows, dtype=object) if isinstance(rows, list) else rows)


def test_pointers_that_refuse():
    with ns.simulate():
        for columns in ((Raising(RuntimeError("no")), [1], [1]), ([1], [1], [[]])):
            with pytest.raises(ns.BadPlanError, match=r"src_ptrs|sizes"):
                ns.swap_blocks_batch(*columns)
