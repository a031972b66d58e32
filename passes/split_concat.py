"""Give the parts of a Concat units of their own where a linear op reads them together.

before:  y = Conv(Concat(a, b), w)
after:   y = Conv(Mul(Concat(a, b), 1 / t), w * t)                     one t for each part

In a U-Net the decoder and the skip connection have very different ranges, and one scale for both
spends most codes on the wider one (Li et al. 2023, "Q-Diffusion: Quantizing Diffusion Models",
which quantizes the two halves apart). The sums of two integer convolutions cannot be added before
they are rounded, in standard kernels, and need not be: a factor for each part is a factor for each
channel that is constant over the part. So one convolution does it all: a scale for each channel in
the QuantizeLinear (`fold-channel-scales`), one scale in the DequantizeLinear, and weights that were
multiplied, or shifted, by the ratio of the ranges.

The ratio is a power of two where 4-bit weights have room to be shifted by it, and exact elsewhere.
It is kept where the measured noise becomes less (`edgeq.channel_units`).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.channel_noise import activation_qparams, activation_spec
from edgeq.channel_samples import Budget, sampled_rows
from edgeq.channel_shifts import as_samples
from edgeq.channel_sites import Site, find_sites
from edgeq.channel_units import Units, is_better, units_of_shifts, use_units
from edgeq.graph import Editor, int_attribute, rank
from edgeq.passing import Context, Pass

LARGEST_SHIFT = 3


@dataclass(frozen=True)
class SplitConcat(Pass):
    """Choose a factor for each part of a Concat along channels.

    Attributes:
        gain_db: The least gain in noise from activations for which a Concat is split.
        samples: At most so many calibration samples take part.
    """

    gain_db: float = 0.1
    samples: int = 128

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many Concat nodes were split."""
        found = {s.name: s for s in find_sites(model, context)[0] if _parts(s, context)}
        if not found:
            return 0
        chosen: dict[str, Units] = {}
        for name, rows in sampled_rows(
            model,
            context.samples,
            list(found),
            budget=Budget(samples=self.samples),
            seed=context.seed,
        ):
            site, samples = found[name], as_samples(rows.x)
            for units in _candidates(site, samples, context):
                if is_better(site, samples, units, context, gain_db=self.gain_db):
                    chosen[name] = units
                    break
        editor = Editor(model.graph)
        for name, units in chosen.items():
            use_units(found[name], units, editor, context)
        text = f"{len(chosen)} of {len(found)} values that parts make have units for each part"
        context.notes.append((self.name(), text))
        return len(chosen)


def _parts(site: Site, context: Context) -> list[int]:
    """Return how many channels each part has; none if no Concat makes the channels."""
    node = site.value.producer()
    if node is not None and site.name in context.channel_scales and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.domain or node.op_type != "Concat":
        return []
    ndim = rank(node.outputs[0])
    if ndim is None or int_attribute(node, "axis", 0) % ndim != 1:
        return []
    sizes = [
        None if value is None or value.shape is None else value.shape[1] for value in node.inputs
    ]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) > 1 else []


def _candidates(site: Site, samples: NDArray[np.float32], context: Context) -> list[Units]:
    """Return units to try: shifts where weights have room for them, then exact ratios."""
    sizes = _parts(site, context)
    spec = activation_spec(site.value, context)
    parts = np.split(samples, np.cumsum(sizes)[:-1], axis=1)
    steps = np.array([float(activation_qparams(part, spec, context).scale) for part in parts])
    ratios = np.repeat(np.log2(steps / steps.min()), sizes)
    shifts = np.asarray(np.minimum(np.rint(ratios), LARGEST_SHIFT), np.int32)
    found = [units_of_shifts(site, shifts, context)] if shifts.any() else []
    return [units for units in found if units.shifts is not None] + [Units(np.exp2(ratios))]
