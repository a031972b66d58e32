"""Weights in 4 bits: what is stored, that all read it alike, and that kernels stay integer."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgeq
from edgeq.certify import certify
from edgeq.float_weight import FloatWeight
from edgeq.graph import constant, to_bytes, weight_bytes
from edgeq.inspect import inspect_model
from edgeq.numerics.qtype import FLOAT4, FORMATS
from edgeq.onnx_api import infer_shapes
from edgeq.passes.pack_weights import PackWeights
from edgeq.passing import Context
from edgeq.qdq import operand, quantized_tensors
from edgeq.runtime import LEVELS, make_session, run
from edgeq.simulate import Simulator
from edgeq.stored_codes import packed_source
from edgeq.targeting import find_target

Codes = NDArray[Any]
SHAPES = {"Conv": (16, 8, 3, 3), "depthwise": (16, 1, 5, 5), "Gemm": (32, 40), "MatMul": (40, 32)}
KINDS = ("int4", "int3", *FLOAT4)


def linear(kind: str, codes: Codes, *, scale: float = 0.02, y_scale: float = 0.18) -> ir.Model:
    """Return one quantized linear op of given weights, codes to codes."""
    depth = {"Conv": 8, "depthwise": 16}.get(kind, codes.shape[1 if kind == "Gemm" else 0])
    conv = kind in ("Conv", "depthwise")
    axis = 0 if conv or kind == "Gemm" else 1
    group = 16 if kind == "depthwise" else 1
    shape = [None, depth, 7, 7] if conv else [None, depth]
    op_type = "Conv" if conv else kind
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["N", *shape[1:]]))
    arrays: dict[str, Any] = {
        "sx": np.float32(0.05), "zx": np.uint8(117), "w": codes, "sy": np.float32(y_scale),
        "sw": np.linspace(scale, 2 * scale, codes.shape[axis], dtype=np.float32),
        "zw": np.zeros(codes.shape[axis], np.int8), "zy": np.uint8(131),
    }  # fmt: skip
    values = {
        name: ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
        for name, array in arrays.items()
    }
    v = values.__getitem__
    xd = ir.node("DequantizeLinear", [x, v("sx"), v("zx")])
    wd = ir.node("DequantizeLinear", [v("w"), v("sw"), v("zw")], {"axis": axis})
    attributes: dict[str, Any] = {"pads": [1] * 4, "group": group} if conv else {"transB": 1}
    attributes = attributes if kind != "MatMul" else {}
    node = ir.node(op_type, [xd.outputs[0], wd.outputs[0]], attributes)
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.UINT8))
    q = ir.node("QuantizeLinear", [node.outputs[0], v("sy"), v("zy")], outputs=[y])
    graph = ir.Graph(
        [x],
        [y],
        nodes=[xd, wd, node, q],
        initializers=list(values.values()),
        opset_imports={"": 21},
    )
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model


def grid_codes(qtype: str, shape: tuple[int, ...], seed: int = 0) -> Codes:
    """Return random codes of a format, its extremes among them."""
    found = FORMATS[qtype]
    values = found.values or range(found.qmin, found.qmax + 1)
    codes = np.random.default_rng(seed).choice(np.array(list(values), np.int8), shape)
    codes.reshape(-1)[:2] = found.qmin, found.qmax
    return codes


def pack(model: ir.Model, weights: dict[str, FloatWeight] | None = None) -> int:
    return PackWeights().run(model, cast(Context, SimpleNamespace(float_weights=weights or {})))


def weight(model: ir.Model) -> ir.Value:
    node = next(n for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul"))
    found = operand(node.inputs[1])
    assert found is not None
    return found.codes


def feeds(model: ir.Model, batch: int = 3) -> dict[str, Codes]:
    (x,) = model.graph.inputs
    assert x.shape is not None
    shape = (batch, *(d for d in list(x.shape)[1:] if isinstance(d, int)))
    return {"x": np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("qtype", KINDS)
def test_kernels_stay_integer_and_bits_stay(kind, qtype):
    codes = grid_codes(qtype, SHAPES[kind])
    plain, packed = linear(kind, codes), linear(kind, codes)
    expected = Simulator(plain).run(feeds(plain))["y"]
    assert pack(packed) == 1
    target = find_target("ort-cpu")
    assert certify(packed, target.capabilities).unproven == ()
    kernels = target.kernels(packed)
    assert target.missing_kernels(packed, kernels) == () and kernels == target.kernels(plain)
    assert Simulator(packed).run(feeds(packed))["y"].tobytes() == expected.tobytes()
    compared = 0
    for level in LEVELS:
        for threads in (1, 2):
            session = make_session(packed, threads=threads, level=level)
            found = run(session, feeds(packed))["y"]
            if level in ("none", "basic"):  # in float, whose bits are those of int8 weights
                unfused = make_session(plain, threads=threads, level=level)
                expected_here = run(unfused, feeds(plain))["y"]
            else:
                expected_here = expected
            assert found.tobytes() == expected_here.tobytes(), (level, threads)
            compared += found.size
    assert compared > 700


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_shifted_channels_stay_integer(kind):
    axis = 0 if kind == "MatMul" else 1
    sizes = [s if a == axis else 1 for a, s in enumerate(SHAPES[kind])]
    shift = (np.arange(np.prod(sizes)) % 4).reshape(sizes).astype(np.int32)
    codes = np.left_shift(grid_codes("int4", SHAPES[kind]).astype(np.int32), shift).astype(np.int8)
    model = linear(kind, codes)
    expected = Simulator(model).run(feeds(model))["y"]
    assert pack(model, {"w": FloatWeight(codes * np.float32(1), FORMATS["int4"], 127, shift)}) == 1
    target = find_target("ort-cpu")
    assert [n.op_type for n in model.graph][:3] == ["Cast", "Mul", "Cast"]
    assert certify(model, target.capabilities).unproven == ()
    kernels = target.kernels(model)
    assert target.missing_kernels(model, kernels) == () and "Mul" not in kernels
    found = target.load(model).run(feeds(model))["y"]
    assert found.tobytes() == Simulator(model).run(feeds(model))["y"].tobytes()
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("qtype", ["int4", "float4e3m0"])
def test_long_sums(qtype):
    codes = grid_codes(qtype, (24, 8192))
    model = linear("Gemm", codes, scale=0.001, y_scale=0.1)
    expected = Simulator(model).run(feeds(model))["y"]
    assert pack(model) == 1 and len(np.unique(expected)) > 20
    runner = find_target("ort-cpu").load(model, threads=2)
    assert runner.run(feeds(model))["y"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("qtype", KINDS)
def test_it_takes_half_the_bytes(qtype):
    codes = grid_codes(qtype, (64, 256))
    plain, packed = linear("Gemm", codes), linear("Gemm", codes)
    pack(packed)
    saved = len(to_bytes(plain)) - len(to_bytes(packed))
    assert codes.size // 2 - 250 <= saved <= codes.size // 2
    assert weight_bytes(plain) - weight_bytes(packed) == codes.size // 2 - (
        0 if qtype in ("int4", "int3", "float4e1m2") else 16
    )


shifts = st.sampled_from([None, "tensor", "channel"])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.sampled_from(KINDS), st.integers(0, 2**32 - 1), shifts)
def test_packing_keeps_every_code(kind, qtype, seed, shifted):
    codes = grid_codes("int4" if shifted else qtype, SHAPES[kind], seed)
    shift = None
    if shifted:
        axis = 1 if kind in ("Conv", "Gemm") else 0
        sizes = [s if a == axis and shifted == "channel" else 1 for a, s in enumerate(codes.shape)]
        shift = np.random.default_rng(seed).integers(0, 4, sizes).astype(np.int32)
        codes = np.left_shift(codes.astype(np.int32), shift).astype(np.int8)
    model = linear(kind, codes)
    source = FloatWeight(codes.astype(np.float32), FORMATS["int4"], 127, shift)
    pack(model, {"w": source})
    for found in (model, ir.from_proto(onnx.load_from_string(to_bytes(model)))):
        value = weight(found)
        array = constant(value)
        assert packed_source(value) is not None and array is not None
        assert array.dtype == np.int8 and array.tobytes() == codes.tobytes()
        assert "w" not in found.graph.initializers and value.name == "w"


def test_what_does_not_fit_stays():
    for codes in (
        grid_codes("int5", (32, 40)),
        grid_codes("int8", (32, 40)),
        grid_codes("int4", (5, 51)),  # too small
    ):
        model = linear("Gemm", codes)
        before = to_bytes(model)
        assert pack(model) == 0 and to_bytes(model) == before


def test_readers_of_a_packed_model():
    model = linear("Gemm", grid_codes("float4e2m1", (32, 40)))
    pack(model)
    assert quantized_tensors(model) == ["y"]
    rows = {row.name: (row.role, row.qtype) for row in inspect_model(model).quantized}
    assert rows == {
        "x": ("activation", "uint8"),
        "w": ("weight", "float4e2m1"),
        "y": ("activation", "uint8"),
    }
    source = packed_source(weight(model))
    assert source is not None and source.const_value is not None
    other = grid_codes("int4", (32, 40)).astype(np.uint8) & 15
    source.const_value = ir.tensor(other.astype(source.const_value.numpy().dtype))
    table = np.unique(grid_codes("float4e2m1", (32, 40)))
    found = constant(weight(model))
    assert found is not None and np.array_equal(found, np.pad(table, (0, 1))[other])  # read anew


def test_a_real_model(tmp_path):
    folder = "samples/digits"
    sizes, formats = {}, {}
    for recipe in ("int8", "w4a8", "w4a6", "fp4a8"):
        bundle = edgeq.compile(
            f"{folder}/digits.onnx",
            target="ort-cpu",
            calibration=f"{folder}/calibration.npz",
            recipe=recipe,
            samples=24,
            output=tmp_path / recipe,
        )
        assert (
            bundle.manifest.bitwise.mismatches == 0 and bundle.manifest.bitwise.compared > 100_000
        )
        assert bundle.manifest.certificate.unproven == ()
        report = json.loads((bundle.path / "report.json").read_text())
        formats[recipe] = {
            row["formats"] for row in report["operators"] if row["kind"] == "integer"
        }
        sizes[recipe] = report["bytes_deployed"]
        assert sizes[recipe] == (bundle.path / "model.onnx").stat().st_size
        checked = edgeq.check(tmp_path / recipe)
        assert checked.mismatches == 0 and checked.compared > 500
    assert max(sizes["w4a8"], sizes["fp4a8"]) < 0.85 * sizes["int8"], sizes
    assert formats["int8"] == {"uint8 * int8 -> uint8", "uint8 * int8 -> float32"}
    assert "uint8 * int4 -> uint8" in formats["w4a8"]
    assert "uint6 * int4 -> uint6" in formats["w4a6"]
    assert "uint8 * float4e2m1 -> uint8" in formats["fp4a8"]
