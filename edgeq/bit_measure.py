"""The noise that rounding a layer makes, in every way that it may be rounded.

A layer's weights are rounded as quantize-weights does, and where the recipe corrects biases, the
mean of each output channel stays. What several layers read becomes codes once: where there is a
choice of formats for it, its noise is that of all its readers, and counts with the first of these
layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.bit_formats import Formats
from edgeq.bit_layers import BitLayer
from edgeq.bit_noise import (
    Array,
    Arrays,
    Trial,
    float_runs,
    layer_noise,
    noise_task,
    with_constants,
)
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, parse_steps
from edgeq.recipe import QuantSpec
from edgeq.tasks import MadeTasks, run_tasks

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerTrials:
    """What is tried on a layer.

    Attributes:
        layer: The layer.
        specs: How its weights are rounded, in as many ways.
        x: Parameters of what it reads; None for an embedding.
        reads: Inputs of nodes, (name, index), that are rounded where a trial says so.
        trials: What to try; they count `specs`.
    """

    layer: BitLayer
    specs: tuple[QuantSpec, ...]
    x: QParams | None
    reads: tuple[tuple[str, int], ...]
    trials: tuple[Trial, ...]


class NoiseMeter:
    """Measures layers on the first samples of a context, with its executor."""

    def __init__(self, context: Context, samples: int) -> None:
        """Run the float model on at most so many samples."""
        assert context.reference is not None
        self._context, self._model = context, context.reference
        steps = parse_steps(context.recipe.quantize)
        self._corrects = any(step.name == "correct-bias" for step in steps)
        feeds = [_as_float(feed) for feed in islice(context.samples, samples)]
        self._runs = float_runs(self._model, feeds)
        self._rounded: dict[tuple[str, QuantSpec | None], tuple[Float32, Float32 | None]] = {}

    def measure(
        self, trials: Sequence[LayerTrials], model: ir.Model | None = None
    ) -> list[dict[str, Array]]:
        """Return for each layer what `layer_noise` does.

        Args:
            trials: A layer each.
            model: The float model with other constants, where it is not as it was.
        """
        model = self._model if model is None else model
        tasks = MadeTasks([partial(self.task, one, model) for one in trials])
        return run_tasks(layer_noise, tasks, self._context, "measure layers")

    def rounded(
        self, layer: BitLayer, spec: QuantSpec | None, x: QParams | None
    ) -> tuple[Float32, Float32 | None]:
        """Return a layer's weight in a format, and its bias; None as spec: the float ones.

        The bias is None where it stays as it is.
        """
        key = layer.name, spec
        if key not in self._rounded:
            weight = layer.weight
            if spec is not None:
                weight = layer.rounded_weight(spec, x, self._context)
            bias = layer.corrected_bias(weight, self._context) if self._corrects else None
            self._rounded[key] = weight, bias
        return self._rounded[key]

    def rounded_model(self, found: Formats, chosen: Sequence[int]) -> ir.Model:
        """Return the float model with the weights of all layers in the chosen formats."""
        constants: dict[tuple[str, int], Float32] = {}
        for place, (layer, option) in enumerate(zip(found.layers, chosen, strict=True)):
            weight, bias = self.rounded(layer, found.specs[place][option], found.inputs[place][0])
            constants |= dict.fromkeys(layer.operands, weight)
            if bias is not None:
                constants[layer.name, 2] = bias
        return with_constants(self._model, constants)

    def task(self, trials: LayerTrials, model: ir.Model) -> Arrays:
        """Return the task of a layer."""
        layer = trials.layer
        made = [self.rounded(layer, spec, trials.x) for spec in (None, *trials.specs)]
        biases = [bias for _, bias in made if bias is not None]
        return noise_task(
            model,
            [weight for weight, _ in made],
            biases if len(biases) == len(made) else None,
            layer.operands,
            trials.reads,
            trials.trials,
            self._runs,
        )


def option_trials(found: Formats) -> list[LayerTrials]:
    """Return a trial for each option of each layer, in order."""
    sources, choice = found.sources, len(set(found.kinds)) > 1
    trials = []
    for place, layer in enumerate(found.layers):
        specs = tuple(dict.fromkeys(found.specs[place]))
        rounds = choice and sources.index(sources[place]) == place
        pairs = zip(found.specs[place], found.inputs[place], strict=True)
        mine = tuple(Trial(specs.index(spec), x if rounds else None) for spec, x in pairs)
        reads = _all_reads(layer) if rounds else ()
        trials.append(LayerTrials(layer, specs, found.inputs[place][0], reads, mine))
    return trials


def losses(results: Sequence[Mapping[str, Array]], loss: str) -> Float64:
    """Return one kind of noise, (layers, trials); infinite where the outputs are not finite."""
    noise = np.array([result[loss] for result in results], np.float64)
    return np.where(np.isfinite(noise), noise, np.inf)


def _all_reads(layer: BitLayer) -> tuple[tuple[str, int], ...]:
    """Return every input of a node that reads what the layer does."""
    if layer.x is None:
        return ()
    return tuple((str(node.name), index) for node, index in layer.x.uses())


def _as_float(feed: Arrays) -> dict[str, Array]:
    """Return the feed with camera frames as float32."""
    return {n: a.astype(np.float32) if a.dtype == np.uint8 else a for n, a in feed.items()}
