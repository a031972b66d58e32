"""Small quantized graphs, one for each way of lowering them."""

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.onnx_api import infer_shapes

Array = NDArray[Any]
_KINDS = {"float32": "float", "float64": "double"}


def constant(name: str, array: Any, dtype: Any = np.float32) -> str:
    """Return an initializer as text."""
    array = np.asarray(array, dtype)
    kind = _KINDS.get(array.dtype.name, array.dtype.name)
    sizes = f"[{', '.join(map(str, array.shape))}]" if array.ndim else ""
    return f"{kind}{sizes} {name} = {{{', '.join(str(v.item()) for v in array.ravel())}}}"


def weights(name: str, *shape: int, seed: int = 0) -> str:
    """Return random int8 weights as text."""
    values = np.random.default_rng(seed).integers(-127, 128, shape)
    return constant(name, values, np.int8)


def biases(name: str, count: int) -> str:
    values = np.random.default_rng(1).integers(-3000, 3000, count)
    return constant(name, values, np.int32)


def model_of(signature: str, constants: list[str], nodes: str, opset: int = 21) -> ir.Model:
    """Return the graph with the types that shape inference finds."""
    head = f"<{', '.join(constants)}>" if constants else ""
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g {signature} {head} {{ {nodes} }}'
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


def hard_reals(count: int) -> Array:
    """Return reals that are hard to quantize by 0.5 or 0.1: ties, limits, what is no number."""
    rng = np.random.default_rng(3)
    special = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -1e-40, 0.0, -0.0])
    units = np.concatenate([np.arange(-700, 700) / 2, rng.uniform(-40000, 40000, count)])
    reals = np.concatenate([special, units * 0.5, units * 0.1]).astype(np.float32)
    return reals[rng.permutation(len(reals))[:count]]


