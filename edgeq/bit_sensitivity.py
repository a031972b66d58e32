"""Which layers lose most: each is quantized alone, as the recipe says, and ranked.

The noise of a layer is what its rounding does to the outputs of the float model
(`edgeq.bit_noise`): of its weights alone, of what it reads alone, and of both.
"""

import json
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path

import numpy as np

from edgeq.bit_choice import (
    ACTIVATION_FORMATS,
    BYTE,
    WEIGHT_FORMATS,
    check_formats,
    stored_bits,
)
from edgeq.bit_formats import formats
from edgeq.bit_latency import measure_latencies, write_latencies
from edgeq.bit_layers import find_bit_layers
from edgeq.bit_measure import LayerTrials, NoiseMeter
from edgeq.bit_noise import Trial
from edgeq.compile import open_calibrated
from edgeq.errors import ModelError
from edgeq.numerics.qtype import FORMATS
from edgeq.request import CompileRequest, Json, Progress, silent

SAMPLES = 32  # the noise of a layer varies little from sample to sample
_LEAST = 1e-30


@dataclass(frozen=True)
class LayerNoise:
    """What quantizing one layer alone does to the outputs, noise power over signal power.

    Attributes:
        layer: Name of the node.
        op_type: Conv, Gemm, MatMul, or Gather for an embedding.
        weight: Format of its weights.
        activation: Format of the codes that it reads; empty for an embedding.
        noise: Of both.
        weight_noise: Of its weights alone.
        activation_noise: Of what it reads alone; 0 for an embedding.
        kl: Divergence of the classes, where the last axis of an output holds their scores, in nats.
        maker: Name of the node whose rule gives what it reads its format; empty for an embedding.
    """

    layer: str
    op_type: str
    weight: str
    activation: str
    noise: float
    weight_noise: float
    activation_noise: float
    kl: float
    maker: str

    @property
    def sqnr_db(self) -> float:
        """Signal over noise, with this layer alone quantized."""
        return decibels(self.noise)

    @property
    def remedy(self) -> str:
        """What a rule of the recipe would change, as TOML: what is narrow and costs most first."""
        narrow_weight = _is_narrow(self.weight)
        narrow_input = bool(self.activation) and _is_narrow(self.activation)
        if narrow_weight and (not narrow_input or self.weight_noise >= self.activation_noise):
            return _rule(self.layer, 'weight.qtype = "int8"')
        if narrow_input:
            return _rule(self.maker, 'activation.qtype = "uint8"')
        return _rule(self.layer, "keep_float = true")


@dataclass(frozen=True)
class Sensitivity:
    """The layers of a model, the one that loses most first.

    Attributes:
        recipe: Name of the recipe.
        samples: How many samples they were measured on.
        layers: Of equal ones, in graph order.
    """

    recipe: str
    samples: int
    layers: tuple[LayerNoise, ...]

    @property
    def sqnr_db(self) -> float:
        """What all of them together come to, if their noise adds up."""
        return decibels(sum(layer.noise for layer in self.layers))

    def to_json(self, worst: int) -> Json:
        """Return the object that `sensitivity --json` prints, with rules for the worst layers."""
        return {
            "recipe": self.recipe,
            "samples": self.samples,
            "sqnr_db": self.sqnr_db,
            "layers": [asdict(layer) | {"sqnr_db": layer.sqnr_db} for layer in self.layers],
            "rules": self.rules(worst),
        }

    def rules(self, worst: int) -> str:
        """Return rules for a recipe, as TOML, that give the worst layers a higher precision."""
        return "\n".join(layer.remedy for layer in self.layers[:worst])


def decibels(noise: float) -> float:
    """Return signal over noise, from noise over signal.

    >>> decibels(0.001)
    30.0
    """
    return -10 * float(np.log10(max(noise, _LEAST)))


@dataclass(frozen=True)
class Timing:
    """Layers are to be timed too.

    Attributes:
        path: Where what each layer takes in each format is written, for `plan-bits`.
        weights: Formats of weights.
        activations: Formats of what layers read.
    """

    path: Path
    weights: tuple[str, ...] = ("int4", "int8")
    activations: tuple[str, ...] = ("uint8",)

    def __post_init__(self) -> None:
        """Refuse formats that there are not.

        Raises:
            RecipeError: One of them is none.
        """
        check_formats("--weights", self.weights, WEIGHT_FORMATS)
        check_formats("--activations", self.activations, ACTIVATION_FORMATS)


def sensitivity(
    request: CompileRequest, progress: Progress = silent, timing: Timing | None = None
) -> Sensitivity:
    """Quantize one layer at a time.

    Args:
        request: As for a dry run of `compile`.
        progress: Told how far it is.
        timing: Time each layer too, on ONNX Runtime's CPU provider here.

    Raises:
        ModelError: No layer would be quantized.
        EdgeqError: The user must change something.
    """
    with open_calibrated(request, progress) as context:
        assert context.reference is not None and context.calibration is not None
        layers = find_bit_layers(context.reference, context)
        if not layers:
            raise ModelError("no layer of this model has weights that this recipe would quantize")
        if timing is not None:
            timed = formats(layers, timing.weights, timing.activations, context)
            write_latencies(timing.path, measure_latencies(timed, context))
        own = context.recipe
        found = formats(layers, [own.weight.qtype], [own.activation.qtype], context)
        trials = [
            LayerTrials(
                layer,
                specs,
                x,
                () if x is None else ((layer.name, 0),),
                (Trial(0, x), Trial(0, None), Trial(None, x)),
            )
            for layer, specs, (x,) in zip(found.layers, found.specs, found.inputs, strict=True)
        ]
        results = NoiseMeter(context, SAMPLES).measure(trials)
        rows = []
        for layer, option, result in zip(layers, found.own, results, strict=True):
            noise = [float(value) for value in result["mse"]]
            maker = "" if layer.maker is None else str(layer.maker.name)
            rows.append(
                LayerNoise(
                    layer.name,
                    layer.node.op_type,
                    option.weight,
                    option.activation,
                    noise[0],
                    noise[1],
                    noise[2] if option.activation else 0.0,
                    float(result["kl"][0]),
                    maker,
                )
            )
        count = min(SAMPLES, context.calibration.samples)
        ranked = sorted(rows, key=lambda row: -row.noise)
        return Sensitivity(own.name, count, tuple(ranked))


def _is_narrow(qtype: str) -> bool:
    return stored_bits(qtype) < BYTE or FORMATS[qtype].bits < BYTE


def _rule(name: str, change: str) -> str:
    return f"[[rule]]\nname = {json.dumps(escape(name))}\n{change}\n"
