"""The rules of files: each passes and fails, and its error tells the way to the value."""

import json
import math
import os
import socket
import sys

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


# -- files that are read, whatever they are ------------------------------------------------------


def make_broken(kind, path):
    """Put something that is no JSON file of ours at a path."""
    contents = {
        "nested lists": b"[" * 100_000,
        "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "closed lists": b"[" * 33 + b"]" * 33,
        "open text of quotes": b'"' + b'\\"' * 100_000,
        "text that hides brackets": b'["\\\\", ' + b"[" * 100_000 + b'"]',
        "backslash at the end": b'["a\\',
        "huge": b" " * ((1 << 20) + 1),
        "long number": b"[" + b"7" * 1001 + b"]",
        "no UTF-8": b'["\xff"]',
        "UTF-16": '["a"]'.encode("utf-16"),
        "empty": b"",
        "NULs": b"\0" * 100,
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to({"endless": "/dev/zero", "nothing": "not there", "itself": path}[kind])


BROKEN = {
    "nested lists": "nested more than 32 deep",
    "nested objects": "nested more than 32 deep",
    "closed lists": "nested more than 32 deep",
    "open text of quotes": "Unterminated string",
    "text that hides brackets": "nested more than 32 deep",
    "backslash at the end": "Unterminated string",
    "huge": "larger than 1 MiB",
    "long number": "a number has more than 1000 digits",
    "no UTF-8": "it is not UTF-8: invalid start byte at byte 2",
    "UTF-16": "it is not UTF-8",
    "empty": "Expecting value",
    "NULs": "Expecting value",
    "folder": "Is a directory",
    "pipe": "it is no file",
    "socket": "No such device",
    "endless": "it is no file",
    "nothing": "No such file",
    "itself": "Too many levels of symbolic links",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_lies_there_is_one_kind_of_error(kind, tmp_path):
    make_broken(kind, tmp_path / "x")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # a program may do so: the stack would overflow
    try:
        with pytest.raises(ValueError, match=BROKEN[kind]) as error:
            schema.read_json(tmp_path / "x")
    finally:
        sys.setrecursionlimit(limit)
    assert type(error.value) in (ValueError, json.JSONDecodeError)


def test_files_that_are_right_are_read(tmp_path):
    path = tmp_path / "x"
    for value in ([], {"a": ["[" * 99, '"', "\\", "é", "7" * 5000]}, 10**999, "[" * 10_000):
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            path.write_bytes(text.encode())
            assert schema.read_json(path) == value
            path.write_bytes(b"\xef\xbb\xbf" + text.encode())
            assert schema.read_json(path) == value
    path.write_text("[" * 32 + "]" * 32)
    assert schema.read_json(path)
    path.write_bytes(b"1" + b" " * ((1 << 20) - 1))
    assert schema.read_json(path) == 1
    (tmp_path / "link").symlink_to(path)
    assert schema.read_json(tmp_path / "link") == 1
    path.write_text("[NaN, 1e999]")
    assert math.isnan(schema.read_json(path)[0])
    assert schema.read_json(path, parse_constant=str.lower) == ["nan", math.inf]


def test_quotes_in_messages_are_one_line_of_moderate_length():
    assert schema.one_line("a é 日") == "a é 日"
    assert schema.one_line("a\nb\x1b[2J\ud800\x7f") == "a\\nb\\x1b[2J\\ud800\\x7f"
    assert schema.one_line("x" * 300) == "x" * 300
    assert schema.one_line("x" * 301) == "x" * 300 + " ..."
    assert schema.name_of("/a" * 2000) == "/a" * 2000