def feeds_for(model: ir.Model, seed: int = 0) -> dict[str, Array]:
    """Return feeds: codes over their full range, floats around 0 or hard ones, indices below 5."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        assert value.dtype is not None and value.shape is not None
        dtype, shape = value.dtype.numpy(), [int(size) for size in value.shape]  # type: ignore[arg-type]
        if dtype.kind == "f":
            many = len(shape) == 1 and shape[0] > 1000
            reals = hard_reals(shape[0]) if many else rng.standard_normal(shape) * 4
            feeds[str(value.name)] = reals.astype(dtype)
        elif dtype.name == "bool":
            feeds[str(value.name)] = rng.integers(0, 2, shape).astype(bool)
        elif dtype.name == "int64":
            feeds[str(value.name)] = rng.integers(-5, 5, shape)
        else:
            limits = np.iinfo(dtype)
            feeds[str(value.name)] = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return feeds


Q8 = ["float sx = {0.05}", "uint8 zx = {117}", "float sy = {0.71}", "uint8 zy = {131}"]
S8 = ["float sx = {0.05}", "int8 zx = {-3}", "float sy = {0.71}", "int8 zy = {7}"]
SW = ["float sw = {0.01}", "int8 zw = {0}"]
SB = ["float sb = {0.0005}", "int32 zb = {0}"]
X = "r = DequantizeLinear(x, sx, zx)"
Y = "y = QuantizeLinear(o, sy, zy)"


def conv(
    x: tuple[int, ...], w: tuple[int, ...], attributes: str = "", *, kind: str = "uint8"
) -> ir.Model:
    """Return a quantized Conv with a bias."""
    scale = constant("sw", np.random.default_rng(2).uniform(0.005, 0.02, w[0]))
    zero = constant("zw", np.zeros(w[0]), np.int8)
    bias = np.float32(0.05) * np.random.default_rng(2).uniform(0.005, 0.02, w[0]).astype(np.float32)
    constants = [weights("w", *w), biases("b", w[0]), scale, zero, constant("sb", bias)]
    constants += [constant("zb", np.zeros(w[0]), np.int32)]
    nodes = f"""
        {X} v = DequantizeLinear <axis=0> (w, sw, zw)  t = DequantizeLinear <axis=0> (b, sb, zb)
        o = Conv {attributes} (r, v, t)  {Y}"""
    sizes = list(x)
    return model_of(
        f"({kind}{sizes} x) => ({kind}[] y)",
        (Q8 if kind == "uint8" else S8) + constants, nodes,
    )  # fmt: skip


def dynamic(
    kind: str, a: str, b: str, zeros: tuple[int, int] = (117, 131), *, before: str = ""
) -> ir.Model:
    """Return a product of two values."""
    constants = [
        "float sa = {0.05}", f"{kind} za = {{{zeros[0]}}}", "float sb = {0.03}",
        f"{kind} zb = {{{zeros[1]}}}", "float sy = {0.5}", "uint8 zy = {99}",
    ]  # fmt: skip
    right = "u" if before else "b"
    nodes = f"""
        {before}
        p = DequantizeLinear(a, sa, za)  q = DequantizeLinear({right}, sb, zb)
        o = MatMul(p, q)  {Y}"""
    return model_of(f"({kind}{a} a, {kind}{b} b) => (uint8[] y)", constants, nodes)


def function(name: str, attributes: str = "", kind: str = "uint8", zero: int = 117) -> ir.Model:
    """Return a function that IEEE does not define, of codes."""
    constants = [f"float sx = {{0.0{1 if kind == 'uint16' else 3}}}", f"{kind} zx = {{{zero}}}"]
    constants += ["float sy = {0.013}", "uint8 zy = {77}"]
    nodes = f"{X} o = {name} {attributes} (r)  {Y}"
    return model_of(f"({kind}[2, 3, 5] x) => (uint8[2, 3, 5] y)", constants, nodes)


def quantize(kind: str, zero: int, scale: float, shape: str = "[4097]") -> ir.Model:
    constants = [f"float sy = {{{scale}}}", f"{kind} zy = {{{zero}}}"]
    return model_of(f"(float{shape} o) => ({kind}{shape} y)", constants, Y)


def _images() -> dict[str, ir.Model]:
    image = ["uint8[1, 6, 5, 7] x"]
    weight = [weights("w", 8, 6, 3, 3), *SW, "float sc = {1.0}", *Q8]
    head = f"{X} v = DequantizeLinear(w, sw, zw)  o = Conv <pads=[1,1,1,1]> (r, v)"
    codes = f"{head} c = QuantizeLinear(o, sy, zy)  d = DequantizeLinear(c, sy, zy)"
    first = f"({image[0]}) => "
    return {
        "Conv and Add of a channel": model_of(
            first + "(float[] y)", [*weight, constant("k", np.arange(8).reshape(8, 1, 1))],
            f"{codes} y = Add(d, k)",
        ),
        "Conv and Add of a row": model_of(
            first + "(float[] y)", [*weight, constant("k", np.arange(7))],
            f"{codes} y = Mul(d, k)",
        ),
        "Conv and what the user gives": model_of(
            "(uint8[1, 6, 5, 7] x, float[1, 8, 5, 7] z) => (uint8[] y)", weight,
            f"{codes} s = Sum(d, z)  y = QuantizeLinear(s, sy, zy)",
        ),
        "Conv, rows, MatMul": model_of(
            first + "(uint8[] y)",
            [*weight, weights("u", 8, 11, seed=5), constant("n", [1, 8, 35], np.int64)],
            f"""{head} c = QuantizeLinear(o, sy, zy)  e = Reshape(c, n)
                f = Transpose <perm=[0, 2, 1]> (e)  g = DequantizeLinear(f, sy, zy)
                h = DequantizeLinear(u, sw, zw)  i = MatMul(g, h)  y = QuantizeLinear(i, sy, zy)""",
        ),
        "Conv, Flatten, Gemm": model_of(
            first + "(float[] y)", [*weight, weights("u", 3, 280, seed=5)],
            f"""{head} c = QuantizeLinear(o, sy, zy)  e = Flatten(c)
                g = DequantizeLinear(e, sy, zy) h = DequantizeLinear(u, sw, zw)
                y = Gemm <transB=1> (g, h)""",
        ),
        "Conv, DepthToSpace, Slice, Concat": model_of(
            first + "(uint8[] y)",
            [*weight, *(constant(n, v, np.int64) for n, v in (("p", [1]), ("q", [9]), ("t", [3])))],
            f"""{head} c = QuantizeLinear(o, sy, zy)  e = DepthToSpace <blocksize=2> (c)
                f = Slice(e, p, q, t)  y = Concat <axis=3> (f, e)""",
        ),
        "Conv, MaxPool, ReduceMean": model_of(
            first + "(float[] y)", [*weight, constant("k", [2, 3], np.int64)],
            f"""{head} c = QuantizeLinear(o, sy, zy)
                e = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,1]> (c)
                f = DequantizeLinear(e, sc, zy)  y = ReduceMean <keepdims=0> (f, k)""",
        ),
        "Conv, output twice": model_of(
            first + "(uint8[] c, float[] y)", weight,
            f"{codes} y = Relu(d)",
        ),
    }  # fmt: skip


@cache
def models() -> dict[str, ir.Model]:
    """Return every case by name."""
    blocked = "y = QuantizeLinear <axis=1, block_size=2> (x, s, z)"
    found = {
        "Conv": conv((1, 6, 7, 5), (9, 6, 3, 3), "<pads=[1,0,2,1]>"),
        "Conv of int8": conv((2, 3, 7, 5), (4, 3, 3, 3), "<strides=[2,1]>", kind="int8"),
        "Conv of groups": conv((1, 6, 7, 5), (4, 3, 3, 3), "<group=2, pads=[1,1,1,1]>"),
        "Conv of each channel": conv((1, 17, 7, 5), (17, 1, 3, 3), "<group=17, dilations=[2,1]>"),
        "Conv of a line": conv((2, 5, 11), (7, 5, 3), "<pads=[1,1]>"),
        "Conv of one pixel": conv((1, 1, 1, 1), (1, 1, 1, 1)),
        "Gemm with a bias": model_of(
            "(uint8[3, 13] x) => (uint8[a, b] y)",
            [*Q8, *SW, weights("w", 13, 5), biases("b", 5), *SB],
            f"""{X} v = DequantizeLinear(w, sw, zw)  t = DequantizeLinear(b, sb, zb)
                o = Gemm(r, v, t)  {Y}""",
        ),
        "Gemm to float": model_of(
            "(uint8[1, 9] x) => (float[a, b] y)", [*Q8, *SW, weights("w", 21, 9)],
            f"{X} v = DequantizeLinear(w, sw, zw)  y = Gemm <transB=1> (r, v)",
        ),
        "MatMul of rows": model_of(
            "(uint8[2, 3, 13] x) => (uint8[a, b, c] y)", [*Q8, *SW, weights("w", 13, 5)],
            f"{X} v = DequantizeLinear(w, sw, zw)  o = MatMul(r, v)  {Y}",
        ),
        "MatMul of many matrices": model_of(
            "(uint8[2, 3, 13] x) => (uint8[a, b, c] y)", [*Q8, *SW, weights("w", 2, 13, 5)],
            f"{X} v = DequantizeLinear(w, sw, zw)  o = MatMul(r, v)  {Y}",
        ),
        "Mul of codes": model_of(
            "(uint8[2, 3, 1] a, uint8[3, 5] b) => (uint8[] y)",
            ["float sx = {0.05}", "uint8 zx = {117}", "float sy = {2.5}", "uint8 zy = {131}"],
            f"""c = DequantizeLinear(a, sx, zx)  d = DequantizeLinear(b, sx, zy)
                o = Mul(c, d)  {Y}""",
        ),
        "QuantizeLinear per axis": model_of(
            "(float[2, 3, 5] x) => (uint8[2, 3, 5] y)",
            [constant("s", [0.1, 0.3, 0.5]), constant("z", [0, 77, 255], np.uint8)],
            "y = QuantizeLinear <axis=-2> (x, s, z)",
        ),
        "QuantizeLinear of one zero point": model_of(
            "(float[2, 3, 5] x) => (int8[2, 3, 5] y)",
            [constant("s", [0.1, 0.3]), constant("z", [3, 3], np.int8)],
            "y = QuantizeLinear <axis=0> (x, s, z)",
        ),
        "QuantizeLinear without a zero point": model_of(
            "(float[2, 3] x) => (uint8[2, 3] y)", ["float s = {0.3}"], "y = QuantizeLinear(x, s)",
        ),
        "QuantizeLinear to int16": model_of(
            "(float[2, 3] x) => (int16[2, 3] y)", ["float s = {0.0003}"],
            "y = QuantizeLinear <output_dtype=5> (x, s)",
        ),
        "QuantizeLinear by blocks": model_of(
            "(float[2, 5] x) => (uint8[2, 5] y)",
            [constant("s", np.arange(1, 7).reshape(2, 3) / 7),
             constant("z", np.arange(6).reshape(2, 3) * 50, np.uint8)],
            blocked,
        ),
        "QuantizeLinear by values": model_of(
            "(float[2, 5] x, float[2, 3] t) => (uint8[2, 5] y)",
            [constant("z", np.full((2, 3), 7), np.uint8), "float tiny = {0.001}"],
            f"a = Abs(t)  s = Add(a, tiny)  {blocked}",
        ),
        "DequantizeLinear per axis": model_of(
            "(int8[2, 3, 5] x) => (float[2, 3, 5] y)",
            [constant("s", [0.1, 0.3, 0.5]), constant("z", [0, 77, -128], np.int8)],
            "y = DequantizeLinear(x, s, z)",
        ),
        "DequantizeLinear of int32": model_of(
            "(int32[2, 3] x) => (float[2, 3] y)", ["float s = {0.1}", "int32 z = {0}"],
            "y = DequantizeLinear(x, s, z)",
        ),
        "DequantizeLinear of uint16 and int16": model_of(
            "(uint16[9] x, int16[9] z) => (float[9] y)",
            ["float s = {0.1}", "uint16 a = {3}", "int16 b = {-7}"],
            "p = DequantizeLinear(x, s, a)  q = DequantizeLinear(z, s, b)  y = Sub(p, q)",
        ),
        "GatherElements of a table": model_of(
            "(uint8[2, 3, 5] x) => (float[2, 3, 5] y)",
            [constant("t", np.sin(np.arange(256))), constant("n", [-1], np.int64),
             constant("m", [2, 3, 5], np.int64)],
            """i = Cast <to=6> (x)  f = Reshape(i, n)  p = GatherElements(t, f)
               y = Reshape(p, m)""",
        ),
        "Gather of rows": model_of(
            "(int64[2, 3] x) => (uint8[2, 3, 4] y)", [constant("t", np.arange(20).reshape(5, 4),
            np.uint8)], "y = Gather(t, x)",
        ),
        "Where of codes": model_of(
            "(uint8[4, 4] x, bool[4, 4] m) => (uint8[4, 4] y)", Q8,
            f"{X} n = Neg(r)  o = Where(m, r, n)  {Y}",
        ),
        "CumSum": model_of(
            "(uint8[2, 5, 3] x) => (float[2, 5, 3] y, float[2, 5, 3] z)",
            [*Q8, "float u = {1.0}", constant("k", 1, np.int64), constant("j", -1, np.int64)],
            "r = DequantizeLinear(x, u, zx)  y = CumSum(r, k)  z = CumSum(r, j)",
        ),
        "an axis of size 1 between axes that are repeated": model_of(
            "(float[1, 1, 1, 64] a, float[3, 1, 1, 1] b, float[1, 1, 5, 1] c) => (float[] y)",
            [constant("k", [0, 1, 2], np.int64)],
            "s = Add(a, b)  t = Add(s, c)  y = ReduceMax(t, k)",
        ),
        "ReduceMax of a scalar": model_of("(float x) => (float y)", [], "y = ReduceMax(x)"),
        "MatMul with a vector of weights": model_of(
            "(uint8[3, 13] x) => (uint8[a] y)", [*Q8, *SW, weights("w", 13)],
            f"{X} v = DequantizeLinear(w, sw, zw)  o = MatMul(r, v)  {Y}",
        ),
        "axes of size 1": model_of(
            "(uint8[1, 1, 5, 1] x) => (uint8[1, 5, 1] y)",
            [*Q8, constant("k", [0], np.int64), constant("j", [1, 5, 1], np.int64)],
            f"""{X} t = Transpose <perm=[3, 0, 2, 1]> (r)  m = ReduceMax <keepdims=1> (t, k)
                d = Sub(t, m)  o = Reshape(d, j)  {Y}""",
        ),
        "softmax by table and sum": model_of(
            "(uint8[1, 2, 3, 9] x) => (uint8[1, 2, 3, 9] y)",
            ["float sx = {0.05}", "uint8 zx = {117}", "float sy = {0.00390625}", "uint8 zy = {0}",
             "float u = {1.0}", constant("k", [3], np.int64)],
            f"""{X} e = Exp(r)  q = QuantizeLinear(e, sx, zx)  f = DequantizeLinear(q, u, zx)
                s = ReduceSum(f, k)  o = Div(f, s)  {Y}""",
        ),
    }  # fmt: skip
    for kind, zeros in (("uint8", (117, 131)), ("uint8", (0, 128)), ("int8", (-3, 5))):
        case = f"{kind} with zero points {zeros}"
        found[f"product of {case}"] = dynamic(kind, "[3, 5, 7]", "[3, 7, 9]", zeros)
        found[f"wide product of {case}"] = dynamic(kind, "[2, 37, 64]", "[1, 64, 83]", zeros)
        found[f"product by columns of {case}"] = dynamic(
            kind, "[2, 33, 17]", "[2, 18, 17]", zeros,
            before="u = Transpose <perm=[0, 2, 1]> (b)",
        )  # fmt: skip
    found["product of broadcast matrices"] = dynamic("uint8", "[2, 1, 3, 8]", "[5, 8, 16]")
    found["product of one row"] = dynamic("uint8", "[1, 300]", "[300, 1]")
    found["product with a vector"] = dynamic("uint8", "[2, 5, 7]", "[7]")
    found["product of a vector"] = dynamic("uint8", "[7]", "[2, 7, 5]")
    for kind, zero in (("uint8", 117), ("int8", -3), ("uint16", 301)):
        for name in ("Exp", "Tanh", "Erf", "Gelu", "Sigmoid", "HardSwish", "Floor"):
            found[f"{name} of {kind}"] = function(name, "", kind, zero)
    found["Gelu by tanh"] = function("Gelu", '<approximate="tanh">')
    for kind, zero in (("uint8", 0), ("uint8", 117), ("int8", -3), ("uint16", 30001), ("int16", 5)):
        for scale in (0.5, 0.1):
            found[f"QuantizeLinear to {kind} by {scale}"] = quantize(kind, zero, scale)
    return found | _images()


REFUSED = {
    "Softmax": model_of("(uint8[2, 9] x) => (float[2, 9] y)", Q8, f"{X} y = Softmax(r)"),
    "Trilu": model_of("(uint8[9, 9] x) => (float[9, 9] y)", Q8, f"{X} y = Trilu(r)"),
    "Exp": model_of("(float[9] x) => (float[9] y)", [], "y = Exp(x)"),
    "Erf": model_of(
        "(uint8[9] x, uint8[9] z) => (float[9] y)", Q8,
        f"{X} s = DequantizeLinear(z, sx, zx)  t = Add(r, s)  y = Erf(t)",
    ),
    "Conv": model_of(
        "(float[1, 1, 3, 3] x) => (float[1, 1, 3, 3] y)",
        [constant("w", np.ones((1, 1, 1, 1)))], "y = Conv(x, w)",
    ),
    "Gemm": model_of(
        "(uint8[5, 13] x) => (uint8[5, 5] y)",
        [*Q8, *SW, weights("w", 13, 5), constant("b", np.ones((5, 1)), np.int32), *SB],
        f"""{X} v = DequantizeLinear(w, sw, zw)  t = DequantizeLinear(b, sb, zb)
            o = Gemm(r, v, t)  {Y}""",
    ),
    "Neg": model_of("(float16[3] x) => (float16[3] y)", [], "y = Neg(x)"),
    "ArgMax": model_of("(float[3, 4] x) => (int64[3, 1] y)", [], "y = ArgMax <axis=1> (x)"),
    "Slice": model_of(
        "(float[3] x) => (float[0] y)",
        [constant("p", [2], np.int64), constant("q", [1], np.int64)], "y = Slice(x, p, q)",
    ),
    "MaxPool": model_of(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y, int64[1, 1, 2, 2] z)", [],
        "y, z = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (x)",
    ),
    "Resize": model_of(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y)", [constant("k", [1, 1, 2, 2])],
        'y = Resize <mode="linear"> (x, , k)',
    ),
    "CumSum": model_of(
        "(float[3] x) => (float[3] y)", [constant("k", 0, np.int64)],
        "y = CumSum <reverse=1> (x, k)",
    ),
}  # fmt: skip
