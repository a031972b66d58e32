"""Schedulers of diffusers: which timesteps there are, and what each makes of predicted noise.

The only module that imports diffusers. torch's tensors live here alone: arrays come in and go out.
"""

import copy
import importlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError, UnknownNameError, suggest
from edgeq.user_code import find_function

Float32 = NDArray[np.float32]


class Scheduler(Protocol):
    """What edgeq needs of a scheduler; those of diffusers have it.

    Attributes:
        timesteps: A tensor `(evaluations,)` of what the model is told, set by `set_timesteps`.
    """

    timesteps: Any

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Prepare so many steps."""

    def step(self, model_output: Any, timestep: Any, sample: Any, *, return_dict: bool) -> Any:  # noqa: ANN401  # tensors
        """Return a tuple, in it the sample of the next step."""


def load_scheduler(source: object) -> Scheduler:
    """Return a scheduler.

    Args:
        source: A `scheduler_config.json`, or the folder that holds it; the name of a class of
            diffusers, for its default settings (`DDIMScheduler`); `MODULE:FUNCTION` that returns
            one; or a scheduler.

    Raises:
        DataError: diffusers is not installed, or this is no scheduler.
        UnknownNameError: diffusers has no scheduler of this name.
    """
    if not isinstance(source, str | os.PathLike):
        return _checked(source, type(source).__name__)
    text = os.fspath(source)
    path = Path(text)
    if path.is_dir():
        path = path / "scheduler_config.json"
    if path.suffix == ".json":
        return _from_config(path)
    if ":" in text:
        function = find_function(text)
        try:
            made = function()
        except Exception as error:  # the user's code can raise anything
            raise DataError(f"{text} failed: {type(error).__name__}: {error}") from error
        return _checked(made, text)
    return _build(text, {}, text)


def _from_config(path: Path) -> Scheduler:
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise DataError(f"{path}: no scheduler's settings: `_class_name` is missing")
    return _build(name, config, str(path))


def _build(name: str, config: dict[str, object], where: str) -> Scheduler:
    diffusers = _diffusers()
    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    if name not in known:
        raise UnknownNameError(
            f"{where}: diffusers has no scheduler {name!r}{suggest(name, known)}; give such a"
            " name, a scheduler_config.json, or MODULE:FUNCTION"
        )
    try:
        return _checked(getattr(diffusers, name).from_config(config), where)
    except Exception as error:  # diffusers names no exceptions
        raise DataError(f"{where}: {name} cannot be made: {error}") from error


def _diffusers() -> Any:  # noqa: ANN401  # diffusers has no stubs
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise DataError(f"{error}; schedulers need `pip install edgeq[diffusers]`") from error


def _checked(scheduler: Any, where: str) -> Scheduler:  # noqa: ANN401  # whatever was given
    if not all(callable(getattr(scheduler, name, None)) for name in ("set_timesteps", "step")):
        raise DataError(
            f"{where} is {type(scheduler).__name__}, no scheduler: give one of diffusers', or an"
            " object with set_timesteps(), timesteps and step()"
        )
    found: Scheduler = scheduler
    return found


class Descent:
    """One way down from noise to images, by a scheduler of its own.

    What is random in a step is drawn anew from `seed` and the step's number, whichever generator
    the scheduler uses: two descents with the same seed and shapes meet the same noise.

    Attributes:
        name: The scheduler's class.
        timesteps: What the model is told at each evaluation; some schedulers evaluate more often
            than there are steps.
    """

    def __init__(self, scheduler: Scheduler, steps: int, seed: int) -> None:
        """Copy `scheduler`, which stays as it is, and set its steps.

        Raises:
            DataError: The scheduler refuses so many steps, or torch is not installed.
        """
        try:
            self._torch = importlib.import_module("torch")
        except ImportError as error:
            raise DataError(f"{error}; schedulers need `pip install edgeq[diffusers]`") from error
        self.name, self._seed = type(scheduler).__name__, seed
        self._scheduler = copy.deepcopy(scheduler)
        try:
            self._scheduler.set_timesteps(steps)
        except Exception as error:  # diffusers names no exceptions
            raise DataError(f"{self.name} refuses {steps} steps: {error}") from error
        self.timesteps = tuple(float(t) for t in self._scheduler.timesteps)

    def start(self, noise: Float32) -> Float32:
        """Return the first sample, of standard normal `noise`."""
        sigma = float(getattr(self._scheduler, "init_noise_sigma", 1.0))
        return noise * np.float32(sigma)

    def model_input(self, sample: Float32, number: int) -> Float32:
        """Return what the model is fed at evaluation `number`: most schedulers' sample itself."""
        scale = getattr(self._scheduler, "scale_model_input", None)
        if scale is None:
            return sample
        return self._array(scale(self._tensor(sample), self._scheduler.timesteps[number]))

    def step(self, predicted: Float32, sample: Float32, number: int) -> Float32:
        """Return the sample after evaluation `number`.

        Args:
            predicted: What the model made of `model_input(sample, number)`.
            sample: `(images, ...)`.
            number: Of the evaluation; they come in order.

        Raises:
            DataError: The scheduler fails on what the model predicted.
        """
        torch = self._torch
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.random.default_generator.manual_seed(self._seed + number)
            try:
                timestep = self._scheduler.timesteps[number]
                found = self._scheduler.step(
                    self._tensor(predicted), timestep, self._tensor(sample), return_dict=False
                )
            except Exception as error:  # diffusers names no exceptions
                raise DataError(
                    f"{self.name} fails at timestep {self.timesteps[number]:g} on a prediction of"
                    f" shape {list(predicted.shape)}, samples {list(sample.shape)}: {error}"
                ) from error
            return self._array(found[0])

    def scaled(self, sample: Any, number: int) -> Any:  # noqa: ANN401  # tensors
        """Do what `model_input` does, on a tensor."""
        scale = getattr(self._scheduler, "scale_model_input", None)
        return sample if scale is None else scale(sample, self._scheduler.timesteps[number])

    def advance(self, predicted: Any, sample: Any, number: int) -> Any:  # noqa: ANN401  # tensors
        """Do what `step` does, on tensors, and with gradients."""
        timestep = self._scheduler.timesteps[number]
        return self._scheduler.step(predicted, timestep, sample, return_dict=False)[0]

    def _tensor(self, array: Float32) -> Any:  # noqa: ANN401  # torch has no stubs here
        return self._torch.from_numpy(np.array(array, np.float32))

    def _array(self, tensor: Any) -> Float32:  # noqa: ANN401  # as above
        return np.asarray(tensor.detach().numpy(), np.float32)
