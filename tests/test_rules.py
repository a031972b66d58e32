"""Each rule about linear ops is broken once: the linter names it, and bits leave the definition.

Where this host's CPU cannot show it, the formula of the CPU that can is evaluated instead.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeq.certify import certify
from edgeq.check_saturation import saturates
from edgeq.lint import lint
from edgeq.numerics.affine import quantize
from edgeq.numerics.fma import fma
from edgeq.numerics.ort_kernels import AVX2, host_cpu
from edgeq.numerics.qtype import UINT8
from edgeq.numerics.requantize import requantize
from edgeq.targeting import Capabilities
from edgeq.targets.ort_cpu import OrtCpu
from tests.conformance.broken_rules import (
    BASE,
    CONV,
    IMAGE,
    RNG,
    Array,
    W,
    X,
    breaks,
    build,
    conv,
    differing,
    f32,
    findings,
    kernels,
    on_runtime,
    s8,
    u8,
    x86,
)


def test_a_conv_within_the_rules_is_clean() -> None:
    proto = conv(w=np.clip(W, -64, 64))
    assert lint(ir.from_proto(proto)) == ()
    assert differing(proto, {"x": X}) == 0


@x86
def test_int8_activations_stay_float() -> None:
    proto = conv(inputs="int8[2,4,64,64] x", outputs="int8 y", zx=s8(3), zy=s8(4))
    breaks(proto, "uint8-activations")
    assert differing(proto, {"x": X.astype(np.int8)}) > 0


def test_a_dynamic_scale_saturates_without_vnni_and_is_fused_on_arm() -> None:
    """What runs is one operator, whatever the nodes say."""
    body = "q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, w, z) f = Cast<to=1>(m)"
    body += " k = Mul(s, sw) h = Mul(f, k) y = Add(h, b)"
    arrays = {"w": RNG.integers(-127, 128, (64, 24)).astype(np.int8), "sw": f32(0.01),
              "b": RNG.uniform(-1, 1, 24).astype(np.float32)}  # fmt: skip
    proto = build(body, arrays, "float[200,64] x", "float y")
    found = findings(proto, "dynamic-scale")
    assert [f.node for f in found] == ["DynamicQuantizeLinear_0", "MatMulInteger_1"]
    x = RNG.normal(size=(200, 64)).astype(np.float32)
    step = (x.max() - x.min()) / np.float32(255)
    codes = np.rint(x / step) + np.rint(-x.min() / step)
    acc = (codes - np.rint(-x.min() / step)).astype(np.float64) @ arrays["w"].astype(np.float64)
    acc32, scale = acc.astype(np.float32), np.asarray(step * arrays["sw"], np.float32)
    apart, fused = acc32 * scale + arrays["b"], fma(acc32, scale, arrays["b"])
    assert (apart != fused).sum() > 100  # Arm rounds once
    if host_cpu() == AVX2 and not saturates():
        assert on_runtime(proto, {"x": x})[0].tobytes() == apart.tobytes()


def test_weights_of_minus_128_overflow_on_arm_without_dot_product() -> None:
    proto = conv(w=np.full_like(W, -128))
    assert "-128" in breaks(proto, "weight-range").detail
    # Such CPUs add two int8 products in int16 before they widen.
    pair = np.int16(-128 * -128) + np.array([-128 * -128], np.int16)
    assert pair[0] == -(2**15) != 2**15
    assert -127 * -127 * 2 < 2**15


def test_pairs_of_products_saturate_without_vnni() -> None:
    proto = conv()
    assert "127" in breaks(proto, "x64quantprecision").detail
    assert findings(conv(w=np.clip(W, -64, 64)), "x64quantprecision") == []
    # vpmaddubsw adds two u8 * s8 products with saturation to int16.
    largest = 255 * 127 * 2
    assert np.clip(largest, -(2**15), 2**15 - 1) != largest
    assert 255 * 64 * 2 < 2**15


def test_a_session_option_satisfies_its_rule() -> None:
    target = Capabilities(session_options={"session.x64quantprecision": "1"})
    assert lint(ir.from_proto(conv()), target) == ()


MATMUL = "ad = DequantizeLinear(a, sx, zx) bd = DequantizeLinear(b, sw, zw) c = MatMul(ad, bd)"


def test_an_int8_right_side_computed_at_run_time() -> None:
    proto = build(f"{MATMUL} y = QuantizeLinear(c, sy, zy)", BASE, "uint8[8,64] a, int8[64,8] b")
    breaks(proto, "dynamic-right-side")
    fine = build(
        f"{MATMUL} y = QuantizeLinear(c, sy, zy)",
        {**BASE, "zw": u8(128)},
        "uint8[8,64] a, uint8[64,8] b",
    )
    assert findings(fine, "dynamic-right-side") == []
    # The formula of x86 without VNNI: as for constant weights, but no option widens the pairs.
    a, b = np.array([255, 255]), np.array([127, 127])
    assert np.clip((a * b).sum(), -(2**15), 2**15 - 1) != (a * b).sum()


BIASED_MATMUL = (
    "ad = DequantizeLinear(a, sx, zx) wd = DequantizeLinear(w, sw, zw)"
    " c = MatMul(ad, wd) y = Add(c, bias)"
)


@x86
def test_a_bias_behind_matmul_is_a_multiply_add_of_its_own(tmp_path: Path) -> None:
    bias = RNG.uniform(-1, 1, 32).astype(np.float32)
    w = RNG.integers(-127, 128, (64, 32)).astype(np.int8)
    proto = build(BIASED_MATMUL, {**BASE, "w": w, "bias": bias}, "uint8[N,L,64] a", "float y")
    breaks(proto, "matmul-bias")
    assert kernels(proto, tmp_path) == {"MatMulIntegerToFloat", "Add"}
    a = RNG.integers(0, 256, (20, 20, 64)).astype(np.uint8)
    (found,) = on_runtime(proto, {"a": a})
    acc = ((a.astype(np.int64) - 10) @ w.astype(np.int64)).astype(np.float32)
    scale = np.float32(0.1) * np.float32(0.01)
    twice, once = acc * scale + bias, fma(acc, scale, bias)
    assert found.tobytes() == twice.tobytes()
    assert (twice != once).sum() > 1000  # Arm fuses the multiply-add


@x86
def test_a_bias_behind_matmul_of_rank_two_is_a_float_gemm(tmp_path: Path) -> None:
    bias = RNG.uniform(-1, 1, 32).astype(np.float32)
    w = RNG.integers(-127, 128, (64, 32)).astype(np.int8)
    proto = build(BIASED_MATMUL, {**BASE, "w": w, "bias": bias}, "uint8[N,64] a", "float y")
    breaks(proto, "matmul-bias")
    assert kernels(proto, tmp_path) == {"DequantizeLinear", "Gemm"}
    a = RNG.integers(0, 256, (400, 64)).astype(np.uint8)
    (batch,) = on_runtime(proto, {"a": a})
    alone = np.concatenate([on_runtime(proto, {"a": row[None]})[0] for row in a[:50]])
    assert (alone != batch[:50]).sum() > 100  # the same rows, other bits


GEMM = "ad = DequantizeLinear(a, sx{zx}) wd = DequantizeLinear(w, sw{zw}) c = Gemm(ad, wd)"
GEMM += " y = QuantizeLinear(c, sy, zy)"


@x86
def test_a_gemm_without_zero_points_stays_float() -> None:
    arrays = {**BASE, "w": RNG.integers(-127, 128, (512, 64)).astype(np.int8), "sy": f32(0.9)}
    a = RNG.integers(0, 256, (500, 512)).astype(np.uint8)
    proto = build(GEMM.format(zx="", zw=""), arrays, "uint8[500,512] a")
    assert len(findings(proto, "zero-point-input")) == 2
    assert differing(proto, {"a": a}) > 0
    proto = build(GEMM.format(zx=", zx", zw=", zw"), arrays, "uint8[500,512] a")
    assert findings(proto, "zero-point-input") == [] and differing(proto, {"a": a}) == 0


@x86
@pytest.mark.parametrize("limit", ["Relu(c)", "Clip(c, low, high)"])
def test_a_limit_behind_a_gemm_of_reals_keeps_it_in_float(limit: str, tmp_path: Path) -> None:
    w = RNG.integers(-127, 128, (512, 64)).astype(np.int8)
    arrays = {**BASE, "w": w, "low": f32(-1), "high": f32(6)}
    a = RNG.integers(0, 256, (500, 512)).astype(np.uint8)
    body = GEMM.format(zx=", zx", zw=", zw").partition(" y =")[0] + f" r = {limit} y = Neg(r)"
    proto = build(body, arrays, "uint8[500,512] a", "float y")
    breaks(proto, "clip-before-quantize")
    assert "QGemm" not in kernels(proto, tmp_path) and differing(proto, {"a": a}) > 0
    certificate = certify(ir.from_proto(proto), OrtCpu().capabilities)
    assert [proof.op_type for proof in certificate.unproven] == ["Gemm"]
    for other in ("Max(c, low)", "Neg(c)"):
        proto = build(body.replace(limit, other), arrays, "uint8[500,512] a", "float y")
        assert findings(proto, "clip-before-quantize") == []
        assert "QGemm" in kernels(proto, tmp_path) and differing(proto, {"a": a}) == 0
    proto = build(f"{body} z = Abs(r)", arrays, "uint8[500,512] a", "float y, float z")
    assert findings(proto, "clip-before-quantize") == [] and "QGemm" in kernels(proto, tmp_path)


def test_per_axis_activations_fail_at_run_time() -> None:
    body = CONV.replace("DequantizeLinear(x", "DequantizeLinear<axis=1>(x")
    proto = conv(body, sx=f32(0.1, 0.2, 0.3, 0.4), zx=np.full(4, 9, np.uint8))
    breaks(proto, "per-axis-activation")
    with pytest.raises(Exception, match="QLinearConv"):
        on_runtime(proto, {"x": X})


def test_per_axis_results_fail_at_run_time() -> None:
    body = CONV.replace("QuantizeLinear(c", "QuantizeLinear<axis=1>(c")
    proto = conv(body, sy=np.full(8, 0.3, np.float32), zy=np.full(8, 9, np.uint8))
    breaks(proto, "per-axis-result")
    with pytest.raises(Exception, match="QLinearConv"):
        on_runtime(proto, {"x": X})


PAIR = "xd = DequantizeLinear(x, sx, zx) vd = DequantizeLinear(v, sx, zx)"
SCALES = np.array([0.1, 0.2, 0.05, 0.4], np.float32)
REFUSED = {
    "Add(xd, vd)": 4,
    "Mul(xd, vd)": 4,
    "AveragePool<kernel_shape=[2, 2]>(xd)": 4,
    "GlobalAveragePool(xd)": 4,
    "Sigmoid(xd)": 4,
    "LeakyRelu(xd)": 4,
    "Concat<axis=1>(xd, vd)": 8,
}
TWO = "uint8[2,4,64,64] x, uint8[2,4,64,64] v"


def by_channel(op: str, channels: int = 4) -> onnx.ModelProto:
    body = f"{PAIR} c = {op} y = QuantizeLinear<axis=1>(c, sy, zy)"
    return conv(body, TWO, sy=np.resize(SCALES, channels), zy=np.full(channels, 9, np.uint8))


@pytest.mark.parametrize("op", REFUSED)
def test_fused_kernels_refuse_results_per_axis(op: str) -> None:
    proto = by_channel(op, REFUSED[op])
    breaks(proto, "per-axis-result")
    with pytest.raises(Exception, match=r"(?i)qlinear"):
        on_runtime(proto, {"x": X, "v": X})


def test_a_fused_softmax_takes_the_first_scale_for_all() -> None:
    proto = by_channel("Softmax(xd)")
    breaks(proto, "per-axis-result")
    assert differing(proto, {"x": X, "v": X[::-1]}) > 0


@pytest.mark.parametrize("op", ["Sub(xd, vd)", "Div(xd, sx)", "Relu(xd)"])
def test_results_per_axis_of_other_ops_are_fine(op: str) -> None:
    proto = by_channel(op)
    assert findings(proto, "per-axis-result") == []
    assert differing(proto, {"x": X, "v": X[::-1]}) == 0


BIASED = CONV.replace("Conv(xd, wd)", "Conv(xd, wd, bd)").replace(
    " c =", " bd = DequantizeLinear(b, sb, zb) c ="
)


def biased(b: int, sb: Array, w: Array = W) -> onnx.ModelProto:
    codes = np.full(8, b, np.int32)
    return conv(BIASED, b=codes, sb=sb, zb=np.array(0, np.int32), w=w)


def test_a_bias_of_another_scale_leaves_the_conv_in_float(tmp_path: Path) -> None:
    right = np.asarray(f32(0.1) * f32(0.01), np.float32)
    assert findings(biased(1000, right), "bias-scale") == []
    proto = biased(1000, np.asarray(right * f32(2)))
    breaks(proto, "bias-scale")
    assert "Conv" in kernels(proto, tmp_path)
    assert differing(proto, {"x": X}) > 0
    assert differing(biased(1000, right), {"x": X}) == 0


def test_a_large_bias_wraps_around() -> None:
    right = np.asarray(f32(0.1) * f32(0.01), np.float32)
    w = np.full_like(W, 100)
    proto = biased(2**31 - 1, right, w)
    breaks(proto, "bias-range")
    assert findings(biased(2**30, right, w), "bias-range") == []
    (found,) = on_runtime(proto, {"x": np.full_like(X, 255)})
    exact = 2**31 - 1 + 36 * 245 * 100
    multiplier = np.float32(np.float32(0.1) * np.float32(0.01)) / np.float32(0.3)
    expected = requantize(np.array([exact]), np.asarray(multiplier), np.array(100), UINT8)
    assert expected[0] == 255 and (found == 0).all()


def test_denormal_scales_and_multipliers() -> None:
    body = "xd = DequantizeLinear(x, s, zx) p = Mul(xd, big) y = Mul(p, big)"
    scale, big = f32(1e-39), f32(1e19)
    proto = build(body, {"s": scale, "zx": u8(10), "big": big}, IMAGE, "float y")
    breaks(proto, "denormal")
    (kept,) = on_runtime(proto, {"x": X})
    assert np.count_nonzero(kept) > X.size // 2
    # The formula of Armv7 NEON: a denormal operand counts as zero.
    flushed = np.where(np.abs(scale) < np.finfo(np.float32).tiny, f32(0), scale)
    assert not np.any((X.astype(np.float32) - 10) * flushed * big * big)
    breaks(conv(sy=f32(1e37), sx=f32(0.02), sw=f32(0.01), w=np.clip(W, -64, 64)), "denormal")


def test_a_clip_that_cuts_the_range_unfuses_the_conv(tmp_path: Path) -> None:
    body = CONV.replace("y = Quant", "k = Clip(c, low, high) y = Quant").replace("(c, sy", "(k, sy")
    cut = conv(body, low=f32(0), high=f32(6))
    breaks(cut, "clip-before-quantize")
    assert "FusedConv" in kernels(cut, tmp_path)  # in float32, the Clip inside
    # The same limits on codes, behind the integer Conv, give other bits than float arithmetic.
    fine = conv()
    (codes,) = on_runtime(fine, {"x": X})
    limits = quantize(f32(0, 6), f32(0.3), np.array(100), UINT8)
    (found,) = on_runtime(cut, {"x": X})
    assert (np.clip(codes, *limits) != found).sum() > 0
    wide = conv(body, low=f32(-1000), high=f32(1000))
    assert findings(wide, "clip-before-quantize") == []
    assert "QLinearConv" in kernels(wide, tmp_path)


def test_a_linear_op_beside_quantized_ones_that_runs_in_float() -> None:
    body = CONV.replace("y = Quant", "r = Neg(c) y = Quant").replace("(c, sy", "(r, sy")
    proto = conv(body)
    assert "Neg reads its result" in breaks(proto, "float-product").detail
    assert differing(proto, {"x": X}) > 0 and findings(conv(), "float-product") == []
    units = conv(body, sx=f32(1), sw=f32(1 / 4), sy=f32(100))  # exact, whatever its order
    assert findings(units, "float-product") == [] and differing(units, {"x": X}) == 0
