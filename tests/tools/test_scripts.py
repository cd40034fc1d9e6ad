"""The scripts: where `scripts/fetch_drivers` fetches from, and that none names a host."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCH = ROOT / "scripts" / "fetch_drivers"
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://mirror.example/debian"

OTHERS = """\
# deb http://comment.example/debian bookworm main
deb-src http://sources.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/other.gpg] https://other.example/debian bookworm main
deb https://updates.example/debian-security bookworm-security main
deb https://flat.example/debian ./
deb https://ubuntu.example/ubuntu noble main
"""


@pytest.fixture
def script():
    return runpy.run_path(str(FETCH))


@pytest.fixture
def apt(script, tmp_path, monkeypatch):
    """Sources of apt, as files of a folder that is all there is."""
    monkeypatch.delenv("NUMBA_SWAP_DEBIAN_MIRROR", raising=False)
    places = tmp_path / "sources.list", tmp_path / "sources.list.d"
    places[1].mkdir()
    monkeypatch.setitem(script["find_mirror"].__globals__, "apt_places", lambda: places)

    def write(name, text):
        (tmp_path / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        ("sources.list", f"deb {MIRROR} bookworm main contrib\n", MIRROR),
        ("sources.list", f"{OTHERS}deb  {MIRROR}/  trixie  main # mine\n", f"{MIRROR}/"),
        (
            "sources.list",
            f"deb [signed-by={KEY}] https://x.example/d sid main\n",
            "https://x.example/d",
        ),
        ("sources.list.d/a.list", f"deb [ arch=amd64 ] {MIRROR} stable main", MIRROR),
        (
            "sources.list.d/debian.sources",
            f"# c\nTypes: deb deb-src\nURIs: {MIRROR}\nSuites: bookworm bookworm-updates\n"
            f"Components: main\nSigned-By: {KEY}\n",
            MIRROR,
        ),
        (
            "sources.list.d/debian.sources",
            "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: sid\n"
            f"Components: main\n\nTypes: deb\nURIs:\n {MIRROR}\nSuites: sid\nComponents:\n main\n"
            "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n",
            MIRROR,
        ),
        (
            "sources.list.d/cloud.sources",
            "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\n"
            "Components: main\n",
            "mirror+file:///etc/apt/mirrors/debian.list",
        ),
    ],
)
def test_the_mirror_is_that_of_apt(script, apt, name, text, mirror):
    apt(name, text)
    assert script["find_mirror"]() == mirror


def test_the_environment_comes_first(script, apt, monkeypatch):
    apt("sources.list", f"deb {MIRROR} bookworm main\n")
    monkeypatch.setenv("NUMBA_SWAP_DEBIAN_MIRROR", "http://mine.example/x")
    assert script["find_mirror"]() == "http://mine.example/x"
    monkeypatch.setenv("NUMBA_SWAP_DEBIAN_MIRROR", "")
    assert script["find_mirror"]() == MIRROR


@pytest.mark.parametrize("text", ["", OTHERS])
def test_without_a_mirror_one_line_says_what_to_set(script, apt, text):
    apt("sources.list", text)
    with pytest.raises(script["FetchError"], match="in NUMBA_SWAP_DEBIAN_MIRROR") as error:
        script["find_mirror"]()
    assert "\n" not in str(error.value)
    assert error.value.status == script["UNABLE"]


@pytest.mark.skipif(not shutil.which("apt-config"), reason="there is no apt here")
def test_apt_says_where_its_sources_are(tmp_path):
    """Nothing is fetched: there is no mirror in what apt is told to read."""
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/mine.list"; Dir::Etc::sourceparts "{tmp_path}/none";\n'
    )
    environment = {key: value for key, value in os.environ.items() if "NUMBA_SWAP" not in key}
    environment |= {"APT_CONFIG": str(configuration), "NUMBA_SWAP_MUSEUM": str(tmp_path / "museum")}
    environment |= {"NUMBA_SWAP_DEBIAN_KEYRING": str(configuration)}

    def fetch():
        return subprocess.run(
            [sys.executable, FETCH], env=environment, capture_output=True, text=True, timeout=60
        )

    result = fetch()
    assert result.returncode == 5
    assert re.fullmatch("fetch_drivers: .* NUMBA_SWAP_DEBIAN_MIRROR.\n", result.stderr)
    (tmp_path / "mine.list").write_text(f"deb file:{tmp_path}/empty/debian bookworm main\n")
    result = fetch()
    assert "Debian mirror: that of this machine's apt sources" in result.stdout
    assert result.returncode in (3, 4, 5)


def files():
    for folder in ("numba_swap", "scripts", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc"):
                yield path
    yield ROOT / "pyproject.toml"


def test_nothing_that_runs_names_a_host():
    """What is fetched comes from where this machine's pip and apt are set up to look."""
    named = {
        path.relative_to(ROOT): found
        for path in files()
        if (found := re.findall(r"\b(?:https?|ftp)://[^\s\"']*", path.read_text(errors="replace")))
    }
    assert named == {}
