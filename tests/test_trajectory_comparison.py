"""Images drawn by the float model beside another one's: figures, the grid, the report."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest

import edgeq
from edgeq.bundle import open_bundle
from edgeq.diffusion import add_to_report, compare_trajectories
from edgeq.errors import BundleError, DataError
from edgeq.read_report import read_report
from edgeq.report import render_json
from edgeq.report_page import render_html
from edgeq.trajectory import ImageMeter
from tests.noise_models import SHAPE, coarse, noise
from tests.test_report import Page

diffusers = pytest.importorskip("diffusers", reason="needs edgeq[diffusers]")
torch = pytest.importorskip("torch", reason="needs edgeq[torch]")

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("library", ["diffusers", "torch", "PIL.Image"])
def test_a_missing_library_is_named(library, monkeypatch):
    scheduler = diffusers.DDIMScheduler() if library != "diffusers" else "DDIMScheduler"
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=r"pip install edgeq\[diffusers\]"):
        compare(scheduler=scheduler)


def compare(left=noise, right=coarse, scheduler="DDPMScheduler", **changes):
    options = {"steps": 6, "samples": 5, "batch": 2, "shape": SHAPE, **changes}
    return compare_trajectories(left, right, scheduler, **options)


def test_the_same_model_draws_the_same_images():
    """So both meet the same noise, the scheduler's too: DDPM draws some at each step."""
    found = compare(right=lambda feeds: noise(feeds))
    assert found.end.sqnr_db is None and found.end.psnr_db > 150
    assert [step.fidelity.sqnr_db for step in found.path] == [None] * 6
    assert (found.scheduler, found.steps, found.samples) == ("DDPMScheduler", 6, 5)


def test_two_models_differ_by_what_an_independent_walk_says():
    found = compare(scheduler="DDIMScheduler", samples=2, batch=2)
    starts = np.random.default_rng([0, 0]).standard_normal((2, *SHAPE), np.float32)
    ends = []
    for model in (noise, coarse):
        scheduler, sample = diffusers.DDIMScheduler(), torch.from_numpy(starts)
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            feeds = {"sample": sample.numpy(), "timestep": np.full(2, int(t))}
            predicted = torch.from_numpy(model(feeds).astype(np.float32))
            sample = scheduler.step(predicted, t, sample).prev_sample
        ends.append(sample.numpy().astype(np.float64))
    reference, actual = ends
    noise_power = ((reference - actual) ** 2).sum()
    last = found.path[-1].fidelity
    assert last.sqnr_db == pytest.approx(10 * np.log10((reference**2).sum() / noise_power))
    clipped = (np.clip(reference, -1, 1) - np.clip(actual, -1, 1)) ** 2
    psnr = 10 * np.log10(4 / clipped.mean((1, 2, 3)))
    assert found.end.psnr_db == pytest.approx(psnr.mean())
    assert found.end.worst_db == pytest.approx(psnr.min())


def test_comparisons_are_reproducible():
    assert compare() == compare() and compare(seed=1) != compare()
    assert compare().path[0].timestep > compare().path[-1].timestep == 0


def test_the_grid_shows_the_first_images_of_both():
    from PIL import Image

    found = compare(columns=3)
    with Image.open(io.BytesIO(found.png)) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 64 + 2, 3 * 64 + 2 * 2) and pixels.dtype == np.uint8
    upper, lower = pixels[:64], pixels[66:]
    assert (pixels[64:66] == 255).all() and not (upper == lower).all()
    assert np.abs(upper.astype(int) - lower).mean() < 20, "the same images, nearly"
    assert compare(shape=(4, 8, 8), left=lambda f: f["sample"], right=lambda f: f["sample"] / 2
                   ).grid == ""  # fmt: skip


def test_latents_are_decoded():
    flat = compare(decode=lambda latents: np.zeros((len(latents), 3, 4, 4), np.float32))
    assert flat.end.sqnr_db is None and flat.grid and flat.path[-1].fidelity.sqnr_db is not None


def test_the_meter_takes_images_in_any_cut():
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, 6, 1, 4, 4))
    whole, cut = ImageMeter(), ImageMeter()
    whole.add(left, right)
    for part in (slice(0, 1), slice(1, 6)):
        cut.add(left[part], right[part])
    a, b = whole.result(), cut.result()
    assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), rel=1e-12)


def test_a_report_shows_the_trajectory(bundle):
    found = compare()
    before = open_bundle(bundle.path)
    page = Page((bundle.path / "report.html").read_text())
    assert "img" not in page.tags and "Trajectory" not in "".join(page.text)
    after = add_to_report(bundle, found)
    changed = {n for n, d in after.manifest.files.items() if before.manifest.files[n] != d}
    assert changed == {"report.html", "report.json"}
    page = Page((bundle.path / "report.html").read_text())
    text = "".join(page.text)
    assert "Trajectory" in text and f"{found.end.psnr_db:.2f}" in text
    sources = [value for name, value in page.attributes if name == "src"]
    assert sources == [f"data:image/png;base64,{found.grid}"]
    assert "Every evaluation" in text and "DDPMScheduler" in text
    entry = json.loads((bundle.path / "report.json").read_text())
    assert len(entry["trajectory"]["path"]) == 6
    assert read_report(bundle.path / "report.json").trajectory == found
    files = {p: p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}
    add_to_report(bundle.path, found)  # instead of what is there: the same bytes
    assert files == {p: p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}
    edgeq.check(bundle).raise_for_mismatch()


def test_an_altered_bundle_gets_no_new_digests(bundle):
    (bundle.path / "report.json").write_text("{}")
    with pytest.raises(BundleError, match=r"altered or missing: report\.json"):
        add_to_report(bundle, compare())


def test_reports_survive_reading(report, tmp_path):
    path = tmp_path / "report.json"
    for trajectory in (None, compare()):
        full = dataclasses.replace(report, trajectory=trajectory)
        path.write_text(render_json(full))
        found = read_report(path)
        assert render_json(found) == render_json(full) and render_html(found) == render_html(full)
        assert found.layers == full.layers and found.trajectory == trajectory


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not a report"), ('{"schema_version": 2}', "schema_version is not 1"), ("[]", "not a"),
     ('{"schema_version": 1, "model": 3}', "3 is no str"), ('{"schema_version": 1}', "not a")],
)  # fmt: skip
def test_reports_that_are_refused(tmp_path, text, says):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=says):
        read_report(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_report(tmp_path / "none.json")
