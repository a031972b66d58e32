"""The noise that every layer makes in every format that it may have, and what it then costs.

A layer's weights are rounded as quantize-weights does, codes have the parameters that
choose-qparams decides, and where the recipe corrects biases, the mean of each channel stays. What
several layers read becomes codes once: where there is a choice of formats for it, its noise is that
of all its readers, and counts with the first of these layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import overload

import numpy as np
from numpy.typing import NDArray

from edgeq.bit_choice import BitOption
from edgeq.bit_layers import BitLayer
from edgeq.bit_noise import Array, Arrays, Trial, float_runs, layer_noise, noise_task
from edgeq.graph import clone
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, format_steps, parse_steps, run_pipeline
from edgeq.recipe import QuantSpec
from edgeq.tasks import run_tasks

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Formats:
    """What may be chosen, and what it comes to for each layer.

    Attributes:
        layers: In graph order.
        options: Per layer, what each choice comes to: a rule of the recipe that names a format
            holds whatever is chosen.
        inputs: Per layer and option, the parameters of what it reads; None for an embedding.
        specs: Per layer and option, how its weights are quantized.
        own: Per layer, what the recipe makes of it as it is.
        kinds: Per option, the number of the format of what is read.
    """

    layers: tuple[BitLayer, ...]
    options: tuple[tuple[BitOption, ...], ...]
    inputs: tuple[tuple[QParams | None, ...], ...]
    specs: tuple[tuple[QuantSpec, ...], ...]
    own: tuple[BitOption, ...]
    kinds: tuple[int, ...]

    @property
    def sources(self) -> tuple[int, ...]:
        """Layers of equal number read codes that must have one format."""
        numbers: dict[object, int] = {}
        keys = [layer.source or layer for layer in self.layers]
        return tuple(numbers.setdefault(key, len(numbers)) for key in keys)

    def weight_bytes(self) -> Float64:
        """Return the bytes of the weights, (layers, options)."""
        rows = [
            [option.weight_bytes(layer.weight.size) for option in mine]
            for layer, mine in zip(self.layers, self.options, strict=True)
        ]
        return np.array(rows, np.float64)

    def bit_operations(self) -> Float64:
        """Return multiplications times the bits of both factors, (layers, options)."""
        rows = [
            [layer.macs * option.operations for option in mine]
            for layer, mine in zip(self.layers, self.options, strict=True)
        ]
        return np.array(rows, np.float64)


def formats(
    layers: Sequence[BitLayer],
    weights: Sequence[str],
    activations: Sequence[str],
    context: Context,
) -> Formats:
    """Return what the pairs of formats come to, the weights' the slower to change."""
    weighted = [_with_default(context, "weight", name) for name in weights]
    default = context.recipe.activation.qtype
    decided = {
        name: _decide(_with_default(context, "activation", name))
        for name in dict.fromkeys((*activations, default))
    }
    options, inputs, specs, own = [], [], [], []
    for layer in layers:
        inner = [_input(layer, decided[name]) for name in activations]
        mine = [(layer.spec(changed), x) for changed in weighted for x in inner]
        specs.append(tuple(spec for spec, _ in mine))
        inputs.append(tuple(x for _, x in mine))
        options.append(tuple(_option(spec, x) for spec, x in mine))
        own.append(_option(layer.spec(context), _input(layer, decided[default])))
    kinds = [kind for _ in weights for kind in range(len(activations))]
    return Formats(
        tuple(layers), tuple(options), tuple(inputs), tuple(specs), tuple(own), tuple(kinds)
    )


def _with_default(context: Context, role: str, qtype: str) -> Context:
    """Return the context with another default; the recipe's rules still hold."""
    spec = replace(getattr(context.recipe, role), qtype=qtype)
    if role == "weight":
        recipe = replace(context.recipe, weight=spec)
    else:
        recipe = replace(context.recipe, activation=spec)
    return replace(context, recipe=recipe)


