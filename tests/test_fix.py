"""`edgeq lint --fix` writes what breaks no rule, computes the definition, and stays accurate."""

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from edgeq.cli import app
from edgeq.cpus import CPUS
from edgeq.fix import fix
from edgeq.lint import lint, to_text
from edgeq.opening import open_model
from edgeq.passing import pass_names
from edgeq.predict import Prediction
from edgeq.rules import RULES
from edgeq.runtime import make_session, run
from edgeq.simulate import Simulator
from edgeq.steps import parse_steps
from tests.conformance.broken_rules import BASE, CONV, RNG, X, build, conv, f32, s8, u8

IMAGE = "uint8[2,4,64,64] x"
RELU = CONV.replace("y = Q", "l = Relu(c) y = Q").replace("(c, sy", "(l, sy")
BIAS = RNG.uniform(-1, 1, 8).astype(np.float32)
DENSE = RNG.integers(-128, 128, (64, 24)).astype(np.int8)
PAIR = "xd = DequantizeLinear(x, sx, zx) vd = DequantizeLinear(v, sv, zx)"
V = np.roll(X, 5)
MATMUL = "xd = DequantizeLinear(x, sx, zx) wd = DequantizeLinear(w, sw, zw) m = MatMul(xd, wd)"
BIAS24 = RNG.uniform(-1, 1, 24).astype(np.float32)
ROWS = RNG.integers(0, 256, (2, 17, 64)).astype(np.uint8)

