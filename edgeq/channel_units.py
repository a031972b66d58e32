"""Units of their own for channels: whether they pay, and how they get into the model.

Powers of two go into codes of weights as shifts, after rounding, where 8 bits have room for that:
the weights lose nothing. Any other factor, or a shift without room, is multiplied into the weights
before they are rounded, which then cover more with as many codes.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.channel_noise import activation_qparams, activation_spec, layer_noise
from edgeq.channel_shifts import split
from edgeq.channel_sites import Site, along_inputs, scale_channels
from edgeq.graph import Editor
from edgeq.numerics.qtype import FORMATS
from edgeq.passing import Context

Float64 = NDArray[np.float64]
Shifts = NDArray[np.int32]
CODE_LIMIT = 127


@dataclass(frozen=True, eq=False)
class Units:
    """What the channels of a value are divided by.

    Attributes:
        factors: (channels,), positive.
        shifts: Their logarithms to base 2, where codes of weights are shifted; else None.
    """

    factors: Float64
    shifts: Shifts | None = None


def units_of_shifts(site: Site, shifts: Shifts, context: Context) -> Units:
    """Return powers of two as units; codes of weights are shifted if all readers have room."""
    room = all(_has_room(node, shifts, context) for node in site.readers)
    return Units(np.exp2(shifts), shifts if room else None)


def _has_room(node: ir.Node, shifts: Shifts, context: Context) -> bool:
    """Whether all codes, shifted, stay within 8 bits and the target's limit."""
    spec = context.weight_spec(node)
    top = min(CODE_LIMIT, context.capabilities.weight_max)
    if not spec.symmetric or spec.qtype not in FORMATS:
        return False
    low, high = FORMATS[spec.qtype].within(min(spec.limit, context.capabilities.weight_max))
    weight = node.inputs[1]
    before = 0
    if weight is not None and weight.name in context.weight_shifts:
        before = int(context.weight_shifts[weight.name].max())
    return max(-low, high) << (int(shifts.max()) + before) <= top


def is_better(
    site: Site,
    samples: NDArray[np.float32],
    units: Units,
    context: Context,
    *,
    gain_db: float,
) -> bool:
    """Whether units lessen the noise in what reads `site`: that of activations by `gain_db`.

    Ranges are those of two thirds of the samples, noise is that of the others.

    Args:
        site: Where.
        samples: (samples, channels, elements) of its value.
        units: What to try.
        context: Its recipe decides ranges and formats.
        gain_db: What a scale for each channel must be worth.
    """
    spec = activation_spec(site.value, context)
    seen, unseen = split(samples)
    plain = activation_qparams(seen, spec, context)
    scaled = (seen / units.factors[:, None]).astype(np.float32)
    before = layer_noise(site, unseen, plain, context, factors=np.ones(len(units.factors)))
    after = layer_noise(
        site,
        unseen,
        activation_qparams(scaled, spec, context),
        context,
        factors=units.factors,
        shifted=units.shifts is not None,
    )
    gain = 10 ** (gain_db / 10)
    return after.activations * gain < before.activations and after.total < before.total


def use_units(site: Site, units: Units, editor: Editor, context: Context) -> None:
    """Let the readers of `site` read its value in these units."""
    scale_channels(site, units.factors, editor, context)
    if units.shifts is None:
        return
    for node in site.readers:
        weight = node.inputs[1]
        assert weight is not None and weight.name is not None
        before = context.weight_shifts.get(weight.name, np.int32(0))
        context.weight_shifts[weight.name] = along_inputs(node, units.shifts) + before