def _decide(context: Context) -> dict[str, QParams]:
    """Return what choose-qparams decides for every value; the context stays as it is."""
    own = replace(context, qparams=dict(context.qparams), copies=dict(context.copies), notes=[])
    steps = parse_steps(context.recipe.quantize)
    chosen = [step for step in steps if step.name == "choose-qparams"]
    assert context.reference is not None
    run_pipeline(format_steps(chosen), clone(context.reference), own)
    return own.qparams | own.copies


def _input(layer: BitLayer, decided: Mapping[str, QParams]) -> QParams | None:
    return None if layer.x is None else decided[str(layer.x.name)]


def _option(spec: QuantSpec, x: QParams | None) -> BitOption:
    return BitOption(spec.qtype, "" if x is None else x.qtype.name)


def measure(found: Formats, context: Context, *, samples: int, loss: str) -> Float64:
    """Return the noise of every layer in every format, (layers, options).

    Args:
        found: What there is to choose from.
        context: Its first samples are what is measured on; its executor computes.
        samples: At most so many.
        loss: `mse` or `kl`: see `edgeq.bit_noise`.
    """
    sources, choice = found.sources, len(set(found.kinds)) > 1
    trials = []
    for place, layer in enumerate(found.layers):
        specs = tuple(dict.fromkeys(found.specs[place]))
        rounds = choice and sources.index(sources[place]) == place
        pairs = zip(found.specs[place], found.inputs[place], strict=True)
        mine = tuple(Trial(specs.index(spec), x if rounds else None) for spec, x in pairs)
        reads = all_reads(layer) if rounds else ()
        trials.append(LayerTrials(layer, specs, found.inputs[place][0], reads, mine))
    tasks = NoiseTasks(trials, context, samples)
    results = run_tasks(layer_noise, tasks, context, "measure layers")
    noise = np.array([result[loss] for result in results], np.float64)
    return np.where(np.isfinite(noise), noise, np.inf)


def all_reads(layer: BitLayer) -> tuple[tuple[str, int], ...]:
    """Return every input of a node that reads what the layer does."""
    if layer.x is None:
        return ()
    return tuple((str(node.name), index) for node, index in layer.x.uses())


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


class NoiseTasks(Sequence[Arrays]):
    """A task of `layer_noise` per layer, made when it is asked for: few are in memory."""

    def __init__(self, trials: Sequence[LayerTrials], context: Context, samples: int) -> None:
        """Run the float model on at most so many samples."""
        assert context.reference is not None
        self._trials, self._context, self._model = trials, context, context.reference
        steps = parse_steps(context.recipe.quantize)
        self._corrects = any(step.name == "correct-bias" for step in steps)
        feeds = [_as_float(feed) for feed in islice(context.samples, samples)]
        self._runs = float_runs(self._model, feeds)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._trials)

    @overload
    def __getitem__(self, place: int) -> Arrays: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Arrays]: ...

    def __getitem__(self, place: int | slice) -> Arrays | Sequence[Arrays]:
        """Return a task."""
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        mine = self._trials[place]
        layer = mine.layer
        rounded = [layer.rounded_weight(spec, mine.x, self._context) for spec in mine.specs]
        weights = [layer.weight, *rounded]
        return noise_task(
            self._model,
            weights,
            self._biases(layer, weights),
            layer.operands,
            mine.reads,
            mine.trials,
            self._runs,
        )

    def _biases(self, layer: BitLayer, weights: Sequence[Float32]) -> list[Float32] | None:
        """Return a bias for each weight, if they will be corrected; None: the layer's own."""
        if not self._corrects:
            return None
        biases = [layer.corrected_bias(weight, self._context) for weight in weights]
        found = [bias for bias in biases if bias is not None]
        return found if len(found) == len(weights) else None


def _as_float(feed: Arrays) -> dict[str, Array]:
    """Return the feed with camera frames as float32."""
    return {n: a.astype(np.float32) if a.dtype == np.uint8 else a for n, a in feed.items()}
