"""`SAFETY.md` names tests that exist, and lists as much as it should."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = (TESTS / "SAFETY.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("|") and not re.match(r"\|(---|.*\| Test \|)", line)
]


def functions(file):
    """Names of the tests of a file, with whether they run on a GPU."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_every_row_names_a_test_that_exists(row):
    what, answer, held_by = row
    assert what
    assert answer
    match = re.fullmatch(r"`([\w/]+\.py)::(test_\w+)`( \(GPU\))?", held_by)
    assert match, held_by
    file, name, on_gpu = match.groups()
    found = functions(file)
    assert name in found
    if on_gpu:
        source = found[name]
        # By a mark, by the fixtures of every machine, or because all of the file is for GPUs.
        signs = ("mark.gpu", "REAL", "MACHINES", "(gpu, mode")
        assert file.startswith("gpu/") or any(sign in source for sign in signs)


def test_the_table_is_long_enough():
    assert len(ROWS) >= 40
    assert len({row[0] for row in ROWS}) == len(ROWS)
