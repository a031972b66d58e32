"""What pip installs: `edgeq` and nothing else, its passes, targets and data files with it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {"edgeq": "edgeq", "edgeq/passes": "passes", "edgeq/targets": "targets"}


def files(folder: str) -> set[str]:
    """Return the files of `folder`, relative to it, links and what Python caches left out."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT / folder) for path in found}
    links = ("passes", "targets") if folder == "edgeq" else ()
    return {str(n) for n in names if "__pycache__" not in n.parts and n.parts[0] not in links}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names in a wheel built from a clean copy of the tree."""
    checkout, out = tmp_path_factory.mktemp("tree") / "edgeq", tmp_path_factory.mktemp("wheel")
    generated = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=generated)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run = subprocess.run([*command, "--wheel-dir", out, checkout], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (path,) = out.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_wheel_holds_nothing_but_edgeq(wheel):
    tops = {name.split("/")[0] for name in wheel}
    version = PROJECT["project"]["version"]
    assert tops == {"edgeq", f"edgeq-{version}.dist-info"}


@pytest.mark.parametrize(("inside", "folder"), SOURCES.items())
def test_wheel_holds_every_file(wheel, inside, folder):
    expected = {f"{inside}/{name}" for name in files(folder)}
    assert len(expected) >= 1
    assert expected <= wheel


def test_wheel_holds_licence_and_entry_point(wheel):
    endings = {name.split(".dist-info/")[1] for name in wheel if ".dist-info/" in name}
    assert {"licenses/LICENSE", "entry_points.txt", "METADATA"} <= endings


def test_every_package_is_listed():
    folders = {p.parent for f in SOURCES.values() for p in (ROOT / f).rglob("__init__.py")}
    names = set()
    for folder in folders:
        parts = folder.relative_to(ROOT).parts
        names.add(".".join(parts if parts[0] == "edgeq" else ("edgeq", *parts)))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_version_is_written_once_more_only():
    import edgeq

    assert edgeq.__version__ == PROJECT["project"]["version"]
