"""Keep, or give back, what rounding takes from the rows of a quantized softmax.

A row of probabilities adds up to 1, its codes to less: in a long row most elements round to 0.
`edgeq.softmax_bias` defines the forms. `row` loses little to begin with, and costs less time than
what it replaces: codes count in parts of the largest term of their row, and the division by the sum
waits behind the product.

before:  p_q = QuantizeLinear(e / sum(e));  y_q = MatMul(p_q, v_q)               as integers
after:   c_q = QuantizeLinear(e);  y_q = QuantizeLinear(MatMulInteger(c_q, v_q) / sum(e))

`row+beta` gives each such row exactly what it lost, spread over what the row sees: a rank-1 term in
front of the division. The other forms keep one scale for all rows. `beta` is a rank-1 term too, the
same share for a tensor, a head, or a head at some timesteps:

after:   y_q = QuantizeLinear(MatMulInteger(p_q, v_q) + sum of v_q * (beta / sp))

Where v is constant, and the product a Gemm, the term is part of its int32 bias. `scale` is a factor
of the scale with which the codes are read:

after:   y_q = MatMul(p_q, v_q), the scale of p_q times rho

No integer zero point can hold beta: rounding to nearest is off by half a step at most, so
`abs(beta / sp) <= 1/2`, and the zero point that it would change rounds back to what it was.

What each form is worth is measured on calibration samples, with the bits that will run, for each
attention alone. `row` is taken unless it is worse; what costs more has to win `gain` dB.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import onnx_ir as ir

from edgeq.buckets import Buckets
from edgeq.dims import same_dim
from edgeq.errors import RecipeError
from edgeq.exactness import is_power_of_two
from edgeq.graph import Editor, remove_dead
from edgeq.passing import Context, Pass
from edgeq.qdq import REAL_NAME
from edgeq.quantized_attention import QuantizedAttention, find_quantized_attentions
from edgeq.seen_values import SeenValues
from edgeq.simulate import Simulator
from edgeq.softmax_bias import Correction, Float64, Granularity, SoftmaxBiasMeter, SoftmaxRow
from edgeq.softmax_bias_form import TermWriter, rounded_beta, write_bias, write_scale
from edgeq.softmax_row_form import can_be_rows, write_rows

FORMS = ("auto", "none", "row", "scale", "beta", "row+beta")
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "head", "timestep")


@dataclass(frozen=True)
class FoldSoftmaxBias(Pass):
    """Correct the softmax of each attention where that helps.

    Attributes:
        form: `auto` takes what is worth most; or one of the others, where it is worth its cost.
        granularity: One beta for a `tensor`, for each `head`, for each head and part of the range
            of the `timestep`; or `auto`.
        gain: What a form has to win over cheaper ones, in dB; `row`, the cheapest, nothing.
        samples: How many calibration samples to measure on.
    """

    form: str = "auto"
    granularity: str = "auto"
    gain: float = 0.25
    samples: int = 32

    def __post_init__(self) -> None:
        """Hold the options against what there is.

        Raises:
            RecipeError: An option has no such value, or asks for what cannot be.
        """
        if self.form == "zero_point":
            raise RecipeError(
                "pass fold-softmax-bias: form = zero_point cannot be: the correction is at most"
                " half a step, so the zero point would round back to what it is; use beta or scale"
            )
        for key, known in (("form", FORMS), ("granularity", ("auto", *GRANULARITIES))):
            if getattr(self, key) not in known:
                raise RecipeError(
                    f"pass fold-softmax-bias: {key} = {getattr(self, key)!r}; one of"
                    f" {', '.join(known)}"
                )
        if self.samples < 1:
            raise RecipeError("pass fold-softmax-bias: samples is at least 1")

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many attentions were corrected.

        Raises:
            RecipeError: A beta by timestep is asked for, and the range of timesteps is not known.
        """
        assert context.reference is not None and context.calibration is not None
        buckets = context.calibration.buckets
        if self.granularity == "timestep" and buckets is None:
            raise RecipeError(
                "pass fold-softmax-bias: granularity = timestep needs an integer input with one"
                " value for a sample and a known range: --input-range timestep=0:999, for 1000"
                " steps"
            )
        found = find_quantized_attentions(model, context.reference)
        if not found or self.form == "none":
            return 0
        named = {value.name: value for value in model.graph.inputs}
        step = None if buckets is None else named[buckets.name]
        meters = self._measured(found, model, context, step)
        editor = Editor(model.graph)
        writer = _Writer(editor, step, buckets)
        done = 0
        for attention, meter in zip(found, meters, strict=True):
            before = meter.correction("none")
            best = before
            for other in self._corrections(attention, meter):
                if other.sqnr_db - best.sqnr_db >= (0 if other.form == "row" else self.gain):
                    best = other
            context.softmax_rows.append(SoftmaxRow.of(attention.name, before, best))
            writer.write(attention, best)
            done += best is not before
        remove_dead(model.graph)
        _rename(model, writer.by_row, context)
        return done

    def _measured(
        self,
        found: Sequence[QuantizedAttention],
        model: ir.Model,
        context: Context,
        step: ir.Value | None,
    ) -> list[SoftmaxBiasMeter]:
        """Return the meter of each attention, some samples taken in, spread over all."""
        assert context.calibration is not None
        buckets, count = context.calibration.buckets, context.calibration.samples
        stride = -(-count // self.samples)
        meters = []
        for attention in found:
            by_step = buckets is not None and step is not None and _follows(attention, step)
            parts = buckets.count if buckets is not None and by_step else 1
            y = attention.group.y
            scale = 0.0 if y is None else float(y.qparams.scale)
            meters.append(SoftmaxBiasMeter(attention.heads, parts, scale))
        simulator, taps = Simulator(model), [attention.taps for attention in found]
        for feeds in islice(iter(context.samples), 0, None, stride):
            places = None if buckets is None else buckets.of_samples(feeds)
            for number, values in simulator.observe(feeds, taps):
                meter = meters[number]
                place = 0 if places is None or meter.buckets == 1 else places
                meter.add(found[number].observe(values), place)
        return meters

    def _corrections(
        self, attention: QuantizedAttention, meter: SoftmaxBiasMeter
    ) -> Iterator[Correction]:
        """Yield what can be written, cheaper forms first."""
        group, wanted = attention.group, self.form
        product, constant = group.node.op_type == "MatMul", group.w.array is not None
        if wanted in ("auto", "row") and can_be_rows(attention):
            yield meter.correction("row")
        # A power of two would not stay one; a Gemm's bias has the scale of its operands.
        scales = product and not is_power_of_two(float(group.x.qparams.scale))
        if wanted in ("auto", "scale") and scales:
            yield meter.correction("scale", rounded=_float32)
        folds = not product and not attention.masks  # into the bias
        if wanted in ("auto", "beta") and (folds or not constant):
            differs = {"tensor": True, "head": meter.heads > 1, "timestep": meter.buckets > 1}
            for granularity in GRANULARITIES[:1] if folds else GRANULARITIES:
                if differs[granularity] and self.granularity in ("auto", granularity):
                    yield meter.correction("beta", granularity, partial(rounded_beta, attention))
        if wanted in ("auto", "row+beta") and can_be_rows(attention):
            yield meter.correction("row+beta")


def _float32(value: Float64) -> Float64:
    return value.astype(np.float32).astype(np.float64)


def _follows(attention: QuantizedAttention, step: ir.Value) -> bool:
    """Whether the first axis of the attention is that of the integer input `step`."""
    p = attention.p.shape
    if p is None or len(p) != 4 or step.shape is None:
        return False
    return all(size == 1 or same_dim(size, p[0]) for size in step.shape)


class _Writer:
    """Writes corrections.

    Attributes:
        by_row: The codes with a scale for each row, by those whose place they take.
    """

    def __init__(self, editor: Editor, step: ir.Value | None, buckets: Buckets | None) -> None:
        self.by_row: dict[ir.Value, ir.Value] = {}
        self._editor = editor
        self._seen = SeenValues()
        self._terms = TermWriter(editor, self._seen, step, buckets)

    def write(self, attention: QuantizedAttention, best: Correction) -> None:
        """Write one."""
        group, form = attention.group, best.form
        if form == "scale":
            write_scale(group, float(best.value[0, 0]), self._editor)
        elif form in ("row", "row+beta"):
            refill = form == "row+beta"
            codes = write_rows(attention, self._seen, self._editor, refill=refill)
            self.by_row[attention.p] = codes
        elif form == "beta" and group.w.array is not None:
            write_bias(group, float(best.value[0, 0]), self._editor)
        elif form == "beta":
            self._terms.write(attention, best.value)


def _rename(model: ir.Model, by_row: Mapping[ir.Value, ir.Value], context: Context) -> None:
    """Let codes with a scale for each row stand for what those that are gone stood for."""
    alive = {value for node in model.graph for value in node.outputs}
    for old, new in by_row.items():
        if old not in alive:
            name = old.metadata_props[REAL_NAME]
            new.metadata_props[REAL_NAME] = name
            context.qparams.pop(name, None)  # there is no such scale any more
