"""`edgeq trajectories`: what it writes, prints and refuses."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq.bundle import open_bundle
from edgeq.cli import app
from edgeq.data import input_specs, open_samples
from edgeq.load import load_model

pytest.importorskip("diffusers", reason="needs edgeq[diffusers]")
from tests.noise_models import proto

pytestmark = pytest.mark.torch
DDIM = ("--scheduler", "DDIMScheduler")


def run(*arguments):
    result = CliRunner().invoke(app, ["trajectories", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def model(tmp_path, monkeypatch):
    onnx.save(proto(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return Path("model.onnx")


def test_collected_feeds_are_calibration_data(model):
    options = (*DDIM, "--steps", 10, "--samples", 20, "-o", "calibration.npz")
    found = run("collect", model, *options)
    assert found.exit_code == 0 and found.output == "calibration.npz\n", found.output
    written = Path("calibration.npz").read_bytes()
    samples = open_samples("calibration.npz", inputs=input_specs(load_model(model).model))
    timesteps = [int(feed["timestep"][0]) for feed in samples]
    assert len(timesteps) == 20 and len(set(timesteps)) == 10
    found = run("collect", model, *options)
    assert found.exit_code == 2 and "--force" in found.output
    assert run("collect", model, *options, "--force").exit_code == 0
    assert Path("calibration.npz").read_bytes() == written
    assert run("collect", model, *options, "--force", "--seed", 1).exit_code == 0
    assert Path("calibration.npz").read_bytes() != written


def test_models_are_compared(model):
    onnx.save(proto(), "other.onnx")
    options = ("compare", model, "other.onnx", *DDIM, "--steps", 3, "--samples", 4)
    found = run(*options, "--grid", "grid.png", "-q")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0].split() == ["timestep", "SQNR", "dB", "PSNR", "dB", "worst"]
    assert len(lines) == 5 and lines[-1].split() == ["images", "exact", "150.51", "150.51"]
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG")
    entry = json.loads(run(*options, "--json", "-q").stdout)
    assert list(entry) == ["scheduler", "steps", "samples", "seed", "path", "end"]
    assert len(entry["path"]) == 3 and entry["end"]["sqnr_db"] is None


def test_a_bundle_gets_its_report(model):
    generator = np.random.default_rng(0)
    feeds = [
        {"sample": generator.normal(size=(1, 1, 8, 8)).astype(np.float32),
         "timestep": np.array([t], np.int64)}
        for t in range(0, 1000, 100)
    ]  # fmt: skip
    ranges = {"timestep": (0, 999)}
    edgeq.compile(model, calibration=feeds, input_ranges=ranges, output="build")
    options = ("compare", model, "build", *DDIM, "--steps", 3, "--samples", 2, "--report", "-q")
    found = run(*options)
    assert found.exit_code == 0, found.output
    page = Path("build/report.html").read_text()
    assert "Trajectory" in page and "Tensors over timestep" in page
    table = json.loads(Path("build/report.json").read_text())["buckets"]
    assert table["buckets"] == {"name": "timestep", "low": 0, "high": 999, "count": 20}
    (row,) = [row for row in table["rows"] if row["tensor"] == "sample"]
    assert row["statistics"]["count"] == [64, 0] * 10
    assert open_bundle("build").manifest.bitwise.mismatches == 0
    assert float(found.output.splitlines()[-1].split()[2]) > 20


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("collect", "model.onnx", "--scheduler", "DDIM", "-o", "x.npz"), "no scheduler 'DDIM'"),
        (("collect", "model.onnx", *DDIM, "-o", "x.npy"), "name a .npz file"),
        (("collect", "model.onnx", *DDIM, "-o", "x.npz", "--shape", "1x8"), "do not fit"),
        (("collect", "model.onnx", *DDIM, "-o", "x.npz", "--shape", "8*8"), "write it as"),
        (("collect", "none.onnx", *DDIM, "-o", "x.npz"), "none.onnx"),
        (("collect", "model.onnx", *DDIM, "-o", "x.npz", "--conditions", "none.npz"), "none.npz"),
        (("compare", "model.onnx", "model.onnx", *DDIM, "--report"), "no bundle's folder"),
        (("compare", "model.onnx", "model.onnx", *DDIM, "--timestep-input", "t"), "no input 't'"),
    ],
)
def test_what_is_refused(model, arguments, says):
    found = run(*arguments)
    assert found.exit_code == 2 and says in found.output
    assert not Path("x.npz").exists()


def test_a_function_gives_the_same_feeds_as_the_command(model):
    Path("drawn.py").write_text(
        "from edgeq.diffusion import trajectory_feeds\n"
        "def feeds():\n"
        "    return trajectory_feeds('model.onnx', 'DDIMScheduler', samples=12, steps=6)\n"
    )
    run("collect", model, *DDIM, "--steps", 6, "--samples", 12, "-o", "calibration.npz")
    inputs = input_specs(load_model(model).model)
    left, right = (open_samples(d, inputs=inputs) for d in ("drawn:feeds", "calibration.npz"))
    for _ in range(2):  # each iteration anew
        pairs = list(zip(left, right, strict=True))
        assert len(pairs) == 12
        for a, b in pairs:
            assert {n: x.tobytes() for n, x in a.items()} == {n: x.tobytes() for n, x in b.items()}
