"""What rounding costs in the results of the linear ops that read a value, measured on rows of it.

Errors of different elements are taken as independent, so each input channel c adds to the noise

    mean (Q(x_c) - x_c)^2 * sum w_c^2   +   mean x_c^2 * sum (Q(w_c) - w_c)^2

with the sums over all weights that read the channel. Both terms are measured with the parameters
that the recipe would choose; no range stands for an error.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.channel_shifts import channel_errors
from edgeq.channel_sites import Site, along_inputs
from edgeq.graph import constant, int_attribute
from edgeq.linear_weights import output_axis
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import FORMATS
from edgeq.numerics.scale import choose_qparams
from edgeq.observe import choose_range
from edgeq.passing import Context, node_names
from edgeq.places import places_of_value
from edgeq.recipe import QuantSpec
from edgeq.roles import maker_of_range
from edgeq.statistics import Observer
from edgeq.weight_codes import encode

Float64 = NDArray[np.float64]
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Noise:
    """The noise in all results of the readers, per element of a channel.

    Attributes:
        activations: From rounding what they read.
        weights: From rounding their weights.
    """

    activations: float
    weights: float

    @property
    def total(self) -> float:
        """Both."""
        return self.activations + self.weights


def activation_spec(value: ir.Value, context: Context) -> QuantSpec:
    """Return the spec of the node that makes `value`."""
    node = maker_of_range(value)
    if node is None:
        return context.recipe.activation
    places = places_of_value(value)
    return context.recipe.spec("activation", node.op_type, node_names(node), places)


def activation_qparams(samples: Samples, spec: QuantSpec, context: Context) -> QParams:
    """Return the parameters that the recipe's observer chooses for `samples`, per tensor."""
    observer = Observer(0, context.recipe.clip_ratios())
    observer.add(samples)
    low, high = choose_range(observer.result(), spec, FORMATS[spec.qtype])
    return choose_qparams(low, high, spec)


def layer_noise(
    site: Site,
    samples: Samples,
    qparams: QParams,
    context: Context,
    *,
    factors: Float64,
    shifted: bool = False,
) -> Noise:
    """Return the noise with `samples / factors` rounded by `qparams`, and the weights to match.

    Args:
        site: Where.
        samples: (samples, channels, elements) of the site's value as it is.
        qparams: Of the scaled value, per tensor.
        context: Its recipe and target decide how weights are rounded.
        factors: (channels,).
        shifted: Whether the factors are powers of two that shift codes of the unscaled weights.
    """
    scaled = (samples / factors[:, None]).astype(np.float32)
    errors = channel_errors(scaled, qparams) * factors**2
    power = np.square(samples, dtype=np.float64).mean(axis=(0, 2))
    activations = weights = 0.0
    for node in site.readers:
        weight = constant(node.inputs[1])
        assert weight is not None
        plain = np.ones(len(factors)) if shifted else factors
        by_input = along_inputs(node, plain)
        real = (weight * by_input).astype(np.float32)
        error = (rounded_weight(node, real, qparams, context).real - real) / by_input
        activations += float(errors @ _per_input(node, np.square(weight, dtype=np.float64)))
        weights += float(power @ _per_input(node, np.square(error)))
    return Noise(activations, weights)


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A weight as `quantize-weights` would round it.

    Attributes:
        real: The reals that its codes stand for.
        scale: float32, `()` or (outputs,).
        grid: The codes that there are, ascending, counted from real 0.
    """

    real: Float64
    scale: NDArray[np.float32]
    grid: NDArray[np.int64]


def rounded_weight(
    node: ir.Node, weight: NDArray[np.float32], x: QParams, context: Context
) -> RoundedWeight:
    """Round `weight`, of the shape of the weight of `node`; `x` are the parameters of its input.

    Codes that are shifted already are rounded before that, as `quantize-weights` does.
    """
    spec = context.weight_spec(node)
    limit = min(spec.limit, context.capabilities.weight_max)
    axis = output_axis(node, weight.ndim) if spec.granularity == "per_channel" else None
    name = None if node.inputs[1] is None else node.inputs[1].name
    shift = context.weight_shifts.get(name or "", np.int32(0))
    made = encode(np.ldexp(weight, -shift), None, x, spec, axis=axis, limit=limit, bias_limit=1)
    qtype = made.qparams.qtype
    low, high = qtype.within(limit)
    values = range(low, high + 1) if qtype.values is None else qtype.values
    grid = np.array([v for v in values if low <= v <= high], np.int64)
    if not spec.symmetric and qtype.values is None:  # the zero point lies anywhere
        grid = np.arange(-(qtype.qmax - qtype.qmin) // 2, (qtype.qmax - qtype.qmin) // 2 + 1)
    real = np.ldexp(made.qparams.dequantize(made.weight).astype(np.float64), shift)
    return RoundedWeight(real, made.qparams.scale, grid)


def _per_input(node: ir.Node, values: Float64) -> Float64:
    """Return the sums over all that reads each input channel, (channels,)."""
    group = int_attribute(node, "group", 1)
    if node.op_type == "Gemm":
        return np.asarray(values.sum(0 if int_attribute(node, "transB", 0) else 1))
    grouped = values.reshape(group, -1, values.shape[1], int(np.prod(values.shape[2:], dtype=int)))
    return np.asarray(grouped.sum(axis=(1, 3)).reshape(-1))
