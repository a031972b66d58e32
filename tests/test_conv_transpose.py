"""Every ConvTranspose has an exact form: an integer Conv, or sums of units below 2**24."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeq.calibrate import calibrate
from edgeq.certify import certify
from edgeq.graph import clone
from edgeq.numerics.requantize import requantize
from edgeq.onnx_api import infer_shapes
from edgeq.operators.linear import conv_transpose
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import linear_group, operand, quantize_node, quantized_tensors
from edgeq.recipe import load_recipe
from edgeq.roles import is_activation
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.verify import verify

PREPARE = "linear-form, conv-transpose"
QUANTIZE = (
    "choose-qparams, relate-scales, insert-qdq, fold-clip, quantize-weights,"
    " conv-transpose-units, unit-scales, prove-fused"
)
TARGET = find_target("ort-cpu")


def make(channels: tuple[int, int], size: tuple[int, ...], kernel: tuple[int, ...],
         *, group: int = 1, scale: float = 0.3, **attributes: Any) -> ir.Model:  # fmt: skip
    """Return `Relu(ConvTranspose(x))` with random weights."""
    rng = np.random.default_rng(9)
    weight = rng.normal(0, scale, (channels[0], channels[1] // group, *kernel))
    arrays = {"w": weight, "b": rng.normal(0, 1, channels[1])}
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("ConvTranspose", ["x", "w", "b"], ["t"], "t", group=group,
                             **attributes),
            helper.make_node("Relu", ["t"], ["y"], "y"),
        ],
        "g",
        [helper.make_tensor_value_info("x", float32, [1, channels[0], *size])],
        [helper.make_tensor_value_info("y", float32, None)],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    infer_shapes(model)
    return model


def compiled(model: ir.Model) -> tuple[ir.Model, list[dict[str, Any]]]:
    rng = np.random.default_rng(8)
    (x,) = model.graph.inputs
    assert x.shape is not None
    samples: Any = [{"x": rng.normal(0, 1, x.shape.numpy()).astype(np.float32)} for _ in range(3)]
    context = Context(
        recipe=load_recipe("int8"),
        capabilities=TARGET.capabilities,
        samples=samples,
        output_types={"y": "uint8"},
    )
    run_pipeline(PREPARE, model, context)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    names = [str(v.name) for v in values if is_activation(v)]
    context.reference = clone(model)
    context.calibration = calibrate(model, samples, names)
    run_pipeline(QUANTIZE, model, context)
    return model, samples


def same_bits(model: ir.Model, samples: list[dict[str, Any]]) -> int:
    """Compare simulator and ONNX Runtime; return how many elements there were."""
    assert certify(model, TARGET.capabilities).unproven == ()
    taps = quantized_tensors(model)
    simulator, runner = Simulator(model), TARGET.load(model, taps=taps)
    verdict = verify(lambda feeds: simulator.run(feeds, taps), runner.run, samples)
    assert verdict.same, verdict.first
    return verdict.compared


@settings(max_examples=25, deadline=None)
@given(
    dimensions=st.integers(1, 3),
    group=st.sampled_from([1, 2]),
    per_axis=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1)),
        min_size=3, max_size=3,
    ),
)  # fmt: skip
def test_any_geometry_gives_the_bits_of_onnx_runtime(dimensions, group, per_axis):
    kernel, strides, dilations, pads = zip(*per_axis[:dimensions], strict=True)
    pads = tuple(min(p, k - 1) for p, k in zip(pads, kernel, strict=True))
    model = make(
        (4, 6), (4, 5, 3)[:dimensions], kernel,
        group=group, strides=strides, dilations=dilations, pads=[*pads, *pads],
    )  # fmt: skip
    model, samples = compiled(model)
    assert same_bits(model, samples) >= 2


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"strides": [2, 2]}, "Conv"),
        ({"strides": [3, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]}, "Conv"),
        ({"strides": [2, 1]}, "ConvTranspose"),
        ({"strides": [2, 2], "dilations": [2, 2]}, "ConvTranspose"),
        ({"strides": [2, 2], "auto_pad": "SAME_LOWER"}, "ConvTranspose"),
        ({"strides": [2, 2], "output_shape": [9, 9]}, "ConvTranspose"),
    ],
)
def test_which_form(attributes, kind):
    model, samples = compiled(make((3, 4), (4, 4), (3, 3), **attributes))
    groups = [node.op_type for node in model.graph if linear_group(node) is not None]
    assert groups == (["Conv"] if kind == "Conv" else [])
    assert [n.op_type for n in model.graph if n.op_type.startswith("Conv")] == [kind]
    assert same_bits(model, samples) > 100


def test_units_are_the_integer_definition():
    model, samples = compiled(make((4, 6), (5,), (3,), group=2, strides=[2]))
    node = next(n for n in model.graph if n.op_type == "ConvTranspose")
    x, w, b = (operand(v) for v in node.inputs)
    (scaled,) = (n for n in model.graph if n.op_type == "Mul")
    factor = scaled.inputs[1]
    y = quantize_node(next(n for n in model.graph if n.inputs[0] is scaled.outputs[0]))
    assert x is not None and w is not None and b is not None and y is not None
    assert w.array is not None and b.array is not None
    assert factor is not None and factor.const_value is not None
    compared = 0
    for feeds in samples:
        found = Simulator(model).run(feeds, [str(x.codes.name), str(y.codes.name)])
        units = found[str(x.codes.name)].astype(np.float64) - int(x.qparams.zero_point)
        acc = conv_transpose(units, w.array.astype(np.float64), b.array.astype(np.float64),
                             group=2, strides=(2,))  # fmt: skip
        m = factor.const_value.numpy().reshape(-1)
        codes = requantize(acc, m, y.qparams.zero_point, y.qparams.qtype, axis=1)
        assert codes.tobytes() == found[str(y.codes.name)].tobytes()
        compared += codes.size
    assert compared == 3 * 6 * 11


def test_a_sum_that_is_too_long_is_refused():
    model, _ = compiled(make((512, 2), (3,), (16,), strides=[1]))
    (proof,) = certify(model, TARGET.capabilities).unproven
    assert proof.op_type == "ConvTranspose" and "beyond 2**24" in proof.detail
