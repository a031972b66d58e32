"""Bundles: whole or not at all, the same bytes for the same contents, checked on opening."""

import errno
import io
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeq.bundle import check_destination, open_bundle, standalone_check, write_folder
from edgeq.check_bits import digest
from edgeq.errors import BundleError
from edgeq.evidence import write_evidence
from edgeq.golden import GoldenVectors, npz_bytes
from edgeq.manifest import TensorInfo
from edgeq.targeting import Artifact
from edgeq.verify import Comparison


def f32(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def u8(values: object) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)


FILES = {
    "check.py",
    "golden/inputs.npz",
    "golden/outputs.npz",
    "golden/taps.npz",
    "manifest.json",
    "model.onnx",
    "report.html",
    "report.json",
}


def load(path):
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_bundle_holds_these_files(bundle):
    found = contents(bundle.path)
    assert set(found) == FILES
    manifest = json.loads(found["manifest.json"])
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert manifest["schema_version"] == 2 and manifest["artifact"] == "model.onnx"
    assert manifest["session_options"] == {"session.x64quantprecision": "1"}
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 2, 5, 5]}]


def test_the_same_contents_give_the_same_bytes(tmp_path, write_tiny):
    first, second = tmp_path / "one" / "b", tmp_path / "two" / "other"
    for path in (first, second):
        path.parent.mkdir()
        write_tiny(path)
    assert contents(first) == contents(second)
    assert not any(str(tmp_path).encode() in data for data in contents(first).values())


def test_the_manifest_survives_reading(bundle):
    again = open_bundle(bundle.path)
    assert again == bundle
    assert again.manifest.taps[1].name == "conv_q" and again.manifest.feeds == 10
    assert again.manifest.to_text() == (bundle.path / "manifest.json").read_text()


def test_the_session_gives_the_golden_outputs(bundle):
    golden = {n: load(bundle.path / "golden" / f"{n}.npz") for n in ("inputs", "outputs")}
    (y,) = bundle.session(threads=2).run(None, {"x": golden["inputs"]["x"]})
    assert y.tobytes() == golden["outputs"]["y"].tobytes() and y.size == 40


def test_codes_and_reals(bundle):
    import dataclasses

    item = TensorInfo("x", "uint8", (1, 2), 0.5, 3)
    manifest = dataclasses.replace(bundle.manifest, inputs=(item,), outputs=(item,))
    coded = dataclasses.replace(bundle, manifest=manifest)
    codes = coded.quantize_inputs({"x": f32([[0.25, 200.0]])})["x"]
    assert codes.tolist() == [[3, 255]] and codes.dtype == np.uint8  # 0.5 is a tie: to even
    assert coded.quantize_inputs({"x": codes})["x"] is codes
    assert coded.dequantize_outputs({"x": codes})["x"].tolist() == [[0.0, 126.0]]


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_opening_refuses_an_altered_file(bundle, name):
    path = bundle.path / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BundleError, match="altered or missing"):
        open_bundle(bundle.path)


def test_opening_refuses_a_path_outside(bundle):
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../x"] = "00"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("key", ["recipe", "certificate", "samples", "metrics", "taps"])
def test_opening_refuses_a_manifest_with_a_hole(bundle, key):
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a manifest that edgeq wrote"):
        open_bundle(bundle.path)


# Atomicity: after any failure, the parent folder is as it was.


