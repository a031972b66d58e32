"""Attention on the integer products of its codes: every mask and length, every runtime setting."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeq.certify import certify
from edgeq.runtime import make_session, run
from edgeq.scores_form import EMPTY
from tests.test_exact_softmax import TARGET, Feeds, everywhere, exact

Array = NDArray[Any]
SCALE, ZERO, SHARE, RESULT = 0.0507, 121, 1 / 255, 0.0391
D = 8  # elements of a query


@dataclass(frozen=True)
class Masking:
    """One spelling: the inputs that it adds, constants, nodes from `s` to `x`, what is forbidden.

    Attributes:
        nodes: ONNX text; the scores `a` have been scaled to `s`.
        inputs: Further inputs of the graph.
        constants: Further constants.
        guard: Nodes from the softmax `r` to `p`.
    """

    nodes: str
    inputs: str = ""
    constants: str = ""
    guard: str = ""


CAUSAL = "n = Shape<start = 2, end = 3>(qq) e = Concat<axis = 0>(n, n)"
LOWEST = "float zero = {0}, float low = {-3.4028235e38}"
GUARD = "nan = IsNaN(r) p = Where(nan, zero, r)"
SQUARE, KEYS, ANY = "bool[L,L] m", "bool[1,1,1,L] k", "float[1,1,L,L] m"
MASKS = {
    "none": Masking("x = Identity(s)"),
    "Where": Masking("x = Where(m, s, low)", SQUARE, "float low = {-inf}"),
    "Where of the rest": Masking("f = Not(m) x = Where(f, low, s)", SQUARE, "float low = {-1e9}"),
    "Add of lowest": Masking("b = Where(m, zero, low) x = Add(s, b)", SQUARE, LOWEST),
    "Add of infinity": Masking(
        "b = Where(m, zero, low) x = Add(b, s)", SQUARE, "float zero = {0}, float low = {-inf}"
    ),
    "ten thousand times the rest": Masking(
        "f = Cast<to = 1>(m) g = Sub(one, f) b = Mul(g, low) x = Add(s, b)",
        SQUARE,
        "float one = {1}, float low = {-10000}",
    ),
    "Max of lowest": Masking(
        "b = Where(m, zero, low) w = Add(s, b) x = Max(w, low)", SQUARE, LOWEST
    ),
    "an input": Masking("x = Add(s, m)", ANY),
    "two": Masking("t = Add(s, m) x = Where(k, t, low)", f"{ANY}, {KEYS}", "float low = {-65504}"),
    "guarded": Masking(
        "x = Where(m, s, low)", SQUARE, "float zero = {0}, float low = {-inf}", GUARD
    ),
    "guarded, never infinite": Masking("x = Where(m, s, low)", SQUARE, LOWEST, GUARD),
    "lower triangle": Masking(
        f"{CAUSAL} o = Expand(one, e) t = Trilu<upper = 0>(o) f = Equal(t, zero)"
        " x = Where(f, low, s)",
        constants="float one = {1}, float zero = {0}, float low = {-1e9}",
    ),
    "upper triangle of infinity": Masking(
        f"{CAUSAL} o = Expand(low, e) t = Trilu<upper = 1>(o, k) x = Add(s, t)",
        constants="float low = {-inf}, int64 k = {1}",
    ),
    "ranges": Masking(
        "n = Shape<start = 2, end = 3>(qq) c = Squeeze(n) r0 = Range(i0, c, i1)"
        " rows = Unsqueeze(r0, i1v) f = LessOrEqual(r0, rows) b = Where(f, zero, low)"
        " x = Add(s, b)",
        constants=f"int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] i1v = {{1}}, {LOWEST}",
    ),
}


def text(masking: Masking, length: str = "L", values: bool = True) -> str:
    """Return an attention of two heads between codes, its scores scaled by 0.35."""
    inputs = f"uint8[B,2,{length},{D}] qq, uint8[B,2,{D},{length}] kq, uint8[B,2,{length},{D}] vq"
    inputs += f", {masking.inputs.replace('L', length)}" if masking.inputs else ""
    constants = f", {masking.constants}" if masking.constants else ""
    guard = masking.guard or "p = Identity(r)"
    product = ""
    outputs = f"uint8[B,2,{length},{length}] pq"
    if values:
        outputs += f", uint8[B,2,{length},{D}] yq"
        product = "pd = DequantizeLinear(pq, sp, zp) vd = DequantizeLinear(vq, s0, z)"
        product += " y = MatMul(pd, vd) yq = QuantizeLinear(y, sy, z)"
    softmax = "r = Softmax(x)" if masking.guard else "p = Softmax(x)"
    return f"""g ({inputs}) => ({outputs}) <float s0 = {{{SCALE}}}, uint8 z = {{{ZERO}}},
        float h = {{0.35}}, float sp = {{{SHARE}}}, uint8 zp = {{0}}, float sy = {{{RESULT}}}
        {constants}> {{
        qd = DequantizeLinear(qq, s0, z) kd = DequantizeLinear(kq, s0, z) a = MatMul(qd, kd)
        s = Mul(a, h) {masking.nodes} {softmax} {masking.guard and guard}
        pq = QuantizeLinear(p, sp, zp) {product} }}"""


def feeds(model: ir.Model, length: int, batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Return random codes, and masks that leave each row something."""
    random = np.random.default_rng(seed)
    sizes = {"B": batch, "L": length}
    result: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.dtype is not None and value.shape is not None
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        keep = np.tril(np.ones(shape, bool)) if value.name == "m" else np.ones(shape, bool)
        keep[..., 1:] &= random.random(keep[..., 1:].shape) < 0.8
        if value.dtype == ir.DataType.BOOL:
            result[str(value.name)] = keep
        elif value.dtype == ir.DataType.FLOAT:
            bias = random.standard_normal(shape)
            result[str(value.name)] = np.where(keep, bias, -3e38).astype(np.float32)
        else:
            result[str(value.name)] = random.integers(0, 256, shape).astype(np.uint8)
    return result


