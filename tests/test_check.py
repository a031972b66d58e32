"""The bundle's check.py, on a machine that has no edgeq."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeq
from edgeq.check_folder import CheckError, MismatchError
from edgeq.check_session import extra_outputs, version_notes
from edgeq.golden import npz_bytes
from tests.manifests import rewrite_manifest


def load(path):
    with np.load(path) as data:
        return dict(data)


def run(bundle, *arguments):
    """Run check.py isolated: neither the folder, nor PYTHONPATH, nor edgeq can be imported."""
    command = [sys.executable, "-I", str(bundle.path / "check.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60)


def test_a_whole_bundle_passes_without_edgeq(bundle):
    blocked = "import sys; sys.modules['edgeq'] = None; import runpy; sys.argv = ['check.py'];"
    code = f"{blocked} runpy.run_path({str(bundle.path / 'check.py')!r}, run_name='__main__')"
    found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "ok: the same bits" in found.stdout


def test_check_py_imports_numpy_onnxruntime_and_the_standard_library_only(bundle):
    text = (bundle.path / "check.py").read_text()
    assert "from edgeq" not in text and "import edgeq" not in text
    names = {line.split()[1].split(".")[0] for line in text.splitlines()
             if line.lstrip().startswith(("import ", "from ")) and "..." not in line}  # fmt: skip
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_json_is_all_of_standard_output(bundle):
    start = time.perf_counter()
    found = run(bundle, "--json", "--taps")
    seconds = time.perf_counter() - start
    assert found.returncode == 0, found.stderr
    entry = json.loads(found.stdout)
    assert found.stdout.count("\n") == 1 and found.stderr == ""
    assert entry["target"] == "ort-cpu"
    # 10 feeds: y (4) with one and two threads and beside the taps, then the taps once.
    assert entry["bitwise"] == {
        "tensors": 4,
        "compared": 10 * (3 * 4 + 50 + 27 + 4),
        "mismatches": 0,
    }
    assert set(entry["latency_ms"]) == {"median", "p95", "first", "load"}
    assert set(entry["memory_mib"]) == {"peak", "session"}
    assert entry["host"]["onnxruntime"]
    # Loose: the machine may be busy; a check takes about half a second.
    assert seconds < 10


def test_an_altered_artifact_is_named(bundle):
    data = bytearray(bundle.artifact.read_bytes())
    data[-200] ^= 1
    bundle.artifact.write_bytes(data)
    found = run(bundle)
    assert found.returncode == 1
    assert "altered or missing: model.onnx" in found.stderr and "Traceback" not in found.stderr
    found = run(bundle, "--json")
    assert found.returncode == 1 and json.loads(found.stdout)["altered"] == ["model.onnx"]


@pytest.mark.parametrize("name", ["golden/outputs.npz", "report.html"])
def test_a_missing_file_is_named(bundle, name):
    (bundle.path / name).unlink()
    found = run(bundle)
    assert found.returncode == 1 and name in found.stderr


def refresh(bundle, name):
    """Put the digest of a changed file into the manifest."""
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256((bundle.path / name).read_bytes()).hexdigest()
    rewrite_manifest(bundle.path, files=manifest["files"])


def test_one_differing_bit_is_named_with_index_and_both_values(bundle):
    path = bundle.path / "golden" / "outputs.npz"
    arrays = load(path)
    arrays["y"][3, 2] = np.nextafter(arrays["y"][3, 2], np.float32(np.inf))
    path.write_bytes(npz_bytes(arrays))
    refresh(bundle, "golden/outputs.npz")
    found = run(bundle, "--json")
    entry = json.loads(found.stdout)
    assert found.returncode == 1
    assert entry["bitwise"]["mismatches"] == 2  # with one thread, and with two
    assert "tensor 'y', feed 3, index [0, 2]: expected" in entry["bitwise"]["first"]
    assert entry["bitwise"]["first"] in found.stderr
    result = edgeq.check(bundle)
    with pytest.raises(MismatchError, match="feed 3"):
        result.raise_for_mismatch()


def test_a_negative_zero_is_not_a_zero(bundle):
    path = bundle.path / "golden" / "outputs.npz"
    arrays = load(path)
    zeros = np.flatnonzero(arrays["y"] == 0)
    assert len(zeros) > 0
    arrays["y"].reshape(-1)[zeros[0]] = -0.0
    path.write_bytes(npz_bytes(arrays))
    refresh(bundle, "golden/outputs.npz")
    assert edgeq.check(bundle).mismatches == 2


def test_a_tap_that_differs_is_named_only_with_taps(bundle):
    path = bundle.path / "golden" / "taps.npz"
    arrays = load(path)
    arrays["digests"] = np.array(arrays["digests"])
    arrays["digests"][1, 4, 0] ^= 1
    path.write_bytes(npz_bytes(arrays))
    refresh(bundle, "golden/taps.npz")
    assert run(bundle).returncode == 0
    found = run(bundle, "--taps")
    assert found.returncode == 1 and "tap 'conv_q', feed 4" in found.stderr


def test_taps_name_the_first_tensor_that_differs_before_the_output(bundle):
    """With another weight, everything behind the Conv differs."""
    model = onnx.load(bundle.artifact)
    (weight,) = (w for w in model.graph.initializer if w.name == "w")
    codes = onnx.numpy_helper.to_array(weight).copy()
    codes[1] ^= 1
    weight.CopyFrom(onnx.numpy_helper.from_array(codes, "w"))
    onnx.save(model, bundle.artifact)
    refresh(bundle, "model.onnx")
    first, nearer = (str(edgeq.check(bundle, taps=taps).first) for taps in (False, True))
    assert first.startswith("tensor 'y', feed 0, index ")
    assert nearer == f"tap 'conv_q', feed 0; {first}"


def test_the_missing_session_option_is_named(bundle):
    rewrite_manifest(bundle.path, session_options={})
    found = run(bundle, "--json")
    if os.uname().machine == "x86_64":
        assert "session.x64quantprecision=1" in json.loads(found.stdout)["notes"][0]


def test_untested_versions_are_refused_unless_allowed(bundle):
    rewrite_manifest(
        bundle.path, runtime={"name": "onnxruntime", "at_least": "9.0", "below": "9.1"}
    )
    found = run(bundle)
    assert found.returncode == 2 and "--any-version" in found.stderr and found.stdout == ""
    found = run(bundle, "--any-version")
    assert found.returncode == 0 and "was not tested" in found.stdout


@pytest.mark.parametrize(
    ("version", "tested"),
    [("1.31", True), ("1.31.0", True), ("1.31.9", True), ("1.32.0", False), ("1.32.0rc1", False),
     ("1.30.9", False), ("1.4", False), ("2.0", False)],
)  # fmt: skip
def test_version_ranges(version, tested):
    manifest = {"runtime": {"at_least": "1.31", "below": "1.32"}}
    if tested:
        assert version_notes(manifest, version, False) == []
    else:
        with pytest.raises(CheckError, match="not tested"):
            version_notes(manifest, version, False)


@pytest.mark.parametrize(
    ("rule", "text", "says"),
    [
        ("not JSON", "{", "not valid JSON"),
        ("not an object", "[]", "schema_version"),
        ("a newer schema", '{"schema_version": 99}', "schema_version 99 is newer"),
        ("no schema", '{"schema_version": true}', "schema_version is True"),
        ("keys missing", '{"schema_version": 1}', "'artifact' is missing"),
        ("keys missing, now", '{"schema_version": 2}', "'artifact' is missing"),
        ("deep", "[" * 100_000, "not valid JSON"),
    ],
)
def test_manifests_that_are_none(bundle, rule, text, says):
    (bundle.path / "manifest.json").write_text(text)
    found = run(bundle)
    assert found.returncode == 2 and says in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime", {}),
        ("golden", {"feeds": 10**12}),
        ("golden", {"feeds": "x"}),
        ("golden", {"feeds": 7, "scalars": []}),
        ("taps", [{"name": "a", "dtype": "x"}]),
        ("outputs", []),
        ("inputs", [3]),
        ("taps", 3),
    ],
)
def test_manifests_that_do_not_fit_the_bundle(bundle, tmp_path, key, value):
    evaluation(tmp_path / "e.npz")
    rewrite_manifest(bundle.path, **{key: value})
    found = run(bundle, "--taps", "--evaluation", str(tmp_path / "e.npz"), "--metric", "top1")
    assert found.returncode == 2 and found.stderr.startswith("error: "), found.stderr
    assert found.stderr.count("\n") == 1 and found.stdout == ""


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "a\\b", "", "C:x", "nul\0"]
)
def test_paths_that_leave_the_bundle_are_refused(bundle, path):
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    rewrite_manifest(bundle.path, files=manifest["files"] | {path: "00"})
    found = run(bundle)
    assert found.returncode == 2 and "leaves the bundle" in found.stderr


def test_links_that_leave_the_bundle_are_refused(bundle, tmp_path):
    elsewhere = tmp_path / "model.onnx"
    shutil.move(bundle.artifact, elsewhere)
    bundle.artifact.symlink_to(elsewhere)
    found = run(bundle)
    assert found.returncode == 2 and "a link that leaves" in found.stderr


def test_pickles_are_never_read(bundle):
    path = bundle.path / "golden" / "inputs.npz"
    np.savez(path, x=np.array([{}], object))
    refresh(bundle, "golden/inputs.npz")
    found = run(bundle)
    assert found.returncode == 2 and "pickle" in found.stderr


def evaluation(path: Path, count=40, **changes):
    generator = np.random.default_rng(0)
    arrays = {"x": generator.normal(0, 1, (count, 2, 5, 5)).astype(np.float32),
              "label": generator.integers(0, 4, count)}  # fmt: skip
    np.savez_compressed(path, **(arrays | changes))
    return arrays | changes


def test_accuracy_on_the_device_stands_beside_the_hosts(bundle, tmp_path):
    arrays = evaluation(tmp_path / "e.npz")
    found = run(bundle, "--evaluation", str(tmp_path / "e.npz"), "--metric", "top1", "--json")
    assert found.returncode == 0, found.stderr
    (logits,) = bundle.session().run(None, {"x": arrays["x"]})
    expected = 100 * float(np.mean(logits.argmax(1) == arrays["label"]))
    assert json.loads(found.stdout)["metrics"] == {"top1": expected, "top1_host": 50.0}


def test_accuracy_on_the_same_data_is_the_hosts_to_the_last_sample(bundle, tmp_path):
    data = tmp_path / "e.npz"
    evaluation(data)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    here = edgeq.check(bundle, evaluation=data, metric="top1").metrics["top1"]
    check = partial(edgeq.check, bundle, evaluation=data, metric="top1")

    rewrite_manifest(bundle.path, evaluation_digest=digest, metrics={"top1": here})
    found = check()
    assert found.exit_status == 0 and found.notes == ()

    rewrite_manifest(bundle.path, evaluation_digest=digest, metrics={"top1": here + 2.5})
    found = check()
    assert found.exit_status == 1 and found.mismatches == 1
    with pytest.raises(MismatchError, match=rf"top1 is {here} here and {here + 2.5} on the host"):
        found.raise_for_mismatch()

    rewrite_manifest(bundle.path, evaluation_digest="00", metrics={"top1": here + 2.5})
    found = check()
    assert found.exit_status == 0 and found.notes == ("top1_host was measured on other data",)


@pytest.mark.parametrize("ignored", [0, 7])
@pytest.mark.parametrize("metric", ["top1", "nll", "perplexity", "psnr", "mse"])
def test_metrics_are_those_of_the_host(bundle, tmp_path, metric, ignored):
    from edgeq.metrics import IGNORED, find_metric

    shape = {"psnr": (40, 4), "mse": (40, 4)}.get(metric, (40,))
    label = np.random.default_rng(2).integers(0, 4, shape)
    label[:ignored] = IGNORED
    arrays = evaluation(tmp_path / "e.npz", label=label if len(shape) == 1 else label / 7)
    host = find_metric(metric)
    (y,) = bundle.session().run(None, {"x": arrays["x"]})
    host.update({"y": y}, {"y": y}, arrays["label"])
    result = edgeq.check(bundle, evaluation=tmp_path / "e.npz", metric=metric)
    # Sums over batches of another size may differ in the last bits of a float64.
    assert result.metrics[metric] == pytest.approx(host.value(), rel=1e-13)


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("top1", np.zeros((40, 2), np.int64)),
        ("nll", np.full(40, 4)),
        ("top1", np.full(40, -1)),
        ("top1", np.zeros((40, 1), np.int64)),
        ("nll", np.zeros(40)),
        ("psnr", np.zeros((40, 3))),
        ("mse", np.zeros(40)),
    ],
)
def test_labels_that_do_not_fit(bundle, tmp_path, metric, label):
    evaluation(tmp_path / "e.npz", label=label)
    with pytest.raises(edgeq.EdgeqError, match="labels"):
        edgeq.check(bundle, evaluation=tmp_path / "e.npz", metric=metric)


@pytest.mark.parametrize(
    ("rule", "changes", "says"),
    [
        ("dtype", {"x": np.zeros((40, 2, 5, 5), np.float64)}, "'x' is float64"),
        ("length", {"x": np.zeros((39, 2, 5, 5), np.float32)}, "different lengths"),
        ("shape", {"x": np.zeros((40, 2, 5, 6), np.float32)}, "cannot run the model"),
        ("pickle", {"x": np.array([{}] * 40, object)}, "pickled objects"),
        ("scalar", {"label": np.int64(3)}, "sample axis first"),
    ],
)
def test_evaluation_data_that_do_not_fit(bundle, tmp_path, rule, changes, says):
    evaluation(tmp_path / "e.npz", **changes)
    found = run(bundle, "--evaluation", str(tmp_path / "e.npz"), "--metric", "top1")
    assert found.returncode == 2 and says in found.stderr and "Traceback" not in found.stderr


def test_metric_and_evaluation_go_together(bundle):
    found = run(bundle, "--metric", "top1")
    assert found.returncode == 2 and "give both" in found.stderr


def test_tapped_outputs_are_a_protobuf_message():
    model = onnx.ModelProto.FromString(extra_outputs([{"name": "a" * 200, "dtype": "uint8"}]))
    (output,) = model.graph.output
    assert output.name == "a" * 200
    assert output.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_the_facade_takes_bundles_and_paths(bundle):
    for given in (bundle, bundle.path, str(bundle.path)):
        result = edgeq.check(given, repeat=1)
        assert result.exit_status == 0 and result.compared == 80
        result.raise_for_mismatch()
    with pytest.raises(edgeq.EdgeqError, match="not a bundle"):
        edgeq.check(bundle.path / "golden")
