"""Each rule is broken once: the linter names it, and ONNX Runtime's bits leave the definition.

Where this host's CPU cannot show it, the formula of the CPU that can is evaluated instead.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edgeq.lint import Finding, lint, to_text
from edgeq.numerics.affine import QParams, quantize
from edgeq.numerics.fma import fma
from edgeq.numerics.ort_kernels import ARM, AVX2, host_cpu
from edgeq.numerics.qtype import UINT8
from edgeq.numerics.requantize import requantize
from edgeq.proofs import prove_add
from edgeq.rules import RULES
from edgeq.simulate import Simulator
from edgeq.targeting import Capabilities

Array = NDArray[Any]
Arrays = Mapping[str, Array]
RNG = np.random.default_rng(0)
x86 = pytest.mark.skipif(host_cpu() != AVX2, reason="shown on x86 with AVX2")


def f32(*values: float) -> Array:
    return np.array(values if len(values) != 1 else values[0], np.float32)


def u8(value: int) -> Array:
    return np.array(value, np.uint8)


def s8(value: int) -> Array:
    return np.array(value, np.int8)


def build(body: str, constants: Arrays, inputs: str, outputs: str = "uint8 y") -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return onnx.shape_inference.infer_shapes(proto)


def on_runtime(
    proto: onnx.ModelProto, feeds: Arrays, options: Mapping[str, str] | None = None
) -> list[Array]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    session = ort.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(a) for a in session.run(None, dict(feeds))]


def kernels(proto: onnx.ModelProto, path: Path) -> set[str]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path / "optimized.onnx").graph.node}


def findings(proto: onnx.ModelProto, rule: str) -> list[Finding]:
    return [f for f in lint(ir.from_proto(proto)) if f.rule == rule]


def breaks(proto: onnx.ModelProto, rule: str, count: int = 1) -> Finding:
    found = findings(proto, rule)
    assert len(found) == count, lint(ir.from_proto(proto))
    assert found[0].node and found[0].value and found[0].remedy
    return found[0]


def differing(proto: onnx.ModelProto, feeds: Arrays, name: str = "y") -> int:
    """Count the elements of `name` where ONNX Runtime leaves the simulator."""
    (found,) = on_runtime(proto, feeds)
    expected = Simulator(ir.from_proto(proto)).run(feeds)[name]
    assert found.dtype == expected.dtype and found.size == expected.size > 100
    return int((found != expected).sum())


# -- linear ops ------------------------------------------------------------------------------------

W = RNG.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
CONV = (
    "xd = DequantizeLinear(x, sx, zx) wd = DequantizeLinear(w, sw, zw)"
    " c = Conv(xd, wd) y = QuantizeLinear(c, sy, zy)"
)
BASE: Arrays = {
    "sx": f32(0.1),
    "zx": u8(10),
    "w": W,
    "sw": f32(0.01),
    "zw": s8(0),
    "sy": f32(0.3),
    "zy": u8(100),
    "one": f32(1),
}
IMAGE = "uint8[2,4,64,64] x"
X = RNG.integers(0, 256, (2, 4, 64, 64)).astype(np.uint8)


def conv(
    body: str = CONV, inputs: str = IMAGE, outputs: str = "uint8 y", **changes: Array
) -> onnx.ModelProto:
    return build(body, {**BASE, **changes}, inputs, outputs)


def test_a_conv_within_the_rules_is_clean() -> None:
    proto = conv(w=np.clip(W, -64, 64))
    assert lint(ir.from_proto(proto)) == ()
    assert differing(proto, {"x": X}) == 0


@x86
def test_int8_activations_stay_float() -> None:
    proto = conv(inputs="int8[2,4,64,64] x", outputs="int8 y", zx=s8(3), zy=s8(4))
    breaks(proto, "uint8-activations")
    assert differing(proto, {"x": X.astype(np.int8)}) > 0


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


# -- fused kernels ---------------------------------------------------------------------------------

CODES = np.arange(256, dtype=np.uint8)
PAIRS = np.repeat(CODES, 256), np.tile(CODES, 256)
PAIR = "ad = DequantizeLinear(a, sa, za) bd = DequantizeLinear(b, sb, zb) r = {op}(ad, bd)"
PAIR += " y = QuantizeLinear(r, sy, zy)"


def pair(op: str, sa: float, sb: float, sy: float, zy: int) -> onnx.ModelProto:
    arrays = {"sa": f32(sa), "sb": f32(sb), "sy": f32(sy), "za": u8(3), "zb": u8(5), "zy": u8(zy)}
    return build(PAIR.format(op=op), arrays, "uint8[65536] a, uint8[65536] b")


FUSED = [("Add", 0.5, 0.5, 1.0), ("Mul", 0.5, 0.5, 16.0)]


@x86
@pytest.mark.parametrize(("op", "sa", "sb", "sy"), FUSED)
def test_a_fused_pair_with_an_odd_zero_point(op: str, sa: float, sb: float, sy: float) -> None:
    """The linter's count is exactly how many inputs ONNX Runtime gets wrong."""
    proto = pair(op, sa, sb, sy, 9)
    found = breaks(proto, "fused-without-proof")
    wrong = differing(proto, {"a": PAIRS[0], "b": PAIRS[1]})
    assert wrong > 100 and f"x86 AVX2 differs for {wrong} of 65536" in found.detail


