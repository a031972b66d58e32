"""Give a quantized softmax back the mass that rounding took from it.

A row of probabilities adds up to 1, its codes to less: in a long row most elements round to 0.
`edgeq.softmax_bias` defines the two forms of the correction. `rho` goes into the scale with which
the codes are read, and costs nothing:

before:  y = MatMul(DequantizeLinear(p_q, sp, 0), DequantizeLinear(v_q, sv, zv))
after:   y = MatMul(DequantizeLinear(p_q, float32(sp * rho), 0), DequantizeLinear(v_q, sv, zv))

`beta` is a rank-1 term in front of the one rounding of the result:

before:  y_q = QuantizeLinear(y, sy, zy)
after:   acc = Cast(MatMulInteger(p_q, v_q, 0, zv))                        float32
         sum = Cast(ReduceSum(Sub(Cast(v_q), zv)))                         of each column of v
         y_q = QuantizeLinear(Add(acc, Mul(sum, beta / sp)), float32(sy / (sp * sv)), zy)

Under a mask the sum takes what the mask keeps alone: `MatMulInteger(keeps, v_q, 0, zv)`, since what
is hidden has no share to give back. beta / sp is a number of 8 bits, so that the sum is exact while
it stays below 2**24. Where v is constant the term goes into a bias instead.

No integer zero point can hold beta: rounding to nearest is off by half a step at most, so
`abs(beta / sp) <= 1/2`, and the zero point that it would change rounds back to what it was.

What each form is worth is measured on calibration samples, with the bits that will run, for each
attention alone; nothing is changed where less than `gain` dB are won.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.attention import MASKED, Attention, find_attentions
from edgeq.errors import RecipeError
from edgeq.graph import Editor, replace_uses, take_output
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass
from edgeq.qdq import REAL_NAME, LinearGroup, linear_group
from edgeq.simulate import Simulator
from edgeq.softmax_bias import Correction, SoftmaxBiasMeter, softmax

FORMS = ("auto", "none", "scale", "beta")
GRANULARITIES = ("auto", "tensor", "head")
BITS = 8  # of beta / sp


@dataclass(frozen=True)
class FoldSoftmaxBias(Pass):
    """Correct the softmax of each attention where that helps.

    Attributes:
        form: `auto` takes what is worth most; or `none`, `scale`, `beta`.
        granularity: beta for a `tensor`, for each `head`, or `auto`.
        gain: What a correction, or a finer granularity, has to win, in dB.
        samples: How many calibration samples to measure on.
    """

    form: str = "auto"
    granularity: str = "auto"
    gain: float = 0.25
    samples: int = 16

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many attentions were corrected.

        Raises:
            RecipeError: An option has no such value, or asks for what cannot be.
        """
        self._check()
        sites = list(_sites(model, context))
        if not sites:
            return 0
        simulator = Simulator(model)
        meters = {site: SoftmaxBiasMeter(site.heads) for site in sites}
        taps = list(dict.fromkeys(name for site in sites for name in site.taps))
        for feeds in islice(iter(context.samples), self.samples):
            values = simulator.run(feeds, taps)
            for site, meter in meters.items():
                site.measure(meter, values)
        editor = Editor(model.graph)
        return sum(self._correct(site, meters[site], editor, context) for site in sites)

    def _check(self) -> None:
        if self.form == "zero_point":
            raise RecipeError(
                "pass fold-softmax-bias: form = zero_point cannot be: the correction is at most"
                " half a step, so the zero point would round back to what it is; use beta or scale"
            )
        for key, known in (("form", FORMS), ("granularity", GRANULARITIES)):
            if getattr(self, key) not in known:
                raise RecipeError(
                    f"pass fold-softmax-bias: {key} = {getattr(self, key)!r}; one of"
                    f" {', '.join(known)}"
                )

    def _correct(
        self, site: "_Site", meter: SoftmaxBiasMeter, editor: Editor, context: Context
    ) -> bool:
        before = meter.correction("none")
        best = self._choose(site, meter, before)
        name = site.group.node.name or site.group.node.outputs[0].name
        text = f"{name}: rows of probabilities add up to {before.row_sum:.4f}"
        if best.form == "none":
            context.notes.append((self.name(), f"{text}; left as they are"))
            return False
        if best.form == "scale":
            _write_scale(site.group, float(best.value[0]), editor)
        else:
            _write_beta(site, best.value, editor)
        context.notes.append(
            (
                self.name(),
                f"{text}, with {best.form} to {best.row_sum:.4f};"
                f" {before.sqnr_db:.1f} -> {best.sqnr_db:.1f} dB",
            )
        )
        return True

    def _choose(self, site: "_Site", meter: SoftmaxBiasMeter, before: Correction) -> Correction:
        """Return the form that is worth most; what costs more must win `gain` dB more."""
        found = [before]
        exact = np.frexp(site.group.x.qparams.scale)[0] == 0.5  # powers of two stay such
        if self.form in ("auto", "scale") and not exact:
            rho = float(np.float32(meter.correction("scale").value[0]))
            found.append(meter.worth_of("scale", np.array(rho)))
        if self.form in ("auto", "beta"):
            for per_head in (False, True):
                wanted = {"auto": True, "tensor": not per_head, "head": per_head}
                if wanted[self.granularity]:
                    beta = meter.correction("beta", per_head=per_head).value
                    found.append(meter.worth_of("beta", site.rounded_beta(beta)))
        best = found[0]
        for other in found[1:]:
            forced = self.form != "auto" and best is before
            if other.sqnr_db >= best.sqnr_db + self.gain or (forced and self.gain <= 0):
                best = other
        return best


