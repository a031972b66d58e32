"""Draw images with the float and the quantized model from the same noise, and compare them.

Both go down side by side, each with a scheduler of its own that meets the same noise. What differs
is what quantization did, and what the steps made of it. Memory does not grow with the steps.
"""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.bundle import Bundle, open_bundle, replace_report
from edgeq.diffusion.image_grid import image_grid, is_drawable
from edgeq.diffusion.noise_model import NOTHING, Inputs, make_feeder, open_noise_model
from edgeq.diffusion.schedulers import load_scheduler
from edgeq.diffusion.trajectories import evaluations, groups, trajectory
from edgeq.request import Progress, silent
from edgeq.trajectory import ImageMeter, StepFidelity, TrajectoryComparison

Array = NDArray[Any]
BATCH = 16  # images that go down together
COLUMNS = 8  # of the grid


def compare_trajectories(
    float_model: object,
    quantized: object,
    scheduler: object,
    *,
    steps: int = 50,
    samples: int = 64,
    seed: int = 0,
    batch: int = BATCH,
    shape: tuple[int, ...] | None = None,
    conditions: Mapping[str, Array] = NOTHING,
    sample: str = "sample",
    timestep: str = "timestep",
    decode: Callable[[Array], Array] | None = None,
    columns: int = COLUMNS,
    progress: Progress = silent,
) -> TrajectoryComparison:
    """Draw images with two models from the same noise and the same noise of the scheduler.

    Args:
        float_model: As `trajectory_feeds` takes it.
        quantized: A bundle or its folder, a model, or a function of feeds.
        scheduler: As `load_scheduler` takes it.
        steps: Inference steps.
        samples: Images to draw.
        seed: Of the noise; the same arguments give the same result.
        batch: Images that go down together, where the model does not fix that.
        shape: Of one image without the batch axis, where the model does not say.
        conditions: See `trajectory_feeds`.
        sample: Name of the input that takes noisy images.
        timestep: Name of the input that takes the timestep.
        decode: Makes images in [-1, 1] of the last samples, where those are latents.
        columns: Images in the grid.
        progress: Told how many images are drawn.

    Raises:
        EdgeqError: A model or the scheduler cannot be used, or do not fit each other.
    """
    models = open_noise_model(float_model), open_noise_model(quantized)
    inputs = Inputs(sample=sample, timestep=timestep, shape=shape, conditions=conditions)
    feeders = [make_feeder(model, inputs) for model in models if model.inputs is not None]
    feeder = feeders[0] if feeders else make_feeder(models[0], inputs)
    fixed = next((f.batch for f in feeders if f.batch is not None), None)
    plan = load_scheduler(scheduler)
    timesteps = evaluations(plan, steps)
    meters, end = [ImageMeter() for _ in timesteps], ImageMeter()
    shown: list[list[Array]] = [[], []]
    for group in groups(samples, batch, fixed):
        walks = [
            trajectory(model.predict, feeder, plan, steps=steps, group=group, seed=seed)
            for model in models
        ]
        for meter, (left, right) in zip(meters, zip(*walks, strict=True), strict=True):
            meter.add(left.sample, right.sample)
        images = [_images(last.sample, decode) for last in (left, right)]
        end.add(*images)
        for row, found in zip(shown, images, strict=True):
            row += list(found[: max(0, columns - len(row))])
        progress("sample", group.first + group.images, samples)
    rows = [np.stack(row) for row in shown if row]
    drawable = bool(rows) and is_drawable(rows[0])
    return TrajectoryComparison(
        scheduler=type(plan).__name__,
        steps=steps,
        samples=samples,
        seed=seed,
        path=tuple(
            StepFidelity(t, meter.result()) for t, meter in zip(timesteps, meters, strict=True)
        ),
        end=end.result(),
        grid=base64.b64encode(image_grid(rows)).decode() if drawable else "",
    )


def add_to_report(bundle: Bundle | str | Path, comparison: TrajectoryComparison) -> Bundle:
    """Put a comparison into the report of a bundle, instead of the one that is there.

    `report.html`, `report.json` and their digests in the manifest change, and nothing else; the
    same comparison gives the same bytes.

    Raises:
        BundleError: The bundle is altered, or cannot be written.
    """
    opened = open_bundle(bundle.path if isinstance(bundle, Bundle) else bundle)
    return replace_report(opened, trajectory=comparison)


def _images(sample: Array, decode: Callable[[Array], Array] | None) -> Array:
    images = sample if decode is None else np.asarray(decode(sample))
    return np.clip(images, -1.0, 1.0)