def test_a_fused_add_with_an_even_zero_point_differs_on_arm() -> None:
    proto = pair("Add", 0.5, 0.5, 1.0, 8)
    found = breaks(proto, "fused-without-proof")
    assert "Arm differs" in found.detail and "x86" not in found.detail.split(":", 1)[1]
    params = [QParams(UINT8, f32(s), np.array(z)) for s, z in ((0.5, 3), (0.5, 5), (1.0, 8))]
    assert {d.cpu for d in prove_add(*params).disagreements} == {ARM}
    if host_cpu() == AVX2:
        assert differing(proto, {"a": PAIRS[0], "b": PAIRS[1]}) == 0


@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_odd_multiples_or_sum_are_the_remedy(op: str) -> None:
    scales = (0.03, 0.05, 0.07) if op == "Add" else (0.5, 0.5, 1.0)
    proto = pair(op, *scales, 9)
    assert lint(ir.from_proto(proto)) == ()
    assert differing(proto, {"a": PAIRS[0], "b": PAIRS[1]}) == 0


@pytest.mark.parametrize(
    ("call", "sx", "zy"),
    [
        ("AveragePool<kernel_shape=[2,2], strides=[2,2]>(xd)", 1.0, 9),
        ("AveragePool<kernel_shape=[2,2], strides=[2,2]>(xd)", 0.1, 8),
        ("GlobalAveragePool(xd)", 1.0, 8),
    ],
    ids=["ties and an odd zero point", "sums off the grid", "a rounded reciprocal"],
)
def test_fused_pools(call: str, sx: float, zy: int) -> None:
    body = f"xd = DequantizeLinear(x, s, zx) p = {call} y = QuantizeLinear(p, s, zy)"
    shape = (2, 512, 6, 10)
    x = RNG.integers(0, 256, shape).astype(np.uint8)
    # A sum of 30 modulo 60 is a tie of the mean.
    odd = x.reshape(-1, 60)
    missing = (30 - odd.astype(int).sum(1)) % 60
    odd[:, :] = np.where(odd < 195, odd, 195)
    missing = (30 - odd.astype(int).sum(1)) % 60
    odd[:, 0] += missing.astype(np.uint8)
    proto = build(body, {"s": f32(sx), "zx": u8(0), "zy": u8(zy)}, "uint8[2,512,6,10] x")
    breaks(proto, "fused-without-proof")
    assert differing(proto, {"x": odd.reshape(shape)}) > 0


def test_an_average_pool_with_another_divisor() -> None:
    call = "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1,"
    body = f"xd = DequantizeLinear(x, one, zx) p = {call} count_include_pad=1>(xd)"
    proto = build(f"{body} y = QuantizeLinear(p, one, zx)", {"one": f32(1), "zx": u8(10)}, IMAGE)
    assert "ceil_mode" in breaks(proto, "fused-without-proof").detail
    (fused,) = on_runtime(proto, {"x": X})
    (nodes,) = on_runtime(proto, {"x": X}, {"session.disable_quant_qdq": "1"})
    assert (fused != nodes).sum() > 100


def test_a_fused_softmax_cuts_its_reciprocal() -> None:
    body = "xd = DequantizeLinear(x, s, zx) p = Softmax<axis=-1>(xd) y = QuantizeLinear(p, sy, zx)"
    arrays = {"s": f32(0.02), "zx": u8(0)}
    inputs = "uint8[500,4] x"
    proto = build(body, {**arrays, "sy": f32(0.013)}, inputs)
    breaks(proto, "fused-softmax")
    assert differing(proto, {"x": RNG.integers(0, 256, (500, 4)).astype(np.uint8)}) > 0


def test_two_quantizations_are_merged_unless_tapped() -> None:
    body = (
        "r = Relu(x) q = QuantizeLinear(r, s1, z1) d = DequantizeLinear(q, s1, z1)"
        " p = QuantizeLinear(d, s2, z2) y = DequantizeLinear(p, s2, z2)"
    )
    arrays = {"s1": f32(0.1), "z1": u8(10), "s2": f32(0.07), "z2": u8(20)}
    proto = build(body, arrays, "float[1000] x", "float y")
    breaks(proto, "requantization")
    x = {"x": np.linspace(-30, 30, 1000).astype(np.float32)}
    assert differing(proto, x) > 100
    expected = Simulator(ir.from_proto(proto)).run(x)["y"]
    option = {"session.disable_double_qdq_remover": "1"}
    assert on_runtime(proto, x, option)[0].tobytes() == expected.tobytes()
    tapped = build(body, arrays, "float[1000] x", "float y, uint8 q")
    assert findings(tapped, "requantization") == []
    assert on_runtime(tapped, x)[0].tobytes() == expected.tobytes()