@dataclass(frozen=True, eq=False)
class _Site:
    """One attention of the float model, and what became of it.

    Attributes:
        attention: In the float model.
        group: The product of the probabilities and the values, in the model.
        q: Codes of the queries, and their parameters.
        k: Codes of the keys, and theirs.
        terms: What is added to the scores, or chooses among them, in the model.
        heads: The size of the axis in front of rows and keys.
    """

    attention: Attention
    group: LinearGroup
    q: tuple[ir.Value, QParams]
    k: tuple[ir.Value, QParams]
    terms: tuple[ir.Value, ...]
    heads: int

    @property
    def taps(self) -> list[str]:
        """The names of what is measured."""
        values = [self.q[0], self.k[0], self.group.x.codes, self.group.w.codes, *self.terms]
        return [str(value.name) for value in values]

    def rounded_beta(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return beta such that `beta / sp` has 8 bits."""
        scale = float(self.group.x.qparams.scale)
        fraction, exponent = np.frexp(beta / scale)
        return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, BITS)), exponent - BITS) * scale)

    def measure(self, meter: SoftmaxBiasMeter, values: dict[str, NDArray[Any]]) -> None:
        """Take one sample in."""
        q, k = (p.dequantize(values[str(c.name)]).astype(np.float64) for c, p in (self.q, self.k))
        scores = (q @ k) * self.attention.factor
        kept: NDArray[np.bool_] | None = None
        for term, value in zip(self.attention.terms, self.terms, strict=True):
            array = values[str(value.name)]
            keeps = array == term.keeps if term.kind == "choice" else array > MASKED
            if term.kind == "bias":
                scores = scores + np.where(keeps, array, 0.0) * (
                    self.attention.factor / term.factor
                )
            kept = keeps if kept is None else kept & keeps
        x, w = self.group.x, self.group.w
        rounded, v = (o.qparams.dequantize(values[str(o.codes.name)]) for o in (x, w))
        if kept is not None:
            kept = _four(np.broadcast_to(kept, scores.shape))
        meter.add(
            softmax(_four(scores), kept),
            _four(rounded).astype(np.float64),
            _four(v).astype(np.float64),
            kept,
        )


def _four(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array with four axes: all in front of the last three as one."""
    if array.ndim < 4:
        return array.reshape((1,) * (4 - array.ndim) + array.shape)
    return array.reshape(-1, *array.shape[-3:])


def _sites(model: ir.Model, context: Context) -> Iterator[_Site]:
    """Yield the attentions whose softmax has its exact form, with uint8 probabilities."""
    assert context.reference is not None, "fold-softmax-bias compares with the float model"
    nodes = {node.name: node for node in model.graph}
    values = {str(v.name): v for v in model.graph.inputs}
    values |= {str(v.name): v for node in model.graph for v in node.outputs}
    values |= dict(model.graph.initializers.items())
    codes = {
        v.metadata_props[REAL_NAME]: v for v in values.values() if REAL_NAME in v.metadata_props
    }
    for attention in find_attentions(context.reference):
        node = None if attention.product is None else nodes.get(attention.product.name)
        group = None if node is None else linear_group(node)
        if group is None or group.y is None or group.x.qparams.zero_point.any():
            continue
        if group.x.codes.metadata_props.get(REAL_NAME) != attention.output.name:
            continue
        sources = [
            (codes.get(str(v.name)), context.qparams.get(str(v.name)))
            for v in (attention.q, attention.k)
        ]
        terms = [values.get(str(term.value.name)) for term in attention.terms]
        shape = group.x.codes.shape
        if shape is None or len(shape) < 2:
            continue
        heads = shape[-3] if len(shape) > 2 else 1
        found = [(c, p) for c, p in sources if c is not None and p is not None]
        if len(found) < 2 or None in terms or not isinstance(heads, int):
            continue
        known = tuple(t for t in terms if t is not None)
        yield _Site(attention, group, found[0], found[1], known, heads)


def _write_scale(group: LinearGroup, rho: float, editor: Editor) -> None:
    scale = np.float32(np.float32(rho) * group.x.qparams.scale)
    name = f"{group.x.codes.name}_corrected_scale"
    group.x.node.replace_input_with(1, editor.initializer(name, scale))


def _write_beta(site: _Site, beta: NDArray[np.float64], editor: Editor) -> None:
    group = site.group
    assert group.y is not None
    x, w, y = group.x, group.w, group.y
    name = group.node.outputs[0].name or "attention"
    made: list[ir.Value] = []

    def write(
        op_type: str, inputs: list[ir.Value], part: str, dtype: ir.DataType, **attributes: int
    ) -> ir.Value:
        value = editor.node(
            op_type, inputs, f"{name}_{part}", attributes=dict(attributes), dtype=dtype
        )
        made.append(value)
        return value

    int32, real = ir.DataType.INT32, ir.DataType.FLOAT
    zeros = [
        editor.initializer(
            f"{o.codes.name}_zero", o.qparams.zero_point.astype(o.qparams.qtype.dtype)
        )
        for o in (x, w)
    ]
    acc = write("MatMulInteger", [x.codes, w.codes, *zeros], "acc", int32)
    acc.shape = group.node.outputs[0].shape
    total = write("Cast", [acc], "units", real, to=real.value)
    total.shape = acc.shape
    keeps = _kept(site, write, editor)
    if keeps is None:
        wide = write("Cast", [w.codes], "v", int32, to=int32.value)
        offset = editor.initializer(f"{name}_zero_point", w.qparams.zero_point)
        centered = write("Sub", [wide, offset], "v_units", int32)
        axes = editor.initializer(f"{name}_axes", np.array([-2], np.int64))
        sums = write("ReduceSum", [centered, axes], "v_sum", int32, keepdims=1)
    else:
        sums = write("MatMulInteger", [keeps, w.codes, *zeros], "v_sum", int32)
    share = (beta / float(x.qparams.scale)).astype(np.float32)
    if (share == share[0]).all():
        factor = editor.initializer(f"{name}_beta", share[0])
    else:
        factor = editor.initializer(f"{name}_beta", share.reshape(-1, 1, 1))
    term = write(
        "Mul", [write("Cast", [sums], "v_real", real, to=real.value), factor], "share", real
    )
    corrected = write("Add", [total, term], "corrected", real)
    corrected.shape = acc.shape
    ratio = np.float32(y.qparams.scale / np.float32(x.qparams.scale * w.qparams.scale))
    codes = write(
        "QuantizeLinear",
        [corrected, editor.initializer(f"{name}_ratio", ratio), y.node.inputs[2] or zeros[0]],
        "q",
        ir.DataType.from_numpy(y.qparams.qtype.dtype),
    )
    codes.shape = y.codes.shape
    codes.metadata_props.update(y.codes.metadata_props)
    editor.insert_before(group.node, made)
    replace_uses(y.codes, codes)
    take_output(y.codes, codes)


def _kept(site: _Site, write: Any, editor: Editor) -> ir.Value | None:  # noqa: ANN401
    """Write 1 for each element that no mask hides, uint8; None where there is no mask."""
    kept: ir.Value | None = None
    for term, value in zip(site.attention.terms, site.terms, strict=True):
        boolean, uint8 = ir.DataType.BOOL, ir.DataType.UINT8
        if term.kind == "choice":
            mine = value if term.keeps else write("Not", [value], "kept", boolean)
        else:
            limit = editor.initializer("masked", np.float32(MASKED))
            mine = write("Greater", [value, limit], "kept", boolean)
        kept = mine if kept is None else write("And", [kept, mine], "kept", boolean)
    return None if kept is None else write("Cast", [kept], "keeps", uint8, to=uint8.value)
