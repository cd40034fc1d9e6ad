"""What a JSON file must look like: rules that raise, made of smaller ones.

A rule is a function of a value and of the way to it: names in objects, places in lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
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