# name: (model, feeds, how far a real may move; 0 where every bit of the definition stays). Where
# float sums are integer ones afterwards, a few codes move by one.
BROKEN: dict[str, Any] = {
    "weights that saturate": (conv(), {"x": X}, 0),
    "weights of -128": (conv(w=np.full_like(BASE["w"], -128)), {"x": X}, 0),
    "int8 activations": (
        conv("q = QuantizeLinear(x, sx, zx) " + CONV.replace("(x,", "(q,")
             + " e = DequantizeLinear(q, sx, zx)", "float[2,4,64,64] x", "int8 y, float e",
             zx=s8(3), zy=s8(4)),
        {"x": (X.astype(np.float32) - 128) / 11}, 0,
    ),
    "a Relu in front of codes": (conv(RELU), {"x": X}, 0.3),
    "a bias in float": (
        conv(CONV.replace("(xd, wd)", "(xd, wd, b)"), b=BIAS), {"x": X}, 0.3,
    ),
    "flattened reals": (
        build("xd = DequantizeLinear(x, sx, zx) f = Flatten(xd) wd = DequantizeLinear(w, sw, zw)"
              " y = Gemm(f, wd)", {**BASE, "w": DENSE}, "uint8[9,4,4,4] x", "float y"),
        {"x": RNG.integers(0, 256, (9, 4, 4, 4)).astype(np.uint8)}, 1e-4,
    ),
    "a Conv of reals": (
        conv(CONV.partition(" y =")[0] + " y = Add(c, skip)",
             f"{IMAGE}, float[2,8,62,62] skip", "float y"),
        {"x": X, "skip": np.ones((2, 8, 62, 62), np.float32)}, 1e-3,
    ),
    "a fused Add with ties": (
        build(f"{PAIR} r = Add(xd, vd) y = QuantizeLinear(r, sy, zy)",
              {**BASE, "sx": f32(0.5), "sv": f32(0.5), "sy": f32(1), "zy": u8(9)},
              f"{IMAGE}, uint8[2,4,64,64] v"),
        {"x": X, "v": V}, 0,
    ),
    "a mean off the grid": (
        build("xd = DequantizeLinear(x, sx, zx) r = GlobalAveragePool(xd)"
              " y = QuantizeLinear(r, sy, zy)", {**BASE, "sy": f32(0.02)}, IMAGE),
        {"x": X}, 0.02,
    ),
    "a running sum off the grid": (
        build("xd = DequantizeLinear(x, sx, zx) r = CumSum(xd, last) y = QuantizeLinear(r, sy, zy)",
              {**BASE, "sy": f32(9), "last": np.array(-1, np.int64)}, "uint8[40,64] x"),
        {"x": ROWS[0, :, :].repeat(3, 0)[:40]}, 0.3,
    ),
    "a function near a tie": (
        build("xd = DequantizeLinear(x, sx, zx) r = Tanh(xd) y = Neg(r)", BASE, IMAGE, "float y"),
        {"x": X}, 1e-6,
    ),
    "a bias behind a MatMul": (
        build(f"{MATMUL} r = Add(m, b) y = QuantizeLinear(r, sy, zy)",
              {**BASE, "w": DENSE, "b": BIAS24, "sy": f32(0.9)}, "uint8[N,17,64] x"),
        {"x": ROWS}, 0.3,
    ),
    "a MatMul of reals": (
        build(f"{MATMUL} y = Neg(m)", {**BASE, "w": DENSE}, "uint8[2,17,64] x", "float y"),
        {"x": ROWS}, 1e-3,
    ),
    "codes quantized again": (
        build("r = Relu(x) q = QuantizeLinear(r, sx, zx) d = DequantizeLinear(q, sx, zx)"
              " p = QuantizeLinear(d, sw, zy) y = DequantizeLinear(p, sw, zy)",
              {**BASE, "zy": u8(20)}, "float[1000] x", "float y"),
        {"x": np.linspace(-30, 30, 1000).astype(np.float32)}, 0,
    ),
    "a normalisation with quantized parameters": (
        build("xd = DequantizeLinear(x, sx, zx) gd = DequantizeLinear(g, sw, zw)"
              " r = LayerNormalization(xd, gd, b) y = QuantizeLinear(r, sw, zy)",
              {**BASE, "g": np.arange(-12, 12).astype(np.int8), "b": BIAS24, "zy": u8(128)},
              "uint8[N,17,24] x"),
        {"x": ROWS[..., :24]}, 0.3,
    ),
    "a Softmax of reals": (
        build("xd = DequantizeLinear(x, sx, zx) y = Softmax(xd)", BASE, "uint8[2,17,64] x",
              "float y"),
        {"x": ROWS}, 1e-5,
    ),
    "no zero points": (
        build("xd = DequantizeLinear(x, sx) wd = DequantizeLinear(w, sw) c = Gemm(xd, wd)"
              " y = QuantizeLinear(c, sy, zy)", {**BASE, "w": DENSE, "sy": f32(0.9)},
              "uint8[40,64] x"),
        {"x": RNG.integers(0, 256, (40, 64)).astype(np.uint8)}, 0,
    ),
    "weights quantized in the graph": (
        build("xd = DequantizeLinear(x, sx, zx) q = QuantizeLinear(f, sw, zw)"
              " wd = DequantizeLinear(q, sw, zw) c = Conv(xd, wd) y = QuantizeLinear(c, sy, zy)",
              {**BASE, "f": BASE["w"].astype(np.float32) / 100}, IMAGE),
        {"x": X}, 0.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_written_breaks_no_rule_and_is_the_same_on_every_cpu(name):
    proto, feeds, tolerance = BROKEN[name]
    before = open_model(proto)
    assert lint(before)
    after = open_model(proto)
    made = fix(after)
    assert made.left == () and made.records and all(r.rewrites for r in made.records)
    first, second = Simulator(before).run(feeds), Simulator(after).run(feeds)
    fixed = open_model(ir.to_proto(after))
    on_host = run(make_session(fixed), feeds)
    for output, expected in first.items():
        found = second[output]
        assert on_host[output].tobytes() == found.tobytes()
        for cpu in CPUS.values():
            predicted = Prediction(fixed, cpu).run(feeds)
            assert predicted[output].tobytes() == found.tobytes(), cpu.name
        if found.dtype != expected.dtype:  # int8 that became uint8 is no output
            raise AssertionError(output)
        step = 0.3 if expected.dtype.kind in "ui" else 1
        moved = np.abs(found.astype(np.float64) - expected) * step
        assert moved.max() <= tolerance and moved.size > 7


def test_channels_scales_move_into_weights():
    """What NNCF writes: a scale per channel between a Conv and a depthwise one."""
    body = (
        "xd = DequantizeLinear(x, sx, zx) wd = DequantizeLinear(w, sw, zw) c = Conv(xd, wd, b)"
        " l = Relu(c) q = QuantizeLinear<axis=1>(l, sq, zq)"
        " qd = DequantizeLinear<axis=1>(q, sq, zq)"
        " vd = DequantizeLinear(v, sw, zw) d = Conv<group=8>(qd, vd, b)"
        " y = QuantizeLinear(d, sy, zy)"
    )
    depth = RNG.integers(-127, 128, (8, 1, 3, 3)).astype(np.int8)
    proto = conv(body, b=BIAS, v=depth, sq=RNG.uniform(0.05, 0.4, 8).astype(np.float32),
                 zq=np.zeros(8, np.uint8))  # fmt: skip
    before, after = open_model(proto), open_model(proto)
    assert "per-axis-activation" in {f.rule for f in lint(before)}
    assert fix(after).left == ()
    expected = Simulator(before).run({"x": X})["y"].astype(int)
    found = Simulator(after).run({"x": X})["y"].astype(int)
    assert np.abs(found - expected).max() <= 2 and np.ptp(found) > 20
    assert (found != expected).mean() < 0.01
    assert run(make_session(after), {"x": X})["y"].tobytes() == found.astype(np.uint8).tobytes()


def test_what_needs_data_stays_a_finding():
    body = "wd = DequantizeLinear(w, sw, zw) c = Conv(x, wd) y = Neg(c)"
    model = open_model(conv(body, "float[2,4,64,64] x", "float y"))
    made = fix(model)
    assert [f.rule for f in made.left] == ["float-product"] and "input" in made.left[0].detail


def test_what_is_left_is_not_said_to_be_fixed():
    body = "q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, w, z) f = Cast<to=1>(m)"
    model = open_model(build(f"{body} y = Mul(f, s)", {"w": DENSE}, "float[5,64] x", "float y"))
    left = fix(model).left
    assert {f.rule for f in left} == {"dynamic-scale"} and len(left) == 2
    assert "chosen at run time" in left[0].detail
    reals = open_model(
        build("y = LayerNormalization(x, g)", {"g": BIAS24}, "float[3,24] x", "float y")
    )
    text = to_text(fix(reals).left, left=True)
    assert "(--fix cannot here)" in text and "--fix does" not in text
    assert "its input does not come straight from a DequantizeLinear" in text


def test_rewrites_are_passes():
    named = {step.name for rule in RULES for step in parse_steps(rule.rewrite)}
    assert named <= set(pass_names()) and len(named) >= 8
    assert {rule.id for rule in RULES if not rule.rewrite} == {
        "dynamic-scale", "bias-range", "denormal", "gather-table",
    }  # fmt: skip


def test_the_command(tmp_path):
    onnx.save(conv(), tmp_path / "model.onnx")
    before = (tmp_path / "model.onnx").read_bytes()

    def call(*arguments):
        return CliRunner().invoke(app, ["lint", str(tmp_path / "model.onnx"), *arguments])

    found = call("--fix", "-o", str(tmp_path / "fixed.onnx"))
    assert found.exit_code == 0 and "1 findings, 0 left; rewrites: unsigned-codes" in found.stdout
    assert (tmp_path / "model.onnx").read_bytes() == before
    fixed = onnx.load(tmp_path / "fixed.onnx")
    assert {n.op_type for n in fixed.graph.node} == {"DequantizeLinear", "Conv", "QuantizeLinear"}
    assert call("--fix").exit_code == 2 and call("-o", "x.onnx").exit_code == 2
    refused = call("--fix", "-o", str(tmp_path / "fixed.onnx"))
    assert refused.exit_code == 2 and "exists" in refused.stderr
    shown = json.loads(call("--fix", "-o", str(tmp_path / "again.onnx"), "--json").stdout)
    assert len(shown["findings"]) == 1 and shown["left"] == []
    assert shown["findings"][0]["cpus"] == "x86-64-avx2"
