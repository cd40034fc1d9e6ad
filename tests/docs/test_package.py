"""What the package is from outside: its names, its import, its doctests."""

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

import numba_swap as ns


def test_all_is_what_is_public():
    for name in ns.__all__:
        assert getattr(ns, name) is not None
    modules = {name for name, value in vars(ns).items() if inspect.ismodule(value)}
    public = {name for name in vars(ns) if not name.startswith("_")} - modules
    assert public - {"TYPE_CHECKING", "Any"} == set(ns.__all__) - {"__version__"}
    assert ns.__all__ == sorted(ns.__all__)
    with pytest.raises(AttributeError, match="no attribute 'swap_everything'"):
        _ = ns.swap_everything


def test_import_touches_no_driver_and_no_compiler():
    code = """
import sys, numba_swap
heavy = {"numba", "llvmlite", "cuda", "scipy", "torch", "cupy", "rich"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    "name", ["numba_swap", "numba_swap.dispatch.settings", "numba_swap.driver.simulated.gpu"]
)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize(
    "name", [name for name in ns.__all__ if inspect.isfunction(getattr(ns, name))]
)
def test_public_functions_document_every_parameter(name):
    function = getattr(ns, name)
    documentation = inspect.getdoc(function)
    assert documentation
    if "As for" in documentation:
        return  # refers to a sibling for its parameters
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter} :" in documentation or f"{parameter}," in documentation, parameter
