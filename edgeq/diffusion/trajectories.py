"""Trajectories: what a model is fed, and what becomes of an image, from noise to the last step.

The noise of group n comes from `numpy.random.default_rng([seed, n])`, and that of the scheduler
from a number drawn there: the same arguments give the same trajectories.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.diffusion.noise_model import Feeder, Predict
from edgeq.diffusion.schedulers import Descent, Scheduler
from edgeq.errors import DataError
from edgeq.feeds import Feed

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Images that go down together.

    Attributes:
        number: Of the group: it decides the noise.
        first: Number of its first image among all.
        images: How many there are.
    """

    number: int
    first: int
    images: int


@dataclass(frozen=True, eq=False)
class Step:
    """One evaluation of the model on a group.

    Attributes:
        timestep: What the model was told.
        feeds: What it was fed.
        sample: What the scheduler made of its prediction, `(images, ...)`.
    """

    timestep: float
    feeds: Feed
    sample: Float32


def groups(images: int, batch: int, fixed: int | None) -> Iterator[Group]:
    """Cut images into groups; those of a model that fixes its batch are all of that size.

    Raises:
        DataError: There are none, or they do not fill the model's batches.
    """
    if images < 1 or batch < 1:
        raise DataError(f"{images} images in batches of {batch}: give at least one of each")
    if fixed is not None and images % fixed:
        raise DataError(
            f"{images} images do not fill batches of {fixed}, which the model takes at once; give"
            " a multiple, or export the model with a symbolic batch"
        )
    size = batch if fixed is None else fixed
    for number, first in enumerate(range(0, images, size)):
        yield Group(number, first, min(size, images - first))


def evaluations(scheduler: Scheduler, steps: int) -> tuple[float, ...]:
    """Return the timesteps at which the model is evaluated.

    Raises:
        DataError: There are none, or the scheduler refuses so many steps.
    """
    if steps < 1:
        raise DataError(f"{steps} steps are none: give at least 1")
    return Descent(scheduler, steps, 0).timesteps


def trajectory(
    predict: Predict, feeder: Feeder, scheduler: Scheduler, *, steps: int, group: Group, seed: int
) -> Iterator[Step]:
    """Yield every evaluation on the way of one group of images.

    Raises:
        DataError: The prediction has another shape than the images, or is not finite, or the
            scheduler fails.
    """
    generator = np.random.default_rng([seed, group.number])
    noise = generator.standard_normal((group.images, *feeder.shape), np.float32)
    descent = Descent(scheduler, steps, int(generator.integers(2**62)))
    sample = descent.start(noise)
    for number, timestep in enumerate(descent.timesteps):
        feeds = feeder.feeds(descent.model_input(sample, number), timestep, group.first)
        predicted = predict(feeds)
        if not np.isfinite(predicted).all():
            raise DataError(f"the model predicts NaN or an infinity at timestep {timestep:g}")
        sample = descent.step(np.asarray(predicted, np.float32), sample, number)
        yield Step(timestep, feeds, sample)
