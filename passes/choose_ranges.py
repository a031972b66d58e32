"""Choose the range of each tensor's codes by what rounding it does to the outputs.

The model is not edited: decisions go to `context.qparams`, where choose-qparams finds them.

An observer judges a tensor by itself: `mse` weighs what it clips like what it rounds. What the
outputs make of an error depends on where it is: of a few large values that are clipped nothing may
be left, or all of the answer may depend on them. So the float model runs with this tensor alone
rounded, in ranges between the observer's and everything that was seen,

    low  = (1 - t) * low of the observer  + t * least value seen
    high = (1 - t) * high of the observer + t * greatest value seen          t = 0, 1/3, 2/3, 1

and the one that makes the least noise of the outputs, in parts of their power, counts. A tensor
whose range is decided elsewhere, and sums in the format of `[residual]`, are left alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import onnx_ir as ir

from edgeq.bit_noise import REAL, Array, Trial, float_runs, layer_noise, noise_task
from edgeq.calibrate import as_float, batches, joined
from edgeq.code_plan import Group, plan_codes
from edgeq.errors import RecipeError
from edgeq.group_ranges import group_range, group_spec, roots
from edgeq.numerics.affine import QParams
from edgeq.numerics.scale import choose_qparams
from edgeq.operators.batchwise import keeps_samples_apart
from edgeq.passing import Context, Pass
from edgeq.tasks import MadeTasks, run_tasks

BATCH = 16


@dataclass(frozen=True)
class ChooseRanges(Pass):
    """Decide the parameters of activations by the outputs; in front of choose-qparams.

    Attributes:
        steps: How many steps t takes from 0 to 1.
        samples: At most so many calibration samples take part.
        elements: So many elements of outputs are enough: a classifier's scores are few, a batch of
            images or of tokens is not.
    """

    steps: int = 3
    samples: int = 128
    elements: int = 4096

    def __post_init__(self) -> None:
        """Refuse options that mean nothing.

        Raises:
            RecipeError: One of them does.
        """
        for key in ("steps", "samples", "elements"):
            if getattr(self, key) < 1:
                raise RecipeError(f"choose-ranges: {key} is {getattr(self, key)}; give at least 1")

    def run(self, model: ir.Model, context: Context) -> int:
        """Fill `context.qparams`; return for how many tensors another range is better."""
        reference = context.reference
        assert reference is not None, "choose-ranges runs after calibration"
        found = [(g, self._candidates(g, context)) for g in plan_codes(model, context)]
        open_ = [(group, tried) for group, tried in found if len(tried) > 1]
        if not open_:
            return 0
        runs = self._runs(reference, context)
        makers = [partial(_task, reference, group, tried, runs) for group, tried in open_]
        results = run_tasks(layer_noise, MadeTasks(makers), context, "choose ranges")
        before = after = 0.0
        changed = 0
        for (group, tried), result in zip(open_, results, strict=True):
            noise = [value if math.isfinite(value) else math.inf for value in result["mse"]]
            best = noise.index(min(noise))
            before, after, changed = before + noise[0], after + noise[best], changed + (best > 0)
            context.qparams |= {str(value.name): tried[best] for value in group.values}
        context.notes.append((
            self.name(),
            f"{changed} of {len(open_)} tensors have another range than their observer's; noise of"
            f" rounding each alone, added up: {_decibels(before)}, now {_decibels(after)}",
        ))  # fmt: skip
        return changed

    def _runs(self, reference: ir.Model, context: Context) -> dict[str, Array]:
        """Return what the float model is fed, and what it makes of it."""
        first = float_runs(reference, [as_float(reference, next(iter(context.samples)))])
        made = sum(array.size for name, array in first.items() if name.startswith(REAL))
        count = min(self.samples, max(BATCH, -(-self.elements // max(made, 1))))
        size = BATCH if keeps_samples_apart(reference.graph) else 1
        feeds = batches(islice(context.samples, count), size)
        return float_runs(reference, [as_float(reference, joined(some)) for some in feeds])

    def _candidates(self, group: Group, context: Context) -> list[QParams]:
        """Return the parameters to try, each once, that of the observer first."""
        decided = any(value.name in context.qparams for value in group.values)
        if group.residual or decided or not _reads(group):
            return []
        spec = group_spec(group, "activation", context)
        low, high = group_range(group, spec, context)
        least, most = group_range(group, spec, context, "minmax")
        tried: list[QParams] = []
        for step in range(self.steps + 1):
            t = step / self.steps
            qparams = choose_qparams((1 - t) * low + t * least, (1 - t) * high + t * most, spec)
            if not any(qparams.same_as(other) for other in tried):
                tried.append(qparams)
        return tried


def _reads(group: Group) -> list[tuple[str, int]]:
    """Return every input of a node that reads the group before it is moved."""
    return [(str(node.name), index) for value in roots(group) for node, index in value.uses()]


def _task(
    reference: ir.Model, group: Group, tried: list[QParams], runs: Mapping[str, Array]
) -> dict[str, Array]:
    trials = [Trial(None, qparams) for qparams in tried]
    return noise_task(reference, (), None, (), _reads(group), trials, runs)


def _decibels(noise: float) -> str:
    return "none" if noise <= 0 else f"{-10 * math.log10(noise):.2f} dB"
