"""Which row of the user's input a copy, or a byte of it, comes from."""

import numpy as np
import pytest

from numba_swap.copies.provenance import BlockRows, Layers, Merged, Selected


class Noted:
    """Copies that say which of them, and which of their bytes, was asked about."""

    def __init__(self, name="copy"):
        self.name = name

    def describe(self, index, offset=None):
        return f"{self.name} {index}" + ("" if offset is None else f" at {offset}")

    def describe_merged(self, start, stop):
        return f"{self.name} {start} up to {stop}"

    def row(self, index, offset=0):
        return 100 * index + offset

    def rows(self, count):
        return range(count)


def addresses(*values):
    return np.array(values, dtype=np.uint64)


EQUAL = Merged(Noted(), np.array([0, 3, 4]), 10, 9)  # 0 to 2, 3, and 4 to 8
SIZES = Merged(Noted(), np.array([0, 3, 4]), addresses(5, 7, 3, 8, 1, 2, 3, 4, 5), 9)


@pytest.mark.parametrize("merged", [EQUAL, SIZES])
def test_what_went_into_a_copy(merged):
    assert [merged.describe(i) for i in range(3)] == ["copy 0 up to 3", "copy 3", "copy 4 up to 9"]
    assert [merged.row(i) for i in range(3)] == [0, 300, 400]
    assert [len(merged.rows(count)) for count in range(4)] == [0, 3, 4, 9]
    # Of several that became one once more.
    assert merged.describe_merged(0, 2) == "copy 0 up to 4"
    assert merged.describe_merged(1, 3) == "copy 3 up to 9"
    again = Merged(merged, np.array([0, 1]), addresses(15, 8, 15), 3)
    assert [again.describe(i) for i in range(2)] == ["copy 0 up to 3", "copy 3 up to 9"]
    assert again.describe_merged(0, 2) == "copy 0 up to 9"


def test_which_copy_a_byte_is_of():
    assert [EQUAL.row(0, offset) for offset in (0, 9, 10, 29)] == [0, 9, 100, 209]
    assert [EQUAL.row(2, offset) for offset in (0, 49)] == [400, 809]
    assert EQUAL.describe(0, 10) == "copy 1 at 0"
    assert [SIZES.row(0, offset) for offset in (0, 4, 5, 11, 12, 14)] == [0, 4, 100, 106, 200, 202]
    assert [SIZES.row(2, offset) for offset in (0, 1, 2, 3, 14)] == [400, 500, 501, 600, 804]
    assert SIZES.describe(1, 7) == "copy 3 at 7"


def test_copies_of_layers_are_told_by_their_layer():
    layers = Layers([Noted("first"), Noted("second"), Noted("third")], np.array([3, 3, 5]))
    told = ["first 0", "first 1", "first 2", "third 0", "third 1"]
    assert [layers.describe(i) for i in range(5)] == told
    assert layers.describe(4, 6) == "third 1 at 6"
    assert [layers.row(i, 6) for i in range(5)] == [6, 106, 206, 6, 106]
    assert layers.describe_merged(1, 3) == "first 1, merged with the 1 copy after it"
    assert layers.describe_merged(0, 5) == "first 0, merged with the 4 copies after it"
    assert [layers.rows(count) for count in range(6)] == [
        (),
        (0,),
        (0, 1),
        (0, 1, 2),
        (0, 1, 2),
        (0, 1, 2),
    ]


def test_some_of_the_copies_are_told_as_all_are():
    some = Selected(Noted(), np.array([4, 1, 7]), False)
    assert [some.describe(i) for i in range(3)] == ["copy 4", "copy 1", "copy 7"]
    assert some.describe(2, 5) == "copy 7 at 5"
    assert [some.row(i, 5) for i in range(3)] == [405, 105, 705]
    assert some.describe_merged(0, 3) == "copy 4, merged with the 2 copies after it"
    assert [len(some.rows(count)) for count in (0, 1, 3)] == [0, 5, 8]
    beside = some._replace(others_run=True)
    assert [beside.rows(count) for count in (0, 3)] == [None, None]


@pytest.mark.parametrize("column", [None, 0, 1])
def test_rows_in_another_order_are_told_while_the_mapping_is_what_it_was(column):
    mapping = np.array([[7, 2], [5, 0], [6, 1]])
    order = [1, 2, 0]  # by their place in one of the arrays
    dst, src = (addresses(*(1000 * (side + 1) + 10 * mapping[order, side])) for side in (1, 0))
    offsets = np.array([0])
    rows = BlockRows((dst, src), (2000, 1000), (10, 10), (offsets, offsets), mapping)
    if column is None:
        assert [rows.row(i) for i in range(3)] == order
        assert [rows.rows(count) for count in range(4)] == [(), (1,), (1, 2), (0, 1, 2)]
        assert rows.describe(0) == "block_mapping[1] (source block 5 to destination block 0)"
        assert rows.describe_merged(0, 2).endswith("merged with the rows up to block_mapping[2])")
        return
    mapping[0, column] += 20  # which changes no order
    assert [rows.row(i) for i in range(3)] == [None] * 3
    assert rows.rows(2) is None
    told = "a row of block_mapping (source block 5 to destination block 0)"
    assert rows.describe(0) == rows.describe_merged(0, 2) == told
