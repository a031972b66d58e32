"""An altered bundle is refused, each in its own words: by check.py, `edgeq check` and in Python."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.bundle import Bundle, open_bundle
from edgeq.check_folder import OLDEST_VERSION, CheckError, altered_files, read_manifest
from edgeq.cli import app
from edgeq.errors import BundleError
from tests.manifests import rewrite_manifest


@dataclass(frozen=True)
class Fault:
    """What is done to a bundle's folder, the status of its check, and a part of the message."""

    plant: Callable[[Path], None]
    status: int
    says: str


def flip(name: str, place: int, bit: int = 0) -> Callable[[Path], None]:
    """Return what flips one bit of a file."""

    def plant(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1 << bit
        (folder / name).write_bytes(data)

    return plant


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return what replaces a text of the manifest, in place."""

    def plant(folder: Path) -> None:
        text = (folder / name).read_text()
        assert text.count(old) == 1
        (folder / name).write_text(text.replace(old, new))

    return plant


def remove(name: str) -> Callable[[Path], None]:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()


def outside(folder: Path) -> None:
    """List a file outside, with its right digest, in a manifest with its own right digest."""
    files = read_manifest(folder)["files"]
    rewrite_manifest(folder, files=files | {"../elsewhere": files["model.onnx"]})


def link(name: str) -> Callable[[Path], None]:
    """Return what replaces a file by a symbolic link to one outside, with the same bytes."""

    def plant(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return plant


FAULTS = {
    "a bit of the artifact": Fault(flip("model.onnx", 500), 1, "altered or missing: model.onnx"),
    "a bit of a golden file": Fault(
        flip("golden/outputs.npz", 90), 1, "altered or missing: golden/outputs.npz"
    ),
    "a bit of the digests": Fault(
        flip("golden/taps.npz", 200, 7), 1, "altered or missing: golden/taps.npz"
    ),
    "a bit of a figure": Fault(
        replace("manifest.json", '"top1": 50.0', '"top1": 51.0'),
        1,
        "altered or missing: manifest.json",
    ),
    "an option less": Fault(
        replace("manifest.json", '"session.x64quantprecision": "1"', '"session.x": "1"'),
        1,
        "altered or missing: manifest.json",
    ),
    "a bit of the syntax": Fault(flip("manifest.json", 0), 2, "manifest.json: not valid JSON"),
    "the artifact is missing": Fault(remove("model.onnx"), 1, "altered or missing: model.onnx"),
    "a golden file is missing": Fault(
        remove("golden/inputs.npz"), 1, "altered or missing: golden/inputs.npz"
    ),
    "the manifest is missing": Fault(remove("manifest.json"), 2, "it has no manifest.json"),
    "a newer schema": Fault(
        lambda folder: rewrite_manifest(folder, schema_version=3), 2, "schema_version 3 is newer"
    ),
    "no digest of its own": Fault(
        replace("manifest.json", '"sha256"', '"sha265"'), 2, "'sha256' is missing"
    ),
    "a path outside": Fault(outside, 2, "names '../elsewhere', which leaves the bundle"),
    "a link": Fault(link("model.onnx"), 2, "'model.onnx' is a link that leaves the bundle"),
    "the manifest is a link": Fault(
        link("manifest.json"), 2, "'manifest.json' is a link that leaves the bundle"
    ),
    "a folder is a link": Fault(
        link("golden"), 2, "'golden/inputs.npz' is a link that leaves the bundle"
    ),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, bundle: Bundle) -> Fault:
    """One of the faults, planted in the bundle."""
    found = FAULTS[request.param]
    found.plant(bundle.path)
    return found


def test_check_py_refuses_it(fault: Fault, bundle: Bundle, tmp_path: Path) -> None:
    """Run from a copy: the bundle's own may be what is missing."""
    script = tmp_path / "check.py"
    script.write_bytes((bundle.path / "check.py").read_bytes())
    command = [sys.executable, "-I", str(script), "--bundle", str(bundle.path), "--taps"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == fault.status and "ok" not in found.stdout
    assert found.stderr.startswith("error: ") and fault.says in found.stderr
    assert found.stderr.count("\n") == 1


def test_the_command_refuses_it(fault: Fault, bundle: Bundle) -> None:
    found = CliRunner().invoke(app, ["check", str(bundle.path), "--json"])
    assert found.exit_code == fault.status and fault.says in found.stderr
    if fault.status == 1:
        entry = json.loads(found.stdout)
        assert len(entry["altered"]) == 1 and entry["altered"][0] in fault.says
        assert entry["bitwise"]["compared"] == 0
    else:
        assert found.stdout == ""


def test_the_api_refuses_it(fault: Fault, bundle: Bundle) -> None:
    with pytest.raises((BundleError, CheckError)) as raised:
        edgeq.check(bundle.path).raise_for_mismatch()
    assert fault.says in str(raised.value)
    with pytest.raises(BundleError) as refused:
        open_bundle(bundle.path)
    assert fault.says in str(refused.value)


def test_no_bit_of_the_manifest_can_be_flipped(bundle: Bundle) -> None:
    """Wherever it is, blanks and digests too: it is no manifest then, or an altered one."""
    path = bundle.path / "manifest.json"
    before, none = path.read_bytes(), 0
    alone = {**read_manifest(bundle.path), "files": {}}
    assert altered_files(bundle.path, alone) == ()
    for place in range(0, len(before), 3):  # in turn, the eight bits of a byte
        flip("manifest.json", place, place % 8)(bundle.path)
        try:
            alone = {**read_manifest(bundle.path), "files": {}}
            assert altered_files(bundle.path, alone) == ("manifest.json",)
        except CheckError:
            none += 1
        path.write_bytes(before)
    assert 0 < none < len(before)


def test_a_manifest_of_the_oldest_schema_has_no_digest(bundle: Bundle) -> None:
    rewrite_manifest(bundle.path, schema_version=OLDEST_VERSION)
    text = (bundle.path / "manifest.json").read_text()
    entry = {key: value for key, value in json.loads(text).items() if key != "sha256"}
    (bundle.path / "manifest.json").write_text(json.dumps(entry))
    edgeq.check(bundle.path).raise_for_mismatch()
    assert open_bundle(bundle.path).manifest == bundle.manifest
