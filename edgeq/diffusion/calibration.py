"""Calibration feeds from where a diffusion model works: along its own sampling trajectories.

A model is evaluated at every timestep equally often, on samples that range from noise to images.
Feeds are spread over the timesteps in the same way: image i is taken at the steps k with
`(i + k) % stride == 0`, so that `stride` images after each other give one feed of every step.
Neighbours on one trajectory are nearly the same, so none gives more than `FEEDS_OF_AN_IMAGE`.

The images of a group go down together, and the feeds that they leave are kept until they are done:
then they come in an order whose every beginning is spread over the timesteps too (multiples of the
golden ratio), for whoever looks at the first feeds only. Memory is for one group.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.diffusion.noise_model import NOTHING, Inputs, make_feeder, open_noise_model
from edgeq.diffusion.schedulers import load_scheduler
from edgeq.diffusion.trajectories import Group, Step, evaluations, groups, trajectory
from edgeq.errors import DataError
from edgeq.feeds import Feed

FEEDS_OF_AN_IMAGE = 10
BATCH = 10  # images that go down together
GOLDEN = (5**0.5 - 1) / 2


def trajectory_feeds(
    model: object,
    scheduler: object,
    *,
    samples: int = 200,
    steps: int = 50,
    seed: int = 0,
    batch: int = BATCH,
    shape: tuple[int, ...] | None = None,
    conditions: Mapping[str, NDArray[Any]] = NOTHING,
    sample: str = "sample",
    timestep: str = "timestep",
) -> Iterator[Feed]:
    """Return feeds from the sampling trajectories of a float model, uniform over the timesteps.

    Args:
        model: Predicts the noise (or what the scheduler takes): an `.onnx` file, `MODULE:FACTORY`,
            a model, or a function of feeds.
        scheduler: As `load_scheduler` takes it: a scheduler of diffusers, a
            `scheduler_config.json`, the name of a class, or `MODULE:FUNCTION`.
        samples: Feeds to yield, of one image each, or of as many as a model fixes its batch at.
            Multiples of the scheduler's evaluations are exactly uniform.
        steps: Inference steps of a trajectory.
        seed: Of the noise that images begin with, and of the scheduler's.
        batch: Images that go down together, where the model does not fix that.
        shape: Of one image without the batch axis, where the model does not say.
        conditions: Further inputs by name, sample axis first; image i gets row i, again from the
            first where there are fewer.
        sample: Name of the input that takes noisy images.
        timestep: Name of the input that takes the timestep.

    Returns:
        An iterator; what was wrong with the arguments was raised before.

    Raises:
        EdgeqError: The model or the scheduler cannot be used, or do not fit each other.
    """
    if samples < 1:
        raise DataError(f"{samples} samples are none: give at least 1")
    noise_model, plan = open_noise_model(model), load_scheduler(scheduler)
    inputs = Inputs(sample=sample, timestep=timestep, shape=shape, conditions=conditions)
    feeder = make_feeder(noise_model, inputs)
    count = len(evaluations(plan, steps))
    stride = -(-count // FEEDS_OF_AN_IMAGE)
    width = 1 if feeder.batch is None else feeder.batch  # images of a feed
    images = width * -(-samples // (count // stride))
    found = (
        feed
        for group in groups(images, batch, feeder.batch)
        for feed in _spread(
            trajectory(noise_model.predict, feeder, plan, steps=steps, group=group, seed=seed),
            group,
            width,
            stride,
        )
    )
    return islice(found, samples)


def _spread(walk: Iterable[Step], group: Group, width: int, stride: int) -> Iterator[Feed]:
    """Yield the feeds that a group leaves, any first ones of them spread over the timesteps."""
    kept = [
        _rows(step.feeds, group.images, row, width)
        for number, step in enumerate(walk)
        for row in range(0, group.images, width)
        if ((group.first + row) // width + number) % stride == 0
    ]
    # The ranks of a sequence that fills [0, 1) evenly from its first terms on.
    for place in np.argsort(np.argsort(np.arange(len(kept)) * GOLDEN % 1)):
        yield kept[place]


def _rows(feeds: Feed, images: int, row: int, width: int) -> Feed:
    """Return the feed of a few images; arrays that are not per image stay whole."""
    return {
        name: array[row : row + width].copy() if array.ndim and len(array) == images else array
        for name, array in feeds.items()
    }
