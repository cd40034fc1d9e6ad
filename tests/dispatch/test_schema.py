"""The rules of files: each passes and fails, and its error tells the way to the value."""

import math

import pytest

from numba_swap.dispatch import schema
from numba_swap.dispatch.schema import SchemaError

WAY = ("a", 2)


def check(rule, value):
    """What a rule says of a value at a place: nothing, or the way from there, and what is wrong."""
    found = None
    try:
        rule(value, WAY)
    except SchemaError as error:
        found = error
    if found is None:
        return None
    assert isinstance(found, ValueError)
    assert found.steps[: len(WAY)] == WAY
    return found.steps[len(WAY) :], found.wrong, found.values


def wrong(words, *value):
    return (), words, value


@pytest.mark.parametrize(
    ("rule", "words", "good", "bad"),
    [
        (schema.is_text, "is no text", ["x", " "], ["", 1, None, ["x"], b"x"]),
        (schema.is_flag, "is neither true nor false", [True, False], [0, 1, None, "true"]),
        (
            schema.is_positive,
            "is no positive integer",
            [1, 10**30],
            [0, -1, 1.0, True, None, "1", math.nan],
        ),
        (
            schema.is_count,
            "is no integer from 0 up",
            [0, 1, 10**30],
            [-1, 0.0, False, True, None, "0", math.inf],
        ),
        (
            schema.number(),
            "is no number from 0 up",
            [0, 0.0, 1, 2.5, 1e300, 10**400],
            [-1, -1e-9, math.nan, math.inf, True, False, None, "1", [1]],
        ),
        (schema.number(below=8), "is no number from 0 up", [0, 7.999], [8, 8.0, 9, 10**400]),
        (schema.one_of("x", "y"), "is none of x, y", ["x", "y"], ["z", "", None, 1, ["x"]]),
        (schema.exactly("x 1"), "is not 'x 1'", ["x 1"], ["x 2", "", None, 1, ["x 1"]]),
        (schema.list_of(schema.is_anything), "is no list", [[], [1, None]], [(), {}, None, "x"]),
        (schema.map_of(schema.is_anything), "is no object", [{}, {"x": 1}], [[], None, "x", 1]),
        (schema.fields({}), "is no object", [{}], [[], None, "x"]),
        (schema.rule_of(bool, "is nothing"), "is nothing", [1, "x"], [0, "", None]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values(rule, words, good, bad):
    for value in good:
        assert check(rule, value) is None, value
    for value in bad:
        steps, said, (given,) = check(rule, value)
        assert (steps, said) == ((), words), value
        assert given is value


def test_anything_is_anything():
    for value in (None, 0, "", [], {}, math.nan):
        assert check(schema.is_anything, value) is None


def test_null_or_what_another_rule_says():
    rule = schema.or_null(schema.is_positive)
    assert check(rule, None) is None
    assert check(rule, 3) is None
    for value in (0, "", False):
        assert check(rule, value) == wrong("is no positive integer", value)


def test_lists_tell_the_place():
    rule = schema.list_of(schema.is_count)
    assert check(rule, [1, 2, 3]) is None
    assert check(rule, [1, 2, -3, -4]) == ((2,), "is no integer from 0 up", (-3,))
    nested = schema.list_of(rule)
    assert check(nested, [[], [1, "x"]]) == ((1, 1), "is no integer from 0 up", ("x",))
    assert check(nested, [[], 5]) == ((1,), "is no list", (5,))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_lists_of_one_length(length):
    rule = schema.list_of(schema.is_count, 2)
    assert check(rule, [1, 2]) is None
    # The length is told before what is wrong inside, and without the value: it may be long.
    assert check(rule, ["x"] * length) == ((), f"has {length} values, not 2", ())
    assert check(rule, [1, "x"]) == ((1,), "is no integer from 0 up", ("x",))


def test_objects_tell_the_name():
    rule = schema.map_of(schema.is_count)
    assert check(rule, {"any": 1, "name": 2}) is None
    assert check(rule, {"any": 1, "name": None}) == (("name",), "is no integer from 0 up", (None,))
    assert check(schema.map_of(rule), {"x": {"y": -1}}) == (
        ("x", "y"),
        "is no integer from 0 up",
        (-1,),
    )


def test_objects_of_known_names():
    rule = schema.map_of(schema.is_count, ("x", "y"))
    assert check(rule, {}) is None
    assert check(rule, {"y": 1}) is None
    assert check(rule, {"x": 1, "z": "?"}) == (("z",), "is not known to this schema", ())
    told = schema.map_of(schema.is_count, ("x",), "is no mode")
    assert check(told, {"z": 1}) == (("z",), "is no mode", ())
    assert check(schema.map_of(schema.is_count, ()), {"x": 1}) == (
        ("x",),
        "is not known to this schema",
        (),
    )


def test_objects_of_fields():
    inside = schema.fields({"n": schema.is_count})
    rule = schema.fields({"x": inside, "y": schema.is_text})
    good = {"x": {"n": 1}, "y": "here"}
    assert check(rule, good) is None
    assert check(rule, {"x": {"n": 1}}) == (("y",), "is missing", ())
    assert check(rule, {**good, "x": {}}) == (("x", "n"), "is missing", ())
    assert check(rule, {**good, "x": {"n": 0.5}}) == (
        ("x", "n"),
        "is no integer from 0 up",
        (0.5,),
    )
    assert check(rule, {**good, "x": None}) == (("x",), "is no object", (None,))
    assert check(rule, {**good, "z": 1}) == (("z",), "is not known to this schema", ())
    assert check(schema.fields({"x": inside}, more=True), {**good, "z": 1}) is None
    assert check(schema.fields({"x": inside}, more=True), {"z": 1}) == (("x",), "is missing", ())
    null = schema.fields({"x": schema.or_null(inside)})
    assert check(null, {"x": None}) is None
    assert check(null, {}) == (("x",), "is missing", ())  # null is said, not left out
