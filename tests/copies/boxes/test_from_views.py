"""Pairs of views: what is refused, what is left out, and what becomes of the rest."""

import numpy as np
import pytest

import numba_swap as ns


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


def planned(*pairs):
    return ns.plan_many(pairs).copies


def test_views_of_one_form_share_it(gpu):
    field = gpu.pinned_array((8, 9, 10), np.float32)
    pool = gpu.device_array((4, 2, 3, 4), np.float32)
    at = [(0, 0, 0), (5, 1, 2), (2, 6, 6), (3, 3, 3)]
    tiles = [field[z : z + 2, y : y + 3, x : x + 4] for z, y, x in at]
    copies = planned(*zip(tiles, [pool[i] for i in range(4)], strict=True))
    assert len(copies) == 4
    assert len(copies.boxes.forms) == 1
    assert not len(copies.boxes.which)
    assert copies.uniform == copies.nbytes // 4 == 2 * 3 * 4 * 4
    assert copies.src.tolist() == [tile.ctypes.data for tile in tiles]


def test_unlike_views_have_forms_of_their_own(gpu):
    field = gpu.pinned_array((8, 9, 10), np.float32)
    outs = [gpu.device_array(shape, np.float32) for shape in ((8, 9), (9, 10), (8, 10))]
    copies = planned((field[:, :, 0], outs[0]), (field[0], outs[1]), (field[:, 0], outs[2]))
    assert copies.sizes.tolist() == [8 * 9 * 4, 9 * 10 * 4, 8 * 10 * 4]
    assert copies.boxes.of_each("row_bytes", 3).tolist() == [4, 360, 40]
    rows, planes = (copies.boxes.of_each(name, 3) for name in ("rows", "planes"))
    assert (rows * planes).tolist() == [72, 1, 8]


def test_views_without_gaps_are_plain_copies(gpu):
    host, device = gpu.pinned_array((6, 8), np.int16), gpu.device_array((6, 8), np.int16)
    copies = planned((host[:3], device[3:]), (host[3], device[0]))
    assert copies.boxes is None
    assert not copies.ends.strided
    assert copies.sizes.tolist() == [48, 16]
    flipped = planned((host[::-1, ::-1], device[::-1, ::-1]))
    assert (flipped.boxes, flipped.uniform) == (None, 96)


def test_what_holds_nothing_or_stays_where_it_is_is_left_out(gpu):
    host, device = gpu.pinned_array((6, 8), np.int16), gpu.device_array((6, 8), np.int16)
    nothing = [
        (host[:0], device[:0]),
        (host[:, 3:3], device[:, 5:5]),
        (gpu.device_array((0, 3), np.int16), gpu.device_array((0, 3), np.int16)),
        (np.zeros(4, "V0"), np.zeros(4, "V0")),
        (host[1:3, ::2], host[1:3, ::2]),
        (host[4:5, 1:5], host[4, None, 1:5]),
    ]
    copies = planned(*nothing)
    assert len(copies) == copies.nbytes == 0
    copies = planned(*nothing, (host[1], device[1]), *nothing)
    assert copies.dst.tolist() == [device[1].__cuda_array_interface__["data"][0]]
    assert copies.origin.describe(0) == "pair 6"
    assert ns.plan_many(pair for pair in nothing).run().done()
    assert ns.plan_many([]).run(mode="batch").done()


def pools(gpu):
    field = gpu.pinned_array((8, 8), np.float32)
    return field, gpu.device_array((8, 8), np.float32)


def sliding(array):
    return np.lib.stride_tricks.as_strided(array, (4, 4), (4, 4))


