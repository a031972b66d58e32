"""How long do edgeq's exact forms take, beside ONNX Runtime's own quantized operator?

    python -m benchmarks.exact_forms [NAME]... [--seconds S]

One thread, ONNX Runtime's default level. Three sessions take turns in one process: the exact form
that edgeq writes, ONNX Runtime's form of the same nodes between codes (DequantizeLinear - nodes -
QuantizeLinear, fused where it has a kernel), and the operator that the bound refers to. Figures are
medians. Exit status 1 if a form takes more than its bound times the operator it is held against.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.deployed import medians
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.runtime import Session, make_session
from edgeq.targeting import find_target

Feeds = Mapping[str, NDArray[Any]]
TARGET = find_target("ort-cpu")
NO_SAMPLES: Any = ()  # no pass here looks at data

CONSTANTS = (
    "float root = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3},"
    " float six = {6}, float zero = {0}"
)


@dataclass(frozen=True)
class Form:
    """One row: an exact form and what it is held against.

    Attributes:
        graph: ONNX text, an operator between codes; every input is a tensor of codes.
        passes: Write the exact form of it.
        against: ONNX text of the operator, between codes, that `limit` refers to.
        limit: The most that the exact form may take, in times of that operator.
    """

    graph: str
    passes: str
    against: str
    limit: float


def between_codes(
    nodes: str, shape: str, qtype: str = "uint8", scale: float = 0.0371, constants: str = CONSTANTS
) -> str:
    """Return the text of a graph of `nodes`, from a real `x` to a real `y`, between codes.

    The codes of `x` are of `qtype`, those of `y` uint8. With these scales some result of each
    function is near a rounding tie: edgeq makes a table, whatever else may be faster.
    """
    middle = 2 ** (8 if qtype == "uint8" else 16) // 2
    return f"""<ir_version: 10, opset_import: ["": 21]>
        g ({qtype}[{shape}] x_codes) => (uint8[{shape}] y_codes)
        <float sx = {{{scale}}}, {qtype} zx = {{{middle}}}, float sy = {{0.0173}},
         uint8 zy = {{31}}, {constants}>
        {{ x = DequantizeLinear(x_codes, sx, zx) {nodes} y_codes = QuantizeLinear(y, sy, zy) }}"""


IMAGE = "1,64,64,64"
QLINEAR_SIGMOID = between_codes("y = Sigmoid(x)", IMAGE)
SILU = "s = Sigmoid(x) y = Mul(x, s)"


def _unary(nodes: str, qtype: str = "uint8", scale: float = 0.0371) -> Form:
    return Form(between_codes(nodes, IMAGE, qtype, scale), "tabulate", QLINEAR_SIGMOID, 4.5)


def _normalization(nodes: str, shape: str, parameters: int, qtype: str = "uint8") -> Form:
    """Return the row of a normalisation, held against the same operator between codes."""
    numbers = ", ".join(f"{0.5 + i % 7 / 8}" for i in range(parameters))
    constants = (
        f"float[{parameters}] gamma = {{{numbers}}}, float[{parameters}] beta = {{{numbers}}}"
    )
    scale = 0.0371 if qtype == "uint8" else 0.000151
    graph = between_codes(nodes, shape, qtype, scale, constants)
    return Form(graph, "exact-normalization", graph, 2.8)


def _softmax(op_type: str = "Softmax", source: str = "uint8", result: str = "uint8") -> str:
    """Return the text of 2048 rows of 256 shares between codes."""
    rows = "8,256,256"
    scale, zero = ("0.0731", 117) if source == "uint8" else ("0.000213", 31000)
    return f"""<ir_version: 10, opset_import: ["": 21]>
        g ({source}[{rows}] x_codes) => ({result}[{rows}] y_codes)
        <float sx = {{{scale}}}, {source} zx = {{{zero}}}, float sy = {{0.00390625}},
         {result} zy = {{0}}>
        {{ x = DequantizeLinear(x_codes, sx, zx) y = {op_type}(x)
           y_codes = QuantizeLinear(y, sy, zy) }}"""


def _attention(scores: str, queries: str = "1,8,256,32", keys: str = "1,8,32,256") -> str:
    """Return the text of an attention between codes; `scores` are the nodes from `s` to `x`."""
    return f"""<ir_version: 10, opset_import: ["": 21]>
        g (uint8[{queries}] q_codes, uint8[{keys}] k_codes, uint8[{queries}] v_codes)
        => (uint8[{queries}] y_codes)
        <float sx = {{0.02}}, uint8 zx = {{121}}, float ss = {{0.031}}, uint8 zs = {{130}},
         float sp = {{0.00390625}}, uint8 zp = {{0}}, float h = {{0.1767767}}, int64 zero = {{0}},
         int64 one = {{1}}, int64 keys = {{256}}, int64[1] axis = {{1}}, float nothing = {{0}},
         float low = {{-3.4e38}}>
        {{ q = DequantizeLinear(q_codes, sx, zx) k = DequantizeLinear(k_codes, sx, zx)
           s = MatMul(q, k) {scores} p = Softmax(x) p_codes = QuantizeLinear(p, sp, zp)
           p_real = DequantizeLinear(p_codes, sp, zp) v = DequantizeLinear(v_codes, sx, zx)
           y = MatMul(p_real, v) y_codes = QuantizeLinear(y, sx, zx) }}"""


# ONNX Runtime fuses this to QLinearMatMul - QLinearSoftmax - QLinearMatMul.
ROUNDED_SCORES = "t_codes = QuantizeLinear(s, ss, zs) x = DequantizeLinear(t_codes, ss, zs)"
FUSED_ATTENTION = _attention(ROUNDED_SCORES)
CAUSAL = (
    "at = Range(zero, keys, one) row = Unsqueeze(at, axis) sees = LessOrEqual(at, row)"
    " mask = Where(sees, nothing, low) t = Mul(s, h) x = Add(t, mask)"
)


def _long_attention(heads: int, length: int) -> Form:
    """Return the row of an attention whose rows need finer distances, and sums in pieces."""
    shapes = f"1,{heads},{length},32", f"1,{heads},32,{length}"
    graph = _attention("x = Mul(s, h)", *shapes)
    return Form(graph, "exact-softmax", _attention(ROUNDED_SCORES, *shapes), 1.0)


LAYER_NORM = "y = LayerNormalization(x, gamma, beta)"
GROUP_NORM = "y = GroupNormalization<num_groups = 8>(x, gamma, beta)"

FORMS: Mapping[str, Form] = MappingProxyType(
    {
        **{
            name: _unary(f"y = {name}(x)")
            for name in (
                "Sigmoid", "Tanh", "Erf", "Exp", "HardSigmoid", "HardSwish", "Softsign", "Gelu",
                "Reciprocal", "Log", "Softplus", "Mish", "Elu", "Selu", "Celu", "Sin",
            )
        },
        "Gelu, tanh": _unary('y = Gelu<approximate = "tanh">(x)'),
        "Gelu of Erf": _unary(
            "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)"
        ),
        "SiLU": _unary(SILU),
        "Mish of Softplus": _unary("a = Softplus(x) t = Tanh(a) y = Mul(x, t)"),
        "hard-swish of Clip": _unary(
            "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"
        ),
        "x * x * x": _unary("a = Mul(x, x) y = Mul(a, x)"),
        "SiLU of 16 bits": _unary(SILU, "uint16", 0.000151),
        "LayerNormalization": _normalization(LAYER_NORM, "1024,256", 256),
        "LayerNormalization of 16 bits": _normalization(LAYER_NORM, "1024,256", 256, "uint16"),
        "LayerNormalization, short": _normalization(LAYER_NORM, "64,128", 128, "uint16"),
        "InstanceNormalization": _normalization(
            "y = InstanceNormalization(x, gamma, beta)", IMAGE, 64
        ),
        "GroupNormalization": _normalization(GROUP_NORM, IMAGE, 64),
        "GroupNormalization of 16 bits": _normalization(GROUP_NORM, IMAGE, 64, "uint16"),
        "Softmax": Form(_softmax(), "exact-softmax", _softmax(), 1.0),
        "Softmax of 16 bits": Form(_softmax(source="uint16"), "exact-softmax", _softmax(), 1.0),
        "LogSoftmax": Form(_softmax("LogSoftmax"), "exact-softmax", _softmax("LogSoftmax"), 4.5),
        "attention": Form(_attention("x = Mul(s, h)"), "exact-softmax", FUSED_ATTENTION, 1.0),
        "attention of 1024 keys": _long_attention(2, 1024),
        "attention of 4096 keys": _long_attention(1, 4096),
        "attention, causal": Form(_attention(CAUSAL), "exact-softmax", FUSED_ATTENTION, 1.0),
    }
)  # fmt: skip


def parse(text: str) -> ir.Model:
    """Return the graph, shapes inferred."""
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


def exact_model(form: Form) -> ir.Model:
    """Return what edgeq deploys for the form."""
    model = parse(form.graph)
    context = Context(load_recipe("int8", {}), TARGET.capabilities, NO_SAMPLES)
    run_pipeline(form.passes, model, context)
    return model


@dataclass(frozen=True)
class Timing:
    """Medians of one form, in milliseconds."""

    name: str
    exact: float
    runtime: float
    against: float
    limit: float

    @property
    def ratio(self) -> float:
        """The time of the exact form over that of what it is held against."""
        return self.exact / self.against

    @property
    def reached(self) -> bool:
        """Whether the bound holds."""
        return self.ratio <= self.limit


@dataclass(frozen=True)
class _Fed:
    """A session that takes turns with others, but has feeds of its own."""

    session: Session
    feeds: Feeds

    def run(self, outputs: None, feeds: Feeds) -> object:
        return self.session.run(outputs, self.feeds)


def _fed(model: ir.Model) -> _Fed:
    random = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        assert value.dtype is not None and value.shape is not None
        limits = np.iinfo(value.dtype.numpy())
        codes = random.integers(limits.min, limits.max + 1, value.shape.numpy())
        feeds[str(value.name)] = codes.astype(value.dtype.numpy())
    options = TARGET.capabilities.session_options
    return _Fed(make_session(model, options=options, threads=1), feeds)


def measure(name: str, form: Form, seconds: float) -> Timing:
    """Time the three sessions of a form in turn, for about `seconds`."""
    sessions = {
        "exact": _fed(exact_model(form)),
        "runtime": _fed(parse(form.graph)),
        "against": _fed(parse(form.against)),
    }
    taken, _ = medians(sessions, {}, seconds)
    return Timing(name, taken["exact"], taken["runtime"], taken["against"], form.limit)


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=float, default=2, help="of timing per form")
    arguments = parser.parse_args()
    print("| form | exact (ms) | ONNX Runtime's form (ms) | held against (ms) |"
          " exact / held against | required |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    results = []
    for name in arguments.name or FORMS:
        result = measure(name, FORMS[name], arguments.seconds)
        results.append(result)
        verdict = "reached" if result.reached else f"missed: {result.limit}"
        print(
            f"| {name} | {result.exact:.3f} | {result.runtime:.3f} | {result.against:.3f} |"
            f" **{result.ratio:.2f}** | {verdict} |",
            flush=True,
        )
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
