"""Each rule about fused kernels and float nodes is broken once, and bits leave the definition.

Where this host's CPU cannot show it, the formula of the CPU that can is evaluated instead.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeq.lint import lint, to_text
from edgeq.numerics.affine import QParams
from edgeq.numerics.ort_kernels import ARM, AVX2, host_cpu
from edgeq.numerics.qtype import UINT8
from edgeq.proofs import prove_add
from edgeq.rules import RULES
from edgeq.simulate import Simulator
from tests.conformance.broken_rules import (
    BASE,
    IMAGE,
    RNG,
    X,
    breaks,
    build,
    conv,
    differing,
    f32,
    findings,
    on_runtime,
    u8,
    x86,
)

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


def test_a_normalisation_in_float_depends_on_the_order_of_its_sums() -> None:
    body = "xd = DequantizeLinear(x, s, zx) y = LayerNormalization(xd, gamma)"
    arrays = {"s": f32(0.0123), "zx": u8(10), "gamma": np.ones(49, np.float32)}
    x = RNG.integers(0, 256, (300, 49)).astype(np.uint8)
    proto = build(body, arrays, "uint8[300,49] x", "float y")
    assert breaks(proto, "float-normalization").rewrite == "exact-normalization"
    (found,) = on_runtime(proto, {"x": x})
    real = (x.astype(np.float32) - 10) * np.float32(0.0123)
    total, squares = np.zeros((2, 300, 1), np.float32)
    for column in range(49):
        total += real[:, column : column + 1]
        squares += real[:, column : column + 1] ** 2
    mean = total / np.float32(49)
    spread = np.sqrt(squares / np.float32(49) - mean * mean + np.float32(1e-5))
    assert (found != (real - mean) / spread).sum() > 1000
    reals = build("y = LayerNormalization(x, x)", {}, "float[49] x", "float y")
    assert "no constants" in breaks(reals, "float-normalization").detail
    reals = build("y = LayerNormalization(x, gamma)", arrays, "float[3,49] x", "float y")
    assert "straight from" in breaks(reals, "float-normalization").detail


def test_a_softmax_in_float_is_each_cpus() -> None:
    body = "xd = DequantizeLinear(x, sx, zx) y = Softmax(xd)"
    proto = build(body, BASE, "uint8[500,30] x", "float y")
    breaks(proto, "fused-softmax")
    assert differing(proto, {"x": RNG.integers(0, 256, (500, 30)).astype(np.uint8)}) > 0


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
    texts = [f.read_text() for f in sorted(Path(__file__).parent.glob("test_rules*.py"))]
    text = "".join(texts)
    missing = [rule.id for rule in RULES if text.count(f'"{rule.id}"') < 1]
    assert missing == []
    assert len({rule.id for rule in RULES}) == len(RULES) == 21


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
        "rewrite",
    }