@pytest.mark.parametrize(
    ("failure", "expected", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), BundleError, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), BundleError, "Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError(), MemoryError, None),
        (SystemExit(143), SystemExit, "143"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_nothing(
    tmp_path, write_tiny, monkeypatch, failure, expected, says, existing
):
    path = tmp_path / "bundle"
    if existing:
        write_tiny(path)
    before = contents(tmp_path)
    written = []
    write_bytes = Path.write_bytes

    def failing(self, data):
        written.append(self.name)
        if len(written) == 4:
            write_bytes(self, data[: len(data) // 2])
            raise failure
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(expected, match=says):
        write_tiny(path, force=existing)
    assert len(written) == 4
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["bundle"] if existing else [])


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_failed_replacement_brings_the_old_bundle_back(
    tmp_path, write_tiny, monkeypatch, failing_rename
):
    path = tmp_path / "bundle"
    write_tiny(path)
    before, calls, rename = contents(tmp_path), [], Path.rename

    def failing(self, target):
        calls.append(self)
        if len(calls) == failing_rename:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write_tiny(path, force=True)
    assert contents(tmp_path) == before and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_is_really_full(tmp_path, write_tiny):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with pytest.raises(BundleError, match="the disk is full"):
            write_tiny(disk / "bundle")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_force_replaces_a_bundle(tmp_path, write_tiny):
    write_tiny(tmp_path / "bundle")
    inode = (tmp_path / "bundle").stat().st_ino
    write_tiny(tmp_path / "bundle", force=True)
    assert (tmp_path / "bundle").stat().st_ino != inode
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("rule", "make", "force", "says"),
    [
        ("a bundle, without force", lambda p: p.mkdir(), False, "--force"),
        ("a folder of the user's", lambda p: (p.mkdir(), (p / "a").touch()), True, "not a bundle"),
        ("a file", lambda p: p.touch(), True, "not a bundle"),
        ("a link", lambda p: p.symlink_to(p.parent), True, "not a bundle"),
        ("a dangling link", lambda p: p.symlink_to("nowhere"), False, "exists"),
    ],
)
def test_destinations_that_are_refused(tmp_path, rule, make, force, says):
    path = tmp_path / "bundle"
    make(path)
    with pytest.raises(BundleError, match=says):
        check_destination(path, force=force)


def test_missing_parents_are_made(tmp_path):
    check_destination(tmp_path / "a" / "b", force=False)
    write_folder(tmp_path / "a" / "b", {"x": b"1"}, force=False)
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"1"


def test_made_parents_go_again_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="disk is full"):
        write_folder(tmp_path / "a" / "b", {"x": b"1"}, force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(BundleError, match="is not a folder"):
        check_destination(tmp_path / "a" / "b", force=False)


def test_an_empty_folder_may_be_replaced_with_force(tmp_path, write_tiny):
    (tmp_path / "bundle").mkdir()
    assert write_tiny(tmp_path / "bundle", force=True).manifest.target == "ort-cpu"


def test_artifacts_may_not_leave_the_folder(tmp_path, write_tiny, monkeypatch):
    from edgeq.bundle import write_folder
    from edgeq.check_folder import CheckError

    with pytest.raises(CheckError, match="leaves the bundle"):
        write_folder(tmp_path / "b", {"../x": b""}, force=False)
    assert list(tmp_path.iterdir()) == []


# Golden vectors.


def test_npz_bytes_are_fixed_and_hold_no_pickle():
    arrays: dict[str, NDArray[np.float32]] = {
        "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "s": f32(3),
    }
    data = npz_bytes(arrays)
    assert data == npz_bytes(arrays)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    loaded = load(io.BytesIO(data))
    assert loaded["a/b"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["s"].shape == ()
    with pytest.raises(BundleError, match="pickle"):
        npz_bytes({"a": np.array([{}], object)})


def test_golden_vectors_keep_runs_of_one_shape_and_a_bounded_size():
    golden = GoldenVectors(["t"], limit=400)
    x, y = np.zeros((1, 10), np.float32), {"y": np.zeros((1, 10), np.float32)}
    assert golden.add({"x": x}, y, {"t": x})
    assert not golden.add({"x": np.zeros((1, 11), np.float32)}, y, {"t": x})
    kept = [golden.add({"x": x}, y, {"t": x}) for _ in range(9)]
    assert kept == [True] * 4 + [False] * 5 and golden.feeds == 5


def test_samples_leave_room_for_other_golden_runs():
    golden = GoldenVectors([], limit=400)
    x = f32([[0] * 10])
    kept = [golden.add({"x": x}, {"y": x}, {}, share=0.5) for _ in range(4)]
    assert kept == [True, True, False, False]
    assert [golden.add({"x": x}, {"y": x}, {}) for _ in range(4)] == [True, True, True, False]


def test_a_bundle_needs_golden_vectors():
    with pytest.raises(BundleError, match="at least one sample"):
        GoldenVectors([]).files()


@pytest.mark.parametrize(
    ("rule", "left", "right"),
    [
        ("a bit", f32([0.0]), f32([-0.0])),
        ("dtype", np.zeros(4, np.uint8), np.zeros(4, np.int8)),
        ("shape", np.zeros((2, 2), np.uint8), np.zeros(4, np.uint8)),
    ],
)
def test_digests_differ_by(rule, left, right):
    assert digest(left) != digest(right)
    assert digest(left) == digest(left.copy())


def test_digests_do_not_depend_on_the_layout():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(array.astype(">i4"))


def test_the_standalone_check_is_python():
    compile(standalone_check(), "check.py", "exec")


# Evidence.


def failed_verdict():
    comparison = Comparison()
    expected = {"t/1": np.zeros(4, np.uint8)}
    comparison.add(expected, {"t/1": u8([0, 0, 7, 0])}, {"x": f32([1.5])})
    return comparison.verdict()


def test_evidence_holds_what_it_takes_to_see_it_again(tmp_path):
    artifact = Artifact({"model.onnx": b"m"})
    for _ in range(2):  # evidence that is there already is replaced
        path = write_evidence(
            tmp_path / "out", artifact=artifact, verdict=failed_verdict(), reason="bits differ"
        )
    assert path == tmp_path / "out.failed"
    assert [p.name for p in tmp_path.iterdir()] == ["out.failed"]
    entry = json.loads((path / "difference.json").read_text())
    assert entry["first"] == {
        "tensor": "t/1", "sample": 0, "index": [2], "expected": "0", "actual": "7",
        "expected_bits": "00", "actual_bits": "07",
    }  # fmt: skip
    assert load(path / "inputs.npz")["x"] == np.float32(1.5)
    assert load(path / "actual.npz")["t/1"].tolist() == [0, 0, 7, 0]
    assert (path / "model.onnx").read_bytes() == b"m"


def test_evidence_replaces_nothing_of_the_users(tmp_path):
    folder = tmp_path / "out.failed"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(BundleError, match="remove it"):
        write_evidence(tmp_path / "out", artifact=Artifact({"m": b""}), verdict=None, reason="r")
    assert os.listdir(folder) == ["mine"]  # noqa: PTH208  # names are all that counts
