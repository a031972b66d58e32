"""Small float models, and how tests take them through the passes of a recipe."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.calibrate import calibrate
from edgeq.compile import activations
from edgeq.graph import clone, remove_dead
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, parse_steps, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.steps import format_steps
from edgeq.targeting import find_target

NETWORK = """<ir_version: 10, opset_import: ["" : 21]>
network (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv <pads = [1,1,1,1]> (x, w1, b1)
  r = Relu (a)
  d = Conv <pads = [1,1,1,1], group = 6> (r, w2, b2)
  s = Relu (d)
  p = Conv (s, w3, b3)
  t = Add (p, r)
  u = Relu (t)
  m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (u)
  g = ReduceMean <keepdims = 0> (m, axes)
  y = Gemm <transB = 1> (g, w4, b4)
}"""
NETWORK_WEIGHTS = {
    "w1": (6, 3, 3, 3), "b1": (6,), "w2": (6, 1, 3, 3), "b2": (6,), "w3": (6, 6, 1, 1), "b3": (6,),
    "w4": (5, 6), "b4": (5,),
}  # fmt: skip

BLOCK = """<ir_version: 10, opset_import: ["" : 21]>
block (float[N,5,8] x) => (float[N,5,8] y) {
  n = LayerNormalization (x, gain, shift)
  q0 = MatMul (n, wq)  q1 = Reshape (q0, heads)  q = Transpose <perm = [0,2,1,3]> (q1)
  k0 = MatMul (n, wk)  k1 = Reshape (k0, heads)  k = Transpose <perm = [0,2,3,1]> (k1)
  v0 = MatMul (n, wv)  v1 = Reshape (v0, heads)  v = Transpose <perm = [0,2,1,3]> (v1)
  s = MatMul (q, k)  t = Mul (s, half)  p = Softmax (t)
  o = MatMul (p, v)  o1 = Transpose <perm = [0,2,1,3]> (o)  o2 = Reshape (o1, flat)
  a = MatMul (o2, wo)
  z = Add (x, a)
  f0 = MatMul (z, w1)  f1 = Add (f0, b1)  f2 = Gelu (f1)  f3 = MatMul (f2, w2)  f4 = Add (f3, b2)
  y = Add (z, f4)
}"""
BLOCK_WEIGHTS = {
    "gain": (8,), "shift": (8,), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8),
    "w1": (8, 16), "b1": (16,), "w2": (16, 8), "b2": (8,),
}  # fmt: skip
CONSTANTS: dict[str, dict[str, NDArray[Any]]] = {
    "network": {"axes": np.array([2, 3])},
    "block": {
        "half": np.array(0.5, np.float32),
        "heads": np.array([0, 0, 2, 4]),
        "flat": np.array([0, 0, 8]),
    },
}


def float_model(name):
    """Return `network` (convolutions, a residual) or `block` (attention, a transformer's)."""
    text, shapes = {"network": (NETWORK, NETWORK_WEIGHTS), "block": (BLOCK, BLOCK_WEIGHTS)}[name]
    rng = np.random.default_rng(4)
    arrays = {n: rng.normal(0, 0.4, s).astype(np.float32) for n, s in shapes.items()}
    return parse(text, {**arrays, **CONSTANTS[name]})


def parse(text, constants):
    """Return the model of a text, its nodes named as what they make, and its initializers."""
    declared = ", ".join(_declared(name, array) for name, array in constants.items())
    model = ir.from_onnx_text(text.replace(" {\n", f" <{declared}> {{\n", 1))
    for node in model.graph:
        node.name = node.outputs[0].name
    infer_shapes(model)
    return model


def _declared(name, array):
    kind = "int64" if array.dtype == np.int64 else "float"
    sizes = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    return f"{kind}{sizes} {name} = {{{', '.join(repr(v) for v in array.reshape(-1).tolist())}}}"


def samples(name, count=24, seed=5):
    """Return feeds of one sample each."""
    rng = np.random.default_rng(seed)
    shape = {"network": (1, 3, 8, 8), "block": (1, 5, 8)}[name]
    return [{"x": rng.normal(0, 1, shape).astype(np.float32)} for _ in range(count)]


def quantize(model, feeds, *, recipe="int8", settings=None, until=""):
    """Run the passes of a recipe, in place, up to one; return the context."""
    asked = load_recipe(recipe, settings or {})
    context = Context(recipe=asked, capabilities=find_target("ort-cpu").capabilities, samples=feeds)
    run_pipeline(asked.prepare, model, context)
    context.reference = clone(model)
    context.calibration = calibrate(context.reference, feeds, activations(context.reference))
    steps = parse_steps(asked.quantize)
    last = next((i for i, step in enumerate(steps) if step.name == until), len(steps) - 1)
    run_pipeline(format_steps(steps[: last + 1]), model, context)
    remove_dead(model.graph)
    return context
