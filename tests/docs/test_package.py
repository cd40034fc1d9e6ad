"""What the package is from outside: its names, its import, its doctests, and who uses what."""

import ast
import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import numba_swap as ns
from numba_swap import ab, testing

ROOT = Path(__file__).parents[2]
# The modules that are public, with the names in them that are.
PUBLIC = {module.__name__: set(module.__all__) for module in (ns, ab, testing)}


def test_all_is_what_is_public():
    for name in ns.__all__:
        assert getattr(ns, name) is not None
    modules = {name for name, value in vars(ns).items() if inspect.ismodule(value)}
    public = {name for name in vars(ns) if not name.startswith("_")} - modules
    assert public - {"TYPE_CHECKING", "Any"} == set(ns.__all__) - {"__version__"}
    assert ns.__all__ == sorted(ns.__all__)
    with pytest.raises(AttributeError, match="no attribute 'swap_everything'"):
        _ = ns.swap_everything


@pytest.mark.parametrize("module", [ab, testing])
def test_all_of_a_public_module_is_what_it_has(module):
    names = {name for name in vars(module) if not name.startswith("_")}
    assert names == set(module.__all__)


def test_the_docstring_says_what_is_public():
    assert set(re.findall(r"``(numba_swap[\w.]*)\.__all__``", ns.__doc__)) == set(PUBLIC)


@pytest.mark.parametrize(
    ("module", "may_import"),
    [("numba_swap", set()), ("numba_swap.testing", set()), ("numba_swap.ab", {"rich"})],
)
def test_import_touches_no_driver_and_no_compiler(module, may_import):
    code = f"""
import sys, {module}
heavy = {{"numba", "llvmlite", "cuda", "scipy", "torch", "cupy", "matplotlib", "rich"}}
print(*sorted(heavy & {{name.split(".")[0] for name in sys.modules}}))
print(*sorted({{"numba_swap.ab", "numba_swap.testing", "numba_swap.tools"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    outside, inside = (set(line.split()) for line in result.stdout.splitlines())
    assert outside <= may_import
    if module != "numba_swap.ab":
        assert inside == {module} - {"numba_swap"}


@pytest.mark.parametrize(
    "name",
    [
        "numba_swap",
        "numba_swap.ab",
        "numba_swap.dispatch.settings",
        "numba_swap.paging.cache.block_cache",
        "numba_swap.paging.cache.future",
        "numba_swap.paging.cache.memory",
        "numba_swap.paging.cache.page_table",
        "numba_swap.paging.cache.replay",
        "numba_swap.swap.gather",
        "numba_swap.swap.plans.plan",
        "numba_swap.swap.running.transfer",
        "numba_swap.driver.simulated.gpu",
        "numba_swap.paging.tiles.snapshots",
        "numba_swap.paging.tiles.streaming",
        "numba_swap.paging.tiles.tiling",
        "numba_swap.paging.tiles.visits",
        "numba_swap.testing",
        "numba_swap.tools.explain",
    ],
)
def test_examples_in_docstrings(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # one reads a file of the repository
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


# -- who uses what ------------------------------------------------------------------------------


def python_of(path):
    """All Python text of a notebook, a module or a script; of a shell script, what it embeds."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    if path.suffix == ".py" or text.startswith("#!/usr/bin/env python"):
        return [text]
    return re.findall(r"<<'PYTHON'\n(.*?)^PYTHON$", text, re.DOTALL | re.MULTILINE)


def inner_names(texts):
    """All that texts, which run one after another, use of numba_swap and that is not public."""
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found, modules = set(), {}  # modules: a local name, and the public module that it stands for
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba_swap":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in PUBLIC:
                    modules[alias.asname or alias.name] = whole
                elif alias.name not in PUBLIC.get(node.module, ()):
                    found.add(whole)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in PUBLIC:
                    local = alias.asname or "numba_swap"
                    modules[local] = alias.name if alias.asname else "numba_swap"
                elif alias.name.startswith("numba_swap."):
                    found.add(alias.name)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            whole = f"{module}.{node.attr}"
            if module and node.attr not in PUBLIC[module] and whole not in PUBLIC:
                found.add(whole)
        # Also what is named in a string: to be imported from there, run, or read about.
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name in re.findall(r"\bnumba_swap(?:\.[A-Za-z_]\w*)+", node.value):
                module, _, attribute = name.rpartition(".")
                if name not in PUBLIC and attribute not in PUBLIC.get(module, ()):
                    found.add(name)
    return found


USERS = [
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "notebooks").glob("*.py")),
    *sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
]


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.name)
def test_notebooks_and_scripts_use_only_what_is_public(path):
    assert inner_names(python_of(path)) == set()


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("import numba_swap.driver", {"numba_swap.driver"}),
        ("import numba_swap.driver.calls as calls", {"numba_swap.driver.calls"}),
        ("from numba_swap import driver", {"numba_swap.driver"}),
        ("from numba_swap.driver import abi", {"numba_swap.driver.abi"}),
        (
            "from numba_swap.testing import SimulatedLibrary",
            {"numba_swap.testing.SimulatedLibrary"},
        ),
        ("def f():\n    from numba_swap import _version", {"numba_swap._version"}),
        ("import numba_swap as ns\nns.swap.verbs", {"numba_swap.swap"}),
        ("import numba_swap\nnumba_swap.tools.cli.main()", {"numba_swap.tools"}),
        ("from numba_swap import ab\nab.plots", {"numba_swap.ab.plots"}),
        ("importlib.import_module('numba_swap.driver')", {"numba_swap.driver"}),
        ("import numba_swap as ns\nfrom numba_swap import ab, testing\nns.ab.Result", set()),
        ("import numba_swap.testing\nnumba_swap.testing.Fault\nnumba_swap.swap_blocks", set()),
        ("import numba\nfrom numba import cuda\nfrom numba_swap import Mode as M", set()),
        ("from numba_swap.ab import format_ns\nf = 'numba_swap/driver/calls.py'", set()),
    ],
)
def test_what_is_not_public_is_noticed(text, inner):
    assert inner_names([text]) == inner


def test_there_are_users():
    texts = [text for path in USERS for text in python_of(path)]
    assert len(USERS) > 12
    assert any("numba_swap.ab" in text for text in texts)
    assert any("cuDriverGetVersion" in text for text in python_of(ROOT / "scripts" / "_python.sh"))
