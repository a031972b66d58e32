"""Every kind of node gets its proof, and what breaks one is found and named."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeq.targeting import Capabilities
from tests.certificates import FUSED, UNITS, W8, Arrays, certificate, f32, kinds, last, u8

CONV = (
    "xd = DequantizeLinear(x, sx, z) wd = DequantizeLinear<axis=0>(w, sw, zw)"
    " bd = DequantizeLinear<axis=0>(b, sb, zb) c = Conv(xd, wd, bd) y = QuantizeLinear(c, sy, zy)"
)
SW = f32(0.1, 0.2, 0.3, 0.4)


def conv(**changes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    sx = f32(0.02)
    return {
        "sx": sx,
        "w": W8,
        "sw": SW,
        "zw": np.zeros(4, np.int8),
        "b": np.array([5, -6, 7, 100], np.int32),
        "sb": np.asarray(sx * SW, np.float32),
        "zb": np.zeros(4, np.int32),
        "sy": f32(0.5),
        **changes,
    }


def test_an_integer_conv_has_the_bound_of_its_accumulator() -> None:
    found = certificate(CONV, conv(), outputs="uint8[?] y")
    assert found.unproven == () and found.proven == 5
    proof = found.proofs[3]
    bias = np.array([5, 6, 7, 100])
    bound = int((np.abs(W8.astype(int)).reshape(4, -1).sum(1) * 245 + bias).max())
    assert proof.kind == "integer" and f"|acc| <= {bound} " in proof.detail


CONV_FAULTS = [
    ("beyond int32", {"b": np.array([2**31 - 1, 0, 0, 0], np.int32)}, "beyond int32"),
    ("weight -128", {"w": np.where(W8.max() == W8, -128, W8).astype(np.int8)}, "outside [-127"),
    ("denormal M", {"sy": f32(1e38), "sx": f32(0.02)}, "denormal"),
]


@pytest.mark.parametrize(("rule", "change", "text"), CONV_FAULTS, ids=[r[0] for r in CONV_FAULTS])
def test_conv_faults(rule: str, change: Arrays, text: str) -> None:
    found = certificate(CONV, conv(**change), outputs="uint8[?] y")
    assert len(found.unproven) == 1 and text in found.unproven[0].detail
    assert found.unproven[0].op_type == "Conv"


def test_a_missing_zero_point_input_keeps_a_linear_op_in_float() -> None:
    found = certificate(CONV.replace("(w, sw, zw)", "(w, sw)"), conv(), outputs="uint8[?] y")
    assert [p.op_type for p in found.unproven] == ["Conv"]
    assert "zero_point" in found.unproven[0].detail


def test_two_quantizations_in_a_row_are_merged() -> None:
    body = "r = Relu(x) q = QuantizeLinear(r, one, z) d = DequantizeLinear(q, one, z)"
    body += " p = QuantizeLinear(d, third, z) y = DequantizeLinear(p, third, z)"
    found = certificate(body, inputs="float[10] x")
    assert [p.node for p in found.unproven] == ["p"] and "merged" in found.unproven[0].detail
    kept = Capabilities(fused=FUSED, session_options={"session.disable_double_qdq_remover": "1"})
    assert certificate(body, inputs="float[10] x", capabilities=kept).unproven == ()


def test_one_scale_in_a_list_is_per_tensor() -> None:
    body = "y = DequantizeLinear<axis=1>(x, ones, zs)"
    found = certificate(
        body, {"ones": np.ones(1, np.float32), "zs": np.zeros(1, np.uint8)}, "uint8[3] x"
    )
    assert kinds(found) == ["ieee"]


def test_int8_activations_are_not_proven() -> None:
    found = certificate(
        CONV,
        conv(z=np.array(3, np.int8), zy=np.array(4, np.int8)),
        "int8[1,8,10,10] x",
        outputs="int8[?] y",
    )
    assert [p.op_type for p in found.unproven] == ["Conv"]
    assert "int8" in found.unproven[0].detail


def test_a_normalization_in_float_is_not_proven() -> None:
    body = f"{UNITS} y = LayerNormalization(xd, half)"
    found = certificate(body, inputs="uint8[4,8] x")
    assert [p.op_type for p in found.unproven] == ["LayerNormalization"]
    assert "exact-normalization" in found.unproven[0].detail


PAIR = "ad = DequantizeLinear(a, sa, z) bd = DequantizeLinear(b, sb, z) r = {op}(ad, bd)"
PAIR += " y = QuantizeLinear(r, sy, zy)"
PAIR_ROWS: list[tuple[str, str, tuple[float, float, float], int, str]] = [
    ("Add of odd multiples", "Add", (0.03, 0.05, 0.07), 7, "enumerated"),
    ("Add of powers of two, odd zero point", "Add", (0.5, 0.5, 1.0), 7, "unproven"),
    ("Add of powers of two, even: Arm", "Add", (0.5, 0.5, 1.0), 8, "unproven"),
    ("Sum of the same is never fused", "Sum", (0.5, 0.5, 1.0), 7, "ieee"),
    ("Sub", "Sub", (0.1, 0.3, 0.2), 7, "ieee"),
    ("Div", "Div", (0.1, 0.3, 0.2), 7, "ieee"),
    ("Mul by an odd fraction", "Mul", (0.5, 0.5, 15.75), 7, "enumerated"),
    ("Mul with ties and an odd zero point", "Mul", (0.5, 0.5, 16.0), 7, "unproven"),
]


@pytest.mark.parametrize(
    ("rule", "op", "scales", "zero", "kind"), PAIR_ROWS, ids=[r[0] for r in PAIR_ROWS]
)
def test_pairs(
    rule: str, op: str, scales: tuple[float, float, float], zero: int, kind: str
) -> None:
    sa, sb, sy = (f32(s) for s in scales)
    found = certificate(
        PAIR.format(op=op),
        {"sa": sa, "sb": sb, "sy": sy, "zy": u8(zero)},
        "uint8[4,5] a, uint8[4,5] b",
        outputs="uint8[?] y",
    )
    assert kinds(found) == ["ieee", "ieee", kind, "ieee"]


def test_a_target_that_fuses_nothing_needs_no_enumeration() -> None:
    found = certificate(
        PAIR.format(op="Add"),
        {"sa": f32(0.5), "sb": f32(0.5), "sy": f32(1), "zy": u8(7)},
        "uint8[4,5] a, uint8[4,5] b",
        Capabilities(),
        "uint8[?] y",
    )
    assert found.unproven == ()


POOL_2 = "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(xd) y = QuantizeLinear(p, one, zy)"
CEIL = "p = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1,"
CEIL += " count_include_pad=1>(xd) y = QuantizeLinear(p, third, zy)"
POOL_ROWS = [
    ("average pool, odd zero point", POOL_2, 7, "unproven", "differs for"),
    ("average pool, even zero point", POOL_2, 8, "enumerated", "1021 inputs"),
    ("its divisor is another one", CEIL, 7, "unproven", "ceil_mode"),
    (
        "global pool: a rounded reciprocal",
        "p = GlobalAveragePool(xd) y = QuantizeLinear(p, third, zy)",
        8,
        "unproven",
        "25501 inputs",
    ),
]


@pytest.mark.parametrize(
    ("rule", "body", "zero", "kind", "text"), POOL_ROWS, ids=[r[0] for r in POOL_ROWS]
)
def test_fused_pools(rule: str, body: str, zero: int, kind: str, text: str) -> None:
    found = certificate(f"{UNITS} {body}", {"zy": u8(zero)}, outputs="uint8[?] y")
    assert kinds(found) == ["ieee", kind, "ieee"]
    assert text in found.proofs[1].detail


ELEMENTWISE = [
    "Relu(xd)",
    "Neg(xd)",
    "Abs(xd)",
    "Sqrt(xd)",
    "LeakyRelu(xd)",
    "Clip(xd, one, third)",
    "Add(xd, third)",
    "Mul(xd, third)",
    "Sub(third, xd)",
    "Div(xd, third)",
    "Max(xd, third)",
    "Min(xd, third)",
    "PRelu(xd, third)",
    "Sum(xd, third)",
    "Round(xd)",
]


@pytest.mark.parametrize("call", ELEMENTWISE)
def test_single_operations(call: str) -> None:
    found = certificate(f"{UNITS} y = {call}")
    assert kinds(found) == ["ieee", "ieee"]


def test_integers_stay_on_their_grid_through_single_operations() -> None:
    """Half units, clipped, negated and added, still sum exactly; the bound follows."""
    body = f"{UNITS} h = Mul(xd, half) c = Clip(h, one, seven) n = Neg(c) s = Add(n, one)"
    found = certificate(f"{body} y = ReduceSum(s, hw)", {"seven": f32(7), "hw": np.array([2, 3])})
    assert last(found) == (
        "exact sum",
        "float sum of multiples of 0.5, at most 1200 <= 2**24 of them",
    )


@pytest.mark.parametrize(
    "call",
    [
        "Reshape(xd, flat)",
        "Transpose(xd)",
        "MaxPool<kernel_shape=[2,2]>(xd)",
        "ReduceMax(xd)",
        "Concat<axis=1>(xd, xd)",
        "Slice(xd, at, to)",
        "Pad(xd, pads)",
    ],
)
def test_movement(call: str) -> None:
    arrays = {
        "flat": np.array([1, -1]),
        "at": np.array([0]),
        "to": np.array([1]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    found = certificate(f"{UNITS} y = {call}", arrays)
    assert kinds(found) == ["ieee", "data movement"]


def test_a_table_read_by_codes() -> None:
    body = "i = Cast<to=6>(x) f = Reshape(i, flat) y = GatherElements<axis=0>(table, f)"
    found = certificate(body, {"flat": np.array([-1]), "table": np.arange(256).astype(np.float32)})
    assert kinds(found) == ["data movement", "data movement", "table"]


def test_an_exact_softmax() -> None:
    """Terms from a table of integers: their sum is exact, and one division follows."""
    body = "i = Cast<to=6>(x) f = Reshape(i, rows) t = Reshape(i, flat)"
    body += " e = GatherElements<axis=0>(table, t) r = Reshape(e, rows) s = ReduceSum(r, one_axis)"
    body += " y = Div(r, s)"
    arrays = {
        "flat": np.array([-1]),
        "rows": np.array([8, 100]),
        "one_axis": np.array([1]),
        "table": np.rint(np.exp(-np.arange(256) / 16) * 2**17).astype(np.float32),
    }
    found = certificate(body, arrays)
    assert found.unproven == () and found.proofs[-2].kind == "exact sum"
    arrays["table"] = np.exp(-np.arange(256) / 16).astype(np.float32)
    broken = certificate(body, arrays)
    assert [p.op_type for p in broken.unproven] == ["ReduceSum"]


@pytest.mark.parametrize(
    "op", ["Exp", "Tanh", "Erf", "Sigmoid", "Softplus", "Reciprocal", "Softmax"]
)
def test_a_transcendental_float_function_has_no_proof(op: str) -> None:
    found = certificate(f"{UNITS} y = {op}(xd)")
    assert [p.op_type for p in found.unproven] == [op]


def test_doubt_is_reported_once_at_its_source() -> None:
    found = certificate(f"{UNITS} e = Exp(xd) m = Mul(e, third) y = ReduceMean(m)")
    assert kinds(found) == ["ieee", "unproven", "inherited", "inherited"]
    assert found.proven == 1 and len(found.unproven) == 1


def test_functions_between_codes_need_a_margin() -> None:
    body = "xd = DequantizeLinear(x, s, z) t = Sigmoid(xd) y = QuantizeLinear(t, sy, zy)"
    found = certificate(
        body, {"s": f32(0.05), "sy": f32(1 / 255), "zy": u8(0)}, outputs="uint8[?] y"
    )
    assert kinds(found) == ["ieee", "unproven", "ieee"] and "table" in found.proofs[1].detail
    found = certificate(body, {"s": f32(2.0), "sy": f32(1 / 64), "zy": u8(0)}, outputs="uint8[?] y")
    assert kinds(found) == ["ieee", "table", "ieee"], found.proofs[1].detail


def test_a_fused_softmax_has_no_proof() -> None:
    body = f"{UNITS} s = Softmax(xd) y = QuantizeLinear(s, third, zy)"
    found = certificate(body, outputs="uint8[?] y")
    assert [p.op_type for p in found.unproven] == ["Softmax"]


def test_subgraphs_and_other_domains_are_not_examined() -> None:
    body = "y = If(c) <then_branch = a () => (float r) { r = Identity(one) },"
    body += " else_branch = b () => (float q) { q = Identity(half) }>"
    found = certificate(body, inputs="bool c")
    assert kinds(found) == ["unproven"]


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
def test_open_lengths_are_bounded_by_max_dim(op: str) -> None:
    body, axes = f"{UNITS} y = {op}(xd, hw)", {"hw": np.array([2, 3])}
    found = certificate(body, axes, "uint8[1,8,H,W] x")
    assert kinds(found) == ["ieee", "unproven"] and "--max-dim" in found.proofs[1].detail
    # 245 * 256 * 256 < 2**24 < 245 * 262 * 262
    for max_dim, kind in ((256, "exact sum"), (262, "unproven")):
        proven = certificate(body, axes, "uint8[1,8,H,W] x", max_dim=max_dim)
        assert kinds(proven) == ["ieee", kind]


def test_a_mean_of_open_length_is_on_no_grid() -> None:
    """Its divisor is known at run time only: a second sum of it is not exact."""
    body = f"{UNITS} m = ReduceMean(xd, last) y = ReduceSum(m, first)"
    axes = {"last": np.array([3]), "first": np.array([1])}
    assert kinds(certificate(body, axes, "uint8[1,8,2,4] x"))[1:] == ["exact sum", "exact sum"]
    assert kinds(certificate(body, axes, "uint8[1,8,2,W] x"))[1:] == ["exact sum", "unproven"]


@pytest.mark.parametrize(
    ("inputs", "max_dim", "kind"),
    [
        ("uint8[2,K] x, uint8[K,3] w", 4096, "integer"),
        ("uint8[2,K] x, uint8[K,3] w", 40000, "unproven"),
        ("uint8[2,K] x, uint8[64,3] w", 40000, "integer"),
        ("uint8[2,64] x, int8[64,3] w", 4096, "unproven"),
    ],
)
@pytest.mark.parametrize("op", ["MatMul", "MatMulInteger"])
def test_products_of_two_activations(op: str, inputs: str, max_dim: int, kind: str) -> None:
    """|acc| <= 245 * 245 * K fits int32 up to K = 35776."""
    zero: Arrays = {"zw": np.array(10, np.int8 if ", int8" in inputs else np.uint8)}
    if op == "MatMul":
        body = f"{UNITS} wd = DequantizeLinear(w, one, zw) m = MatMul(xd, wd)"
        body += " y = QuantizeLinear(m, third, zy)"
    else:
        body = "y = MatMulInteger(x, w, z, zw)"
    output = "uint8[?] y" if op == "MatMul" else "int32[?] y"
    found = certificate(body, zero, inputs, outputs=output, max_dim=max_dim)
    assert {p.op_type: p.kind for p in found.proofs}[op] == kind


def test_products_need_constant_zero_points() -> None:
    found = certificate(
        "y = MatMulInteger(x, w)", None, "uint8[2,8] x, uint8[8,3] w", outputs="int32[?] y"
    )
    assert kinds(found) == ["unproven"] and "zero points" in found.proofs[0].detail
