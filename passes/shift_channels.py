"""Give channels of small range finer steps: by powers of two, that integer weights take back.

before:  y = Conv(v, w)
after:   y = Conv(Mul(v, 2**-shift), w * 2**shift)               one shift for each input channel

The Mul goes into the scales of the QuantizeLinear behind it (`fold-channel-scales`), or into the
weights of the linear op that makes `v`. Codes of w are rounded on the grid of the recipe's format
and then shifted (`quantize-weights`): 4-bit weights shifted by 3 have 7 bits, and run on the 8-bit
kernels as they are. Where 8 bits have no room for that (8-bit weights), the products `w * 2**shift`
are rounded instead: the finer activations are paid for with coarser weights.

Shifts are chosen by vote (`edgeq.channel_shifts`), or by groups (`edgeq.channel_groups`). They are
kept where the measured noise in what reads them becomes less (`edgeq.channel_units`). The rows of a
softmax have scales of their own without any of this: see `fold-softmax-bias`.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import find_buckets
from edgeq.channel_groups import grouped_shifts
from edgeq.channel_noise import activation_qparams, activation_spec
from edgeq.channel_samples import Budget, sampled_rows
from edgeq.channel_shifts import Shifts, as_samples, voted_shifts
from edgeq.channel_sites import Site, find_sites
from edgeq.channel_units import Units, is_better, units_of_shifts, use_units
from edgeq.data import input_specs
from edgeq.errors import RecipeError
from edgeq.graph import Editor
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class ShiftChannels(Pass):
    """Choose shifts and apply them.

    Attributes:
        values: `skips`, what 1x1 convolutions beside another branch read; or `all`.
        assign: `vote` or `distance`.
        groups: How many groups `distance` makes.
        depth: The largest shift.
        agreement: The share of samples that must vote alike.
        gain_db: The least gain in noise from activations for which a value is changed.
        samples: At most so many calibration samples take part.
    """

    values: str = "skips"
    assign: str = "vote"
    groups: int = 8
    depth: int = 3
    agreement: float = 0.85
    gain_db: float = 0.1
    samples: int = 128

    def __post_init__(self) -> None:
        """Hold the options against what there is.

        Raises:
            RecipeError: One of them is not.
        """
        for key, known in (("values", ("skips", "all")), ("assign", ("vote", "distance"))):
            if getattr(self, key) not in known:
                raise RecipeError(f"pass {self.name()}: {key} is one of {', '.join(known)}")
        if not 1 <= self.depth <= 7 or self.groups < 1 or not 0 < self.agreement <= 1:
            text = "depth lies in 1..7, groups is at least 1, agreement in (0, 1]"
            raise RecipeError(f"pass {self.name()}: {text}")

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many values were scaled."""
        sites, refused = find_sites(model, context)
        if self.values == "skips":
            sites, refused = [site for site in sites if site.is_skip], 0
        if not sites:
            return 0
        by_name = {site.name: site for site in sites}
        rows = sampled_rows(
            model,
            context.samples,
            list(by_name),
            budget=Budget(samples=self.samples),
            buckets=find_buckets(input_specs(model, input_ranges=context.input_ranges)),
            seed=context.seed,
        )
        chosen = {name: self._choose(by_name[name], as_samples(r.x), context) for name, r in rows}
        editor = Editor(model.graph)
        done = {name: units for name, units in chosen.items() if units is not None}
        for name, units in done.items():
            use_units(by_name[name], units, editor, context)
        text = f"{len(done)} of {len(sites)} values have channels in units of their own"
        if refused:
            text += f"; {refused} more are codes of a fused kernel, which no finer steps can help"
        context.notes.append((self.name(), text))
        return len(done)

    def _choose(self, site: Site, samples: NDArray[np.float32], context: Context) -> Units | None:
        plain = activation_qparams(samples, activation_spec(site.value, context), context)
        shifts = self._shifts(samples, plain)
        shifts = np.asarray(shifts - shifts.min(), np.int32)
        if not shifts.any():
            return None
        units = units_of_shifts(site, shifts, context)
        return units if is_better(site, samples, units, context, gain_db=self.gain_db) else None

    def _shifts(self, samples: NDArray[np.float32], plain: QParams) -> Shifts:
        if self.assign == "vote":
            return voted_shifts(samples, plain, depth=self.depth, agreement=self.agreement)
        qtype = plain.qtype
        share = (int(plain.zero_point) - qtype.qmin) / (qtype.qmax - qtype.qmin)
        return grouped_shifts(samples, groups=self.groups, depth=self.depth, zero_share=share)