REFUSED = {
    "shapes": (lambda f, d: (f[:4], d[:5]), r"src{} has the shape \(4, 8\), dst{} \(5, 8\)"),
    "axes": (lambda f, d: (f[0], d[:1]), r"src{} has the shape \(8,\), dst{} \(1, 8\)"),
    "itemsize": (
        lambda f, d: (f.view(np.int16)[:, :8], d),
        r"src{} has elements of 2 bytes, dst{} of 4: bytes are copied as they are",
    ),
    "read-only": (lambda f, d: (d, np.broadcast_to(np.float32(1), (8, 8))), "dst{} is read-only"),
    "overlap": (
        lambda f, d: (d[:4, :4], sliding(f)),
        r"elements of dst{} may share memory .*a broadcast or sliding view",
    ),
    "shifted": (
        lambda f, d: (f[:4], f[1:5]),
        "reads what it writes; the order of copies is not defined, nor within one: copy by way of",
    ),
    "transposed": (lambda f, d: (f, f.T), "reads what it writes"),
    "reversed": (lambda f, d: (f, f[::-1]), "reads what it writes"),
    "sliding source": (lambda f, d: (sliding(f), f[:4, :4]), "reads what it writes"),
    "broadcast source": (
        lambda f, d: (np.broadcast_to(f[0, 3:4], (4,)), f[0, :4]),
        "reads what it writes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("beside", [0, 2])
def test_pairs_that_do_not_go(gpu, case, beside):
    make, words = REFUSED[case]
    field, device = pools(gpu)
    pair = make(field, device)
    if not beside:
        with pytest.raises(ns.BadPlanError, match=words.format("", "")):
            ns.plan_copy(*pair)
        return
    others = [[gpu.pinned_array(4), gpu.device_array(4)] for _ in range(beside)]
    suffix = f" of pair {beside}"
    with pytest.raises(ns.BadPlanError, match=words.format(suffix, suffix)) as error:
        ns.plan_many([*others, pair])
    assert error.value.index == beside


def test_pairs_that_meet_each_other(gpu):
    field, device = pools(gpu)
    left, right = device[:, :4], device[:, 4:]
    assert len(planned((field[:, :4], left), (field[:, 4:], right))) == 2  # beside each other
    assert len(planned((field[:4], field[4:]), (field[:4], device[:4]))) == 2  # read twice
    with pytest.raises(ns.BadPlanError, match=r"^pair 2 writes what pair 0 writes too") as error:
        planned((field[:, :4], left), (field[:, 4:], right), (field[:, :2], device[:, 3:5]))
    assert error.value.index == 2
    with pytest.raises(ns.BadPlanError, match=r"^pair 0 reads what pair 1 writes.*stage") as error:
        planned((left, field[:, :4]), (field[:, 4:], device[:, 3:7]))
    assert error.value.index == 0
    # Two arrays of other strides, one within the other.
    odd = gpu.pinned_array((8, 8), np.float32).reshape(4, 16)
    whole = odd.reshape(8, 8)
    assert len(planned((device[:4, :2], odd[:, :2]), (device[:, 2:], whole[:, 2:]))) == 2
    with pytest.raises(ns.BadPlanError, match=r"^pair 1 writes what pair 0 writes too"):
        planned((device[:4, :2], odd[:, 8:10]), (device[:, :2], whole[:, 1:3]))


def test_a_pair_onto_itself_hinders_no_other(gpu):
    field, _ = pools(gpu)
    same = field[:4], field[:4]
    assert len(planned(same, (field[:4], field[4:]))) == 1
    assert len(planned((field[4:], field[:4]), same)) == 1


@pytest.mark.parametrize("pairs", [5, None, 1.5])
def test_what_is_no_list_of_pairs(gpu, pairs):
    with pytest.raises(
        ns.BadArgumentError, match=rf"pairs is a {type(pairs).__name__}: give a list"
    ):
        ns.plan_many(pairs)


@pytest.mark.parametrize("pair", [None, (), (1,), (1, 2, 3), "ab", {1, 2}])
def test_what_is_no_pair(gpu, pair):
    host, device = pools(gpu)
    with pytest.raises(
        ns.BadPlanError, match=rf"pairs\[1\] is a {type(pair).__name__}, no pair of a source"
    ) as error:
        ns.plan_many([(host, device), pair])
    assert error.value.index == 1
    with pytest.raises(ns.BadPlanError, match=r"pairs\[0\] is a ndarray.*: give a list of"):
        ns.plan_many((host, device))  # one pair that is in no list


def test_what_is_no_array(gpu):
    host, device = pools(gpu)
    for pair in ((host, None), ([1.0], device), (np.array([object()] * 2), device)):
        with pytest.raises(ns.UnsupportedArrayError, match="of pair 1"):
            ns.plan_many([(host, device), pair])


def test_a_view_over_two_registrations(gpu):
    memory = np.frombuffer(bytearray(4 * 4096), np.uint8)
    start = -memory.ctypes.data % 4096
    host = memory[start : start + 3 * 4096].reshape(3, 64, 64)
    device = gpu.device_array((3, 64, 64), np.uint8)
    gpu.library.register_host(host[0])
    gpu.library.register_host(host[1:])
    words = "pair 1, at .*, runs over .*, where one registration .* ends and another begins"
    with pytest.raises(ns.BadPlanError, match=words) as error:
        planned((host[0, :, :9], device[0, :, :9]), (host[:2, 7:9, :9], device[:2, 7:9, :9]))
    assert error.value.index == 1
    good = (host[0, :, :9], device[0, :, :9]), (host[1:, 7:9, :9], device[1:, 7:9, :9])
    assert len(planned(*good)) == 2
    for part in (host[0], host[1:]):
        gpu.library.unregister_host(part)