def in_float(graph: str, fed: Feeds) -> dict[str, Array]:
    """Return what ONNX Runtime makes of the graph in float between the codes."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {graph}')
    return run(make_session(model, level="none"), fed)


@pytest.mark.parametrize("length", [2, 3, 17, 256, 257])
@pytest.mark.parametrize("name", MASKS)
def test_attention(name: str, length: int) -> None:
    graph = text(MASKS[name], values=False)
    model = exact(graph)
    fed = feeds(model, length)
    (found,) = everywhere(model, fed).values()
    (wanted,) = in_float(graph, fed).values()
    # A distance is off by at most 0.024, a share by a quarter of that; then both are rounded.
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 0.006 * 255 + 1
    masked = wanted == 0
    if name != "none":
        assert masked.any() and found[masked].max() <= 1
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulInteger") == 1 and "Softmax" not in kinds and "MatMul" not in kinds


@pytest.mark.parametrize("length", [1024, 4096])
def test_long_attention(length: int) -> None:
    graph = text(MASKS["Where"]).replace("[B,2,L,8] qq", "[B,2,R,8] qq")
    graph = graph.replace("bool[L,L]", "bool[R,L]").replace("[B,2,L,L] pq", "[B,2,R,L] pq")
    model = exact(graph.replace("[B,2,L,8] yq", "[B,2,R,8] yq"))
    random = np.random.default_rng(0)
    fed = {
        "qq": random.integers(0, 256, (1, 2, 5, D)).astype(np.uint8),
        "kq": random.integers(0, 256, (1, 2, D, length)).astype(np.uint8),
        "vq": random.integers(0, 256, (1, 2, length, D)).astype(np.uint8),
        "m": random.random((5, length)) < 0.9,
    }
    everywhere(model, fed, ("extended", "all"))


def test_long_attention_of_known_length() -> None:
    """Finer distances, and terms whose sums are those of pieces."""
    graph = text(MASKS["none"], "4096", values=False).replace("[B,2,4096,8] qq", "[1,2,5,8] qq")
    model = exact(graph.replace("[B,2,", "[1,2,").replace("4096,4096] pq", "5,4096] pq"))
    random = np.random.default_rng(0)
    fed = {
        "qq": random.integers(90, 150, (1, 2, 5, D)).astype(np.uint8),
        "kq": random.integers(90, 150, (1, 2, D, 4096)).astype(np.uint8),
        "vq": np.zeros((1, 2, 4096, D), np.uint8),
    }
    everywhere(model, fed)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("ReduceSum") == 2 and "GatherElements" not in kinds


@pytest.mark.parametrize("name", ["none", "Where", "Add of lowest", "two", "guarded"])
def test_the_product_with_values_is_one_integer_kernel(name: str) -> None:
    model = exact(text(MASKS[name]))
    everywhere(model, feeds(model, 33), ("extended", "all"))
    kernels = TARGET.kernels(model)
    assert kernels["QLinearMatMul"] == kernels["MatMulInteger"] == 1
    assert not {"MatMul", "MatMulIntegerToFloat", "QLinearSoftmax", "Softmax"} & set(kernels)


# What nodes become is what is written: nothing of the form fuses, moves or vanishes.
@pytest.mark.parametrize("name", ["none", "Add of lowest", "an input", "guarded"])
def test_onnx_runtime_leaves_the_form_as_it_is(name: str) -> None:
    model = exact(text(MASKS[name], values=False))
    kept = {"MatMulInteger", "ReduceMax", "Sub", "QuantizeLinear", "Exp", "Round", "ReduceSum"}
    written = [node.op_type for node in model.graph]
    kernels = TARGET.kernels(model)
    assert {kind: kernels[kind] for kind in kept} == {kind: written.count(kind) for kind in kept}
    assert set(kernels) <= set(written)


# -- rows that are masked altogether ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("Where", "uniform"),  # -inf: NaN in float
        ("Where of the rest", "uniform"),
        ("Add of lowest", "uniform"),
        ("Add of infinity", "uniform"),
        ("guarded", "none"),
        ("guarded, never infinite", "uniform"),
    ],
)
def test_a_row_that_is_masked_altogether(name: str, share: str) -> None:
    graph = text(MASKS[name], values=False)
    model = exact(graph)
    fed = feeds(model, 6)
    fed["m"][2] = False
    (found,) = everywhere(model, fed).values()
    expected = round(255 / 6) if share == "uniform" else 0
    assert np.all(found[:, :, 2] == expected)
    (wanted,) = in_float(graph, fed).values()
    if name not in ("Where", "Add of infinity"):
        assert np.abs(wanted[:, :, 2].astype(int) - expected).max() <= 1


def test_a_mild_mask_of_a_whole_row_leaves_the_scores_as_in_float() -> None:
    graph = text(MASKS["an input"], values=False)
    model = exact(graph)
    fed = feeds(model, 6)
    fed["m"][...] = -1e4
    (found,) = everywhere(model, fed).values()
    (wanted,) = in_float(graph, fed).values()
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 2


# -- layers, other spellings -----------------------------------------------------------------------


def test_layers_share_masks_and_constants() -> None:
    """Two attentions with one mask: it is made once, and so are the constants."""
    one = "a{n} = MatMul(qd, kd) s{n} = Mul(a{n}, h{n}) x{n} = Add(s{n}, b) p{n} = Softmax(x{n})"
    one += " c{n} = QuantizeLinear(p{n}, sp, zp)"
    model = exact(
        "g (uint8[2,L,8] qq, uint8[2,8,L] kq, bool[L,L] m) => (uint8[2,L,L] c1, uint8[2,L,L] c2)"
        " <float s = {0.05}, uint8 z = {9}, float h1 = {0.35}, float h2 = {0.5},"
        " float sp = {0.004}, uint8 zp = {0}, float zero = {0}, float low = {-1e4}> {"
        " b = Where(m, zero, low)"
        " qd = DequantizeLinear(qq, s, z) kd = DequantizeLinear(kq, s, z)"
        f" {one.format(n=1)} {one.format(n=2)} }}",
        rewrites=2,
    )
    everywhere(model, feeds(model, 9))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("LessOrEqual") == 1 and kinds.count("Where") == 2
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value]
    keys = [(array.dtype, array.shape, array.tobytes()) for array in arrays]
    assert len(set(keys)) >= len(keys) - 2  # those of the float graph: low, and both zero points


def test_masks_as_low_as_float32_goes_are_added_as_they_are() -> None:
    model = exact(text(MASKS["Add of lowest"], values=False))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Where") == 1 and "LessOrEqual" not in kinds
    # Whatever the score, the sum is the mask: int32 is far below half a unit in its last place.
    assert np.float32(2**31) + np.float32(EMPTY) == np.float32(EMPTY)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("uint8[B,2,8,L] kq", "int8[B,2,8,L] kq"), "int8 keys"),
        (("s = Mul(a, h)", "s = Mul(a, vq2)"), "scores scaled by a value"),
    ],
)
def test_other_scores_stay_unproven(change: tuple[str, str], why: str) -> None:
    graph = text(MASKS["none"], values=False).replace("float sp", "int8 z8 = {0}, float sp")
    graph = graph.replace(*change)
    if "int8 keys" in why:
        graph = graph.replace("DequantizeLinear(kq, s0, z)", "DequantizeLinear(kq, s0, z8)")
    else:
        graph = graph.replace(f"uint8[B,2,L,{D}] vq", "float[1] vq2")
    model = exact(graph, proven=False)
    unproven = certify(model, TARGET.capabilities).unproven
    assert [proof.op_type for proof in unproven] == ["MatMul"]
