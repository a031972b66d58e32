"""What there is to choose from: what each format comes to for every layer, and what it costs.

A layer's weights are quantized as the recipe says but for the format, and the codes that it reads
have the parameters that choose-qparams decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeq.bit_choice import BitOption
from edgeq.bit_layers import BitLayer
from edgeq.graph import clone
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, format_steps, parse_steps, run_pipeline
from edgeq.recipe import QuantSpec

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
