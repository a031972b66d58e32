"""What the pass `cleanup` promises beyond the graphs in tests/passes: failures, bodies, the zoo."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from edgeq.errors import ModelError
from edgeq.graph import to_bytes
from edgeq.load import load_model
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.targeting import Capabilities

ZOO = Path(__file__).parent.parent.parent / "shared" / "zoo"
CNNS = (
    "resnet20-cifar10", "mobilenet-v1-075", "kws-dscnn", "fsrcnn-x3", "ultraface-rfb-320", "vww-96",
)  # fmt: skip
NO_SAMPLES: Any = ()


def model_of(text: str, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{head}\n{text}")


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def run(model: bytes | ir.Model, **feeds: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else to_bytes(model)
    return list(onnxruntime.InferenceSession(data, options).run(None, feeds))


CONV = """g (float[N,1,4,4] x) => (float[N,2,2,2] y)
<float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,9,8,7,6,5,4,3,2,1}> {
  c = Conv (x, w)
  y = Relu (c)
}"""


def context() -> Context:
    return Context(load_recipe("int8"), Capabilities(), NO_SAMPLES)


def test_bodies_that_cannot_be_folded_are_refused(tmp_path):
    proto = model_of(
        """g (bool c, float[2] x) => (float[2] y) {
          [choice] y = If (c) <then_branch = a () => (float[2] t) { t = Relu (x) },
                               else_branch = b () => (float[2] e) { e = Neg (x) }>
        }"""
    )
    model = load_model(save(proto, tmp_path)).model
    with pytest.raises(ModelError, match=r"'choice' \(If\) has a body"):
        run_pipeline("cleanup", model, context())


def test_a_failure_of_onnxsim_is_reported(tmp_path, monkeypatch):
    import onnxsim

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    model = load_model(save(model_of(CONV), tmp_path)).model
    before, ctx = to_bytes(model), context()
    run_pipeline("cleanup", model, ctx)
    assert to_bytes(model) == before
    assert any("onnxsim failed" in text and "it broke" in text for _, text in ctx.notes)


COMPUTED_PADS = """g (float[N,1,4,4] x) => (float[N,1,6,6] y) {
  two = Constant <value = int64[1] {2}> ()
  zeros = ConstantOfShape <value = int64[1] {0}> (two)
  ones = Constant <value_ints = [1, 1]> ()
  half = Concat <axis = 0> (zeros, ones)
  pads = Concat <axis = 0> (half, half)
  i = Identity (x)
  p = Pad (i, pads)
  y = Relu (p)
}"""


def test_constants_are_folded_without_onnxsim(tmp_path, monkeypatch):
    import onnxsim

    with_it = load_model(save(model_of(COMPUTED_PADS), tmp_path)).model
    without = load_model(save(model_of(COMPUTED_PADS), tmp_path)).model
    run_pipeline("cleanup", with_it, context())
    monkeypatch.setattr(onnxsim, "simplify", None)
    run_pipeline("cleanup", without, context())
    assert [n.op_type for n in without.graph] == ["Pad", "Relu"]
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    assert run(with_it, x=x)[0].tobytes() == run(without, x=x)[0].tobytes()


@pytest.mark.parametrize(
    ("rule", "nodes", "left"),
    [
        ("random", "y = RandomNormal <shape = [2]> ()", ["RandomNormal"]),
        ("codes", "q = QuantizeLinear (w, s)  y = DequantizeLinear (q, s)", None),
        ("large", "n = Constant <value = int64[1] {10000000}> ()  y = Expand (w, n)", ["Expand"]),
    ],
)
def test_what_is_not_folded(tmp_path, rule, nodes, left):
    proto = model_of(
        f"g () => (float[M] z) <float[1] w = {{3}}, float s = {{0.5}}> {{ {nodes}  z = Relu (y) }}"
    )
    model = load_model(save(proto, tmp_path)).model
    run_pipeline("cleanup", model, context())
    left = left or ["QuantizeLinear", "DequantizeLinear"]
    assert [n.op_type for n in model.graph] == [*left, "Relu"]


def test_large_weights_are_not_shown_to_onnxsim(tmp_path, monkeypatch):
    """What it does to a graph whose weights it cannot see is the same here."""
    import importlib

    import onnxsim

    cleanup = importlib.import_module("edgeq.passes.cleanup")
    seen: list[list[str]] = []
    real = onnxsim.simplify

    def simplify(proto: onnx.ModelProto, **options: Any) -> Any:
        seen.append([tensor.name for tensor in proto.graph.initializer])
        return real(proto, **options)

    monkeypatch.setattr(onnxsim, "simplify", simplify)
    models = [load_model(save(model_of(CONV), tmp_path)).model for _ in range(2)]
    run_pipeline("cleanup", models[0], context())
    monkeypatch.setattr(cleanup, "WEIGHTS_SHOWN", 8)
    run_pipeline("cleanup", models[1], context())
    assert seen == [["w"], []]
    assert to_bytes(models[0]) == to_bytes(models[1])
    assert [v.name for v in models[1].graph.inputs] == ["x"]


def test_what_onnxsim_makes_is_not_trusted(tmp_path, monkeypatch):
    import onnxsim

    def rename(proto: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bool]:
        proto.graph.output[0].name = "other"
        proto.graph.node[-1].output[0] = "other"
        return proto, True

    monkeypatch.setattr(onnxsim, "simplify", rename)
    model = load_model(save(model_of(CONV), tmp_path)).model
    ctx = context()
    run_pipeline("cleanup", model, ctx)
    assert model.graph.outputs[0].name == "y"
    assert any("changed the inputs or outputs" in text for _, text in ctx.notes)


# --- the zoo

FLOAT_PIPELINE = "cleanup, fold-batchnorm, fold-affine, fold-pad, linear-form"
LEFT = {  # op types after it
    "resnet20-cifar10": {"Conv", "Relu", "Add", "Slice", "Pad", "ReduceMean", "Gemm"},
    "mobilenet-v1-075": {"Conv", "Clip", "ReduceMean", "Flatten", "Gemm"},
    "kws-dscnn": {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"},
    "fsrcnn-x3": {"Conv", "PRelu", "ConvTranspose"},
    "ultraface-rfb-320": {
        "Conv", "Relu", "Concat", "Add", "Transpose", "Reshape", "Softmax", "Slice", "Mul", "Exp",
        "Div", "Sub",
    },
    "vww-96": {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"},
}  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize("name", CNNS)
def test_zoo(name):
    path = ZOO / name / "model.onnx"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    loaded = load_model(path)
    model, interface = loaded.model, _interface(loaded.model)
    before = to_bytes(model)
    ctx = context()
    run_pipeline(FLOAT_PIPELINE, model, ctx)
    assert ctx.notes == []
    assert {n.op_type for n in model.graph} == LEFT[name]
    assert _interface(model) == interface
    assert all(out.shape is not None for node in model.graph for out in node.outputs)
    again = load_model(path).model
    run_pipeline(FLOAT_PIPELINE, again, context())
    assert to_bytes(again) == to_bytes(model)
    rng = np.random.default_rng(3)
    (value,) = model.graph.inputs
    sizes = [d if isinstance(d, int) else 2 * i + 2 for i, d in enumerate(value.shape or ())]
    x = rng.standard_normal(sizes).astype(np.float32)
    feeds = {str(value.name): x}
    for a, b in zip(run(before, **feeds), run(model, **feeds), strict=True):
        # folding moves weights by an ulp; 52 layers of that stay below 2**-18 of the output
        assert np.abs(a - b).max() <= 2.0**-18 * np.abs(a).max() and a.size > 0


def _interface(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(v.name, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
