"""Denoising as an iteration of a graph, for whoever learns along it.

def mine(inputs):
return DiffusionIteration(inputs, "scheduler_config.json", steps=25)
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.diffusion.noise_model import NOTHING, Inputs, NoiseModel, make_feeder
from edgeq.diffusion.schedulers import Descent, load_scheduler
from edgeq.errors import DataError
from edgeq.feeds import InputSpec
from edgeq.learning.iteration import Tensors


class DiffusionIteration:
    """A noise model with its scheduler; the state is the noisy sample.

    Attributes:
        runs: Evaluations of the model.
    """

    def __init__(
        self,
        inputs: tuple[InputSpec, ...],
        scheduler: object,
        *,
        steps: int = 50,
        shape: tuple[int, ...] | None = None,
        conditions: Mapping[str, NDArray[np.generic]] = NOTHING,
        sample: str = "sample",
        timestep: str = "timestep",
    ) -> None:
        """Hold the scheduler against the model.

        Args:
            inputs: Of the model.
            scheduler: As `load_scheduler` takes it; one whose step depends on its arguments alone.
            steps: Inference steps.
            shape: Of one image without the batch axis, where the model does not say.
            conditions: Further inputs by name, sample axis first.
            sample: Name of the input that takes noisy images.
            timestep: Name of the input that takes the timestep.

        Raises:
            DataError: They do not fit, or the scheduler remembers former steps or draws noise.
        """
        names = Inputs(sample=sample, timestep=timestep, shape=shape, conditions=conditions)
        self._feeder = make_feeder(NoiseModel(lambda feeds: feeds[sample], inputs), names)
        self._sample = sample
        self._descent = Descent(load_scheduler(scheduler), steps, 0)
        self.runs = len(self._descent.timesteps)
        self._refuse_memory()

    def _refuse_memory(self) -> None:
        noise = torch.from_numpy(self.start(1, 0).numpy())
        first, second = (self.advance(noise, {"": noise * 0.5}, 1 % self.runs) for _ in range(2))
        if not torch.equal(first, second):
            raise DataError(
                f"{self._descent.name} remembers former steps or draws noise: learning repeats"
                " steps, and needs a scheduler like DDIMScheduler, which does neither"
            )

    def start(self, count: int, seed: int) -> Tensor:
        """Return noise, `(count, ...)`."""
        generator = np.random.default_rng(seed)
        noise = generator.standard_normal((count, *self._feeder.shape), np.float32)
        return torch.from_numpy(self._descent.start(noise))

    def feeds(self, state: Tensor, number: int) -> dict[str, Tensor]:
        """Return the sample as the model takes it, its timestep and the conditions."""
        timestep = self._descent.timesteps[number]
        still = np.zeros(tuple(state.shape), np.float32)
        found = self._feeder.feeds(still, timestep, 0)
        tensors = {n: torch.from_numpy(np.asarray(a)).to(state.device) for n, a in found.items()}
        return {**tensors, self._sample: self._descent.scaled(state, number)}

    def advance(self, state: Tensor, outputs: Tensors, number: int) -> Tensor:
        """Return the scheduler's next sample; the model's first output is its prediction."""
        return self._descent.advance(next(iter(outputs.values())), state, number)


def ddim(inputs: tuple[InputSpec, ...]) -> DiffusionIteration:
    """Return 50 steps of DDIM with the settings of `DDPMScheduler(num_train_timesteps=1000)`."""
    return DiffusionIteration(inputs, "DDIMScheduler", steps=50)
