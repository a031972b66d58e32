"""The model that predicts noise: a file, a bundle or a function, all called in one way."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.bundle import Bundle, open_bundle
from edgeq.errors import DataError, suggest
from edgeq.feeds import Feed, InputSpec, input_specs
from edgeq.opening import open_model
from edgeq.runtime import make_session, run

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Predict = Callable[[Mapping[str, Array]], Array]
THREADS = 2
NOTHING: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """What predicts noise.

    Attributes:
        predict: Takes feeds, returns the prediction: the model's first output, float32.
        inputs: What it takes; None for a function, which takes all that it is given.
    """

    predict: Predict
    inputs: tuple[InputSpec, ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """How a sample, a timestep and what else there is become feeds.

    Attributes:
        sample: Name of the input that takes noisy images.
        timestep: Name of the input that takes the timestep.
        shape: Of one image, without the batch axis; None: the model's.
        conditions: Further inputs by name, sample axis first: classes, embeddings of texts. Image i
            of all gets row i, and where there are fewer rows they come again.
    """

    sample: str = "sample"
    timestep: str = "timestep"
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Array] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, eq=False)
class Feeder:
    """Makes feeds for one model.

    Attributes:
        inputs: As the user gave them.
        shape: Of one image.
        batch: How many images the model takes at once, where it is fixed.
        timestep: The dtype, and the shape where it does not follow the batch.
    """

    inputs: Inputs
    shape: tuple[int, ...]
    batch: int | None
    timestep: InputSpec

    def feeds(self, sample: Float32, timestep: float, first: int) -> Feed:
        """Return the feeds for the images from number `first` on.

        Args:
            sample: `(images, *shape)`.
            timestep: As the scheduler has it.
            first: Number of the first image among all.

        Raises:
            DataError: The model takes integers, and the timestep is none.
        """
        spec, images = self.timestep, len(sample)
        if spec.dtype.kind in "iu" and timestep != round(timestep):
            raise DataError(
                f"the scheduler's timestep {timestep:g} is no integer, and the input"
                f" {spec.name!r} takes {spec.dtype}: choose a scheduler or a `timestep_spacing`"
                " with whole timesteps, or export the model with float timesteps"
            )
        assert spec.shape is not None
        sizes = tuple(images if size is None else size for size in spec.shape)
        feed: Feed = {self.inputs.sample: sample}
        feed[spec.name] = np.full(sizes, timestep, spec.dtype)
        for name, rows in self.inputs.conditions.items():
            feed[name] = np.take(rows, np.arange(first, first + images) % len(rows), axis=0)
        return feed


def open_noise_model(source: object) -> NoiseModel:
    """Return what predicts noise.

    Args:
        source: A bundle or its folder, anything that `edgeq.opening.open_model` takes, or a
            function of feeds that returns the prediction.

    Raises:
        EdgeqError: It cannot be opened.
    """
    if isinstance(source, Bundle):
        return _of_bundle(source)
    if callable(source):
        function: Callable[..., object] = source
        return NoiseModel(lambda feeds: np.asarray(function(feeds), np.float32))
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return _of_bundle(open_bundle(source))
    model = open_model(source)
    session, name = make_session(model, threads=THREADS), str(model.graph.outputs[0].name)
    return NoiseModel(lambda feeds: run(session, feeds)[name], input_specs(model))


def _of_bundle(bundle: Bundle) -> NoiseModel:
    session = bundle.session(threads=THREADS)
    name = bundle.manifest.outputs[0].name

    def predict(feeds: Mapping[str, Array]) -> Array:
        outputs = run(session, bundle.quantize_inputs(feeds))
        return bundle.dequantize_outputs({name: outputs[name]})[name]

    specs = tuple(
        InputSpec(
            item.name,
            np.dtype(np.float32 if item.scale is not None else item.dtype),
            None
            if item.shape is None
            else tuple(d if isinstance(d, int) else None for d in item.shape),
        )
        for item in bundle.manifest.inputs
    )
    return NoiseModel(predict, specs)


def make_feeder(model: NoiseModel, inputs: Inputs) -> Feeder:
    """Hold what the user gave against the model's inputs.

    Raises:
        DataError: An input has another name, or is missing, or the shape of an image is not known.
    """
    for name, rows in inputs.conditions.items():
        if not len(rows):
            raise DataError(f"conditions: array {name!r} has no rows; give at least one")
    specs = model.inputs
    if specs is None:
        if inputs.shape is None:
            raise DataError("the shape of one image is not known; say shape=(channels, h, w)")
        timestep = InputSpec(inputs.timestep, np.dtype(np.int64), (None,))
        return Feeder(inputs, tuple(inputs.shape), None, timestep)
    known = {spec.name: spec for spec in specs}
    for name in (inputs.sample, inputs.timestep, *inputs.conditions):
        if name not in known:
            raise DataError(
                f"the model has no input {name!r}{suggest(name, list(known))}; its inputs:"
                f" {', '.join(known)}; say which takes the noisy images, which the timestep"
            )
    given = {inputs.sample, inputs.timestep, *inputs.conditions}
    missing = [name for name in known if name not in given]
    if missing:
        raise DataError(f"nothing to feed the input {missing[0]!r} with: give it as a condition")
    taken, spec = known[inputs.sample].shape, known[inputs.timestep]
    batch = taken[0] if taken else None
    if spec.shape is None:
        spec = InputSpec(spec.name, spec.dtype, (None,))
    return Feeder(inputs, _image_shape(inputs, taken), batch, spec)


def _image_shape(inputs: Inputs, taken: tuple[int | None, ...] | None) -> tuple[int, ...]:
    text = "?" if taken is None else list(taken)
    if inputs.shape is None:
        sizes = (None,) if taken is None else taken[1:]
        shape = tuple(size for size in sizes if size is not None)
        if len(shape) < len(sizes):
            raise DataError(
                f"the input {inputs.sample!r} is {text}: say the shape of one image,"
                " shape=(channels, h, w)"
            )
        return shape
    shape = tuple(inputs.shape)
    if taken is not None and (
        len(shape) != len(taken) - 1
        or any(size not in (None, n) for size, n in zip(taken[1:], shape, strict=True))
    ):
        raise DataError(f"images of shape {list(shape)} do not fit the input's {text}")
    return shape
