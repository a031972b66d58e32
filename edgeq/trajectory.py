"""How far the images that two models draw from the same noise are from each other.

`SQNR = 10 log10(sum r^2 / sum (a - r)^2)` over all images. `PSNR = 10 log10(4 / mean (a - r)^2)` of
each image, then the mean over images: images lie in [-1, 1], a range of 2, and those at the end are
clipped to it; samples on the way are not.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.fidelity import sqnr_db

Array = NDArray[Any]
RANGE = 2.0
LEAST_ERROR = 2.0**-48  # the square of float32's step below 1: no image is told apart finer


@dataclass(frozen=True)
class ImageFidelity:
    """How far images, or samples on the way to them, are from the float model's.

    Attributes:
        sqnr_db: None where they are exact, or the float model's are all zero.
        psnr_db: The mean over images; at most 150.5 dB.
        worst_db: That of the worst image.
    """

    sqnr_db: float | None
    psnr_db: float
    worst_db: float


@dataclass(frozen=True)
class StepFidelity:
    """The samples behind one evaluation of the models.

    Attributes:
        timestep: What the models were told.
        fidelity: Of the samples that the scheduler made of what they predicted.
    """

    timestep: float
    fidelity: ImageFidelity


@dataclass(frozen=True, kw_only=True)
class TrajectoryComparison:
    """Images drawn by a float and a quantized model from the same noise.

    Attributes:
        scheduler: Name of its class.
        steps: Inference steps.
        samples: Images drawn.
        seed: Of the noise.
        path: By evaluation, from noise to images.
        end: The images, clipped to [-1, 1].
        grid: The first of them as a PNG in base64: above by the float model, below by the other;
            empty where they have neither one channel nor three.
    """

    scheduler: str
    steps: int
    samples: int
    seed: int
    path: tuple[StepFidelity, ...]
    end: ImageFidelity
    grid: str = ""

    @property
    def png(self) -> bytes:
        """The grid's bytes."""
        return base64.b64decode(self.grid)


class ImageMeter:
    """Accumulates the fidelity of images; O(1) memory."""

    def __init__(self) -> None:
        self._signal = self._noise = self._decibels = 0.0
        self._worst = np.inf
        self._count = 0

    def add(self, reference: Array, actual: Array) -> None:
        """Compare some images, `(images, ...)`, with the float model's."""
        assert reference.shape == actual.shape, f"{reference.shape}, {actual.shape}"
        wide = reference.astype(np.float64).reshape(len(reference), -1)
        errors = (actual.astype(np.float64).reshape(wide.shape) - wide) ** 2
        decibels = 10 * np.log10(RANGE**2 / np.maximum(errors.mean(1), LEAST_ERROR))
        self._signal += float((wide * wide).sum())
        self._noise += float(errors.sum())
        self._decibels += float(decibels.sum())
        self._worst = min(self._worst, float(decibels.min()))
        self._count += len(wide)

    def result(self) -> ImageFidelity:
        """Return what was found."""
        sqnr = sqnr_db(self._signal, self._noise)
        return ImageFidelity(sqnr, self._decibels / self._count, self._worst)
