"""How a JSON file is read, whatever lies there, and what it must look like.

What it must look like are rules that raise, made of smaller ones. A rule is a function of a value
and of the way to it: names in objects, places in lists.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeAlias

Steps: TypeAlias = tuple[str | int, ...]
Rule: TypeAlias = Callable[[Any, Steps], None]


class SchemaError(ValueError):
    """A value breaks a rule.

    Attributes
    ----------
    steps : tuple of (str or int)
        The way to it.
    wrong : str
        What is wrong, to stand behind the way: ``"is missing"``, ``"is no text"``.
    values : tuple
        The value itself, if it is what is wrong; empty if its name or its absence is.
    """

    def __init__(self, steps: Steps, wrong: str, *values: Any) -> None:
        super().__init__(steps, wrong, *values)
        self.steps, self.wrong, self.values = steps, wrong, values


_MIB = 1 << 20
_MOST_NESTED = 32
# Each match is the only one that can be tried, so that no text takes long; the last may be open.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKET = re.compile(r"[^][{}]+")


def one_line(text: object, most: int = 300) -> str:
    """Return text for a message: one line of moderate length, whatever was quoted in it."""
    whole = str(text)
    shown = whole if len(whole) <= most else f"{whole[:most]} ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def name_of(path: Path | str) -> str:
    """Return a path for a message, whatever its name is."""
    return one_line(path, most=4096)


def read_file(path: Path, most_bytes: int) -> bytes:
    """Read a file that may be anything: a folder, a pipe that nobody writes, an endless device.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, is no file, or is larger.
    """
    flags = getattr(os, "O_NONBLOCK", 0)  # a pipe would block
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        kind = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(kind):
            raise ValueError("it is no file")
        content = file.read(most_bytes + 1) or b""
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes // _MIB} MiB")
    return content


def read_json(
    path: Path,
    most_bytes: int = _MIB,
    most_digits: int = 1000,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """Read a JSON file that may be anything.

    Parameters
    ----------
    path : Path
        The file.
    most_bytes, most_digits : int, optional
        How large it may be, and how long a number in it.
    parse_constant : callable, optional
        Gets ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``; by default they are read, and left to
        the rules, which say where they stand.

    Raises
    ------
    ValueError
        If it cannot be read or is no JSON, is larger, holds a longer number, or is nested so deeply
        that it is none of ours. The message is to stand behind the file's name.
    """
    try:
        text = read_file(path, most_bytes).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    # Before it is parsed, which would overflow the stack, or take long.
    outside = _STRING.sub("", text)
    if re.search(rf"[0-9]{{{most_digits + 1}}}", outside):
        raise ValueError(f"a number has more than {most_digits} digits")
    _check_depth(outside)
    return json.loads(text, parse_constant=parse_constant)


def _check_depth(outside: str) -> None:
    """Refuse deep nesting, in text of which the strings were taken out."""
    depth = 0
    for bracket in _NO_BRACKET.sub("", outside):
        depth += 1 if bracket in "[{" else -1
        if depth > _MOST_NESTED:
            raise ValueError(f"it is nested more than {_MOST_NESTED} deep")


def rule_of(holds: Callable[[Any], bool], wrong: str) -> Rule:
    """Make a rule of a test, and of what to say of a value that fails it."""

    def rule(value: Any, steps: Steps) -> None:
        if not holds(value):
            raise SchemaError(steps, wrong, value)

    return rule


def _is_numeric(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


is_anything = rule_of(lambda value: True, "")
is_text = rule_of(lambda value: isinstance(value, str) and value != "", "is no text")
is_flag = rule_of(lambda value: isinstance(value, bool), "is neither true nor false")
is_positive = rule_of(lambda value: _is_numeric(value, int) and value > 0, "is no positive integer")
is_count = rule_of(lambda value: _is_numeric(value, int) and value >= 0, "is no integer from 0 up")
_is_list = rule_of(lambda value: isinstance(value, list), "is no list")
_is_object = rule_of(lambda value: isinstance(value, dict), "is no object")


def number(below: float = math.inf) -> Rule:
    """Make a rule for a number from 0 up; true, false, NaN and infinity are none."""
    return rule_of(
        lambda value: _is_numeric(value, int, float) and 0 <= value < below,
        "is no number from 0 up",
    )


def one_of(*words: str) -> Rule:
    """Make a rule for one of these words."""
    return rule_of(lambda value: value in words, f"is none of {', '.join(words)}")


def exactly(word: str) -> Rule:
    """Make a rule for one word."""
    return rule_of(lambda value: bool(value == word), f"is not {word!r}")


def or_null(rule: Rule) -> Rule:
    """Make a rule for null, or what another rule says."""
    return lambda value, steps: None if value is None else rule(value, steps)


def list_of(rule: Rule, length: int | None = None) -> Rule:
    """Make a rule for a list, of any or one length, of values of one rule."""

    def check(value: Any, steps: Steps) -> None:
        _is_list(value, steps)
        if length is not None and len(value) != length:
            raise SchemaError(steps, f"has {len(value)} values, not {length}")
        for place, item in enumerate(value):
            rule(item, (*steps, place))

    return check


def map_of(
    rule: Rule, known: Collection[str] | None = None, wrong: str = "is not known to this schema"
) -> Rule:
    """Make a rule for an object of any names, or of known ones, with values of one rule."""

    def check(value: Any, steps: Steps) -> None:
        _is_object(value, steps)
        for name, item in value.items():
            if known is not None and name not in known:
                raise SchemaError((*steps, name), wrong)
            rule(item, (*steps, name))

    return check


def fields(rules: dict[str, Rule], *, more: bool = False) -> Rule:
    """Make a rule for an object that has these fields, and no others unless there may be more."""
    only_known = map_of(is_anything, None if more else rules)

    def check(value: Any, steps: Steps) -> None:
        only_known(value, steps)
        for name, rule in rules.items():
            if name not in value:
                raise SchemaError((*steps, name), "is missing")
            rule(value[name], (*steps, name))

    return check