# -- float nodes -----------------------------------------------------------------------------------


def test_a_float_sum_off_the_grid_depends_on_its_order() -> None:
    body = "xd = DequantizeLinear(x, s, zx) y = ReduceMean(xd, axes)"
    x = RNG.integers(0, 256, (300, 49)).astype(np.uint8)
    arrays = {"s": f32(0.0123), "zx": u8(10), "axes": np.array([1])}
    proto = build(body, arrays, "uint8[300,49] x", "float y")
    assert "0.0122999996" in breaks(proto, "off-grid-sum").detail
    (found,) = on_runtime(proto, {"x": x})
    real = (x.astype(np.float32) - 10) * np.float32(0.0123)
    total = np.zeros((300, 1), np.float32)
    for column in range(49):
        total += real[:, column : column + 1]
    assert (found != total / np.float32(49)).sum() > 30
    units = build(body, {**arrays, "s": f32(1)}, "uint8[300,49] x", "float y")
    assert findings(units, "off-grid-sum") == []
    exact = (x.astype(np.int64) - 10).sum(1, keepdims=True).astype(np.float32) / np.float32(49)
    assert on_runtime(units, {"x": x})[0].tobytes() == exact.tobytes()


@pytest.mark.parametrize(
    "call",
    [
        'Resize<mode="linear">(xd, , by)',
        "ConvTranspose(xd, wd)",
        "AveragePool<kernel_shape=[3,3]>(xd)",
    ],
)
def test_other_sums_off_the_grid(call: str) -> None:
    body = f"xd = DequantizeLinear(x, sx, zx) wd = DequantizeLinear(w, one, zw) y = {call}"
    weights = RNG.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8)
    proto = conv(body, w=weights, by=f32(1, 1, 2, 2), outputs="float y")
    breaks(proto, "off-grid-sum")
    (found,) = on_runtime(proto, {"x": X})
    # In units the sum is exact; times the scale it is what the float sum misses.
    units = conv(body, w=weights, by=f32(1, 1, 2, 2), outputs="float y", sx=f32(1))
    assert findings(units, "off-grid-sum") == []
    scaled = on_runtime(units, {"x": X})[0] * np.float32(0.1)
    assert (found != scaled).sum() > found.size // 100


def test_functions_are_not_correctly_rounded() -> None:
    proto = build("xd = DequantizeLinear(x, sx, zx) y = Exp(xd)", BASE, "uint8[256] x", "float y")
    breaks(proto, "float-function")
    codes = np.arange(256, dtype=np.uint8)
    (found,) = on_runtime(proto, {"x": codes})
    real = (codes.astype(np.float32) - 10) * np.float32(0.1)
    assert (found != np.exp(real.astype(np.float64)).astype(np.float32)).sum() > 0


def test_a_function_near_a_tie_is_found_and_one_with_a_margin_is_not() -> None:
    body = "xd = DequantizeLinear(x, s, zx) t = Sigmoid(xd) y = QuantizeLinear(t, sy, zy)"
    near = {"s": f32(0.05), "zx": u8(128), "sy": f32(1 / 255), "zy": u8(0)}
    assert "tie" in breaks(build(body, near, "uint8[256] x"), "float-function").detail
    far = {"s": f32(2.0), "zx": u8(10), "sy": f32(1 / 64), "zy": u8(0)}
    assert findings(build(body, far, "uint8[256] x"), "float-function") == []


def test_a_table_read_by_gather_is_right_but_slow() -> None:
    table = np.arange(256)[::-1].astype(np.float32)
    body = "i = Cast<to=6>(x) y = Gather(table, i)"
    proto = build(body, {"table": table}, "uint8[256] x", "float y")
    breaks(proto, "gather-table")
    codes = np.arange(256, dtype=np.uint8)
    assert on_runtime(proto, {"x": codes})[0].tobytes() == table.tobytes()


def test_every_rule_is_broken_here() -> None:
    text = Path(__file__).read_text()
    missing = [rule.id for rule in RULES if text.count(f'"{rule.id}"') < 1]
    assert missing == []
    assert len({rule.id for rule in RULES}) == len(RULES) == 18


def test_findings_are_text_and_json() -> None:
    found = lint(ir.from_proto(pair("Add", 0.5, 0.5, 1.0, 9)))
    assert str(found[0]).startswith("fused-without-proof: node 'Add_2', value 'r': QLinearAdd:")
    text = to_text(found)
    assert text.startswith("fused-without-proof: ") and "- Add_2 (r): QLinearAdd:" in text
    assert to_text(()) == "" and json.loads(json.dumps(found[0].as_json()))
    assert set(found[0].as_json()) == {
        "rule",
        "node",
        "value",
        "detail",
        "reason",
        "remedy",
        "cpus",
    }
