"""The samples: the committed digits are as good as the README says, the scripts run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent.parent / "samples" / "digits"


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name, allow_pickle=False) as data:
        return dict(data)


def test_files_are_small():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert sizes["digits.onnx"] < 200_000
    assert sum(sizes.values()) < 500_000


def test_model_has_what_larger_ones_are_made_of():
    model = onnx.load(FOLDER / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    assert {"Conv", "Relu", "MaxPool", "Add", "Gemm"} <= set(ops)
    groups = [a.i for n in model.graph.node for a in n.attribute if a.name == "group"]
    assert 16 in groups, "one Conv is depthwise"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_model_does_not_say_where_it_was_made():
    blob = (FOLDER / "digits.onnx").read_bytes()
    for trace in (b"/home", b"/work", b"site-packages", b"stack_trace"):
        assert trace not in blob


def test_accuracy_on_held_out_digits():
    data = arrays("evaluation.npz")
    session = ort.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": data["image"]})
    assert len(logits) == 360
    assert np.mean(logits.argmax(1) == data["label"]) > 0.97


def test_samples_are_scikit_learns_digits_and_do_not_overlap():
    known = {image.tobytes() for image in (load_digits().images / 16).astype(np.float32)}
    calibration, evaluation = (
        {image.tobytes() for image in arrays(f"{part}.npz")["image"]}
        for part in ("calibration", "evaluation")
    )
    assert calibration <= known and evaluation <= known
    assert len(calibration) == 128 and not calibration & evaluation


@pytest.mark.torch
@pytest.mark.slow
def test_training_writes_the_committed_files(tmp_path):
    """Samples bit for bit; the weights follow the machine's kernels, so the graph and the size."""
    pytest.importorskip("torch", reason="needs edgeq[torch]")
    script = tmp_path / "train.py"
    script.write_text((FOLDER / "train.py").read_text().replace("EPOCHS = 25", "EPOCHS = 1"))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "float accuracy on 360 held-out digits" in run.stdout
    for name in ("calibration.npz", "evaluation.npz"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    made, committed = (onnx.load(f / "digits.onnx").graph for f in (tmp_path, FOLDER))
    assert [n.op_type for n in made.node] == [n.op_type for n in committed.node]


@pytest.mark.torch
@pytest.mark.slow
def test_language_model_is_compiled_and_writes(tmp_path):
    """A few steps of training, so that it learns little; the bits are held as ever."""
    pytest.importorskip("transformers", reason="needs edgeq[torch,transformers]")
    script = FOLDER.parent / "language" / "train.py"
    command = [sys.executable, "-W", "error", script, "--steps", "40", "--output", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = dict(line.split(":", 1) for line in run.stdout.splitlines() if ":" in line)
    before, after = said["perplexity"].removesuffix(" per byte").split(" -> ")
    assert 2 < float(before) < 64 and abs(float(after) / float(before) - 1) < 0.05
    assert said["bundle"].lstrip().startswith("The following ")


@pytest.mark.torch
@pytest.mark.slow
def test_diffusion_model_is_compiled_and_draws(tmp_path):
    """A few steps of training, so that it draws little; the bits are held as ever."""
    pytest.importorskip("diffusers", reason="needs edgeq[torch,diffusers]")
    script = FOLDER.parent / "diffusion" / "train.py"
    options = ["--steps", "20", "--draw-steps", "4", "--images", "3", "--output", tmp_path]
    run = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    differ, psnr = run.stdout.splitlines()[-2:]
    assert differ.startswith("0 of ") and float(psnr.split()[2]) > 25
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert "Trajectory" in (tmp_path / "bundle" / "report.html").read_text()
