"""A batch is cut only where samples do not meet, and then every bit stays."""

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgeq
from edgeq.onnx_api import infer_shapes
from edgeq.operators.batchwise import keeps_samples_apart
from edgeq.simulate import Simulator

DIGITS = Path(__file__).parent.parent / "samples" / "digits"
HEAD = '<ir_version: 10, opset_import: ["" : 21]>'

# rule, does it keep samples apart, the graph
ROWS = [
    ("Relu", True, "(float[N,3] x) => (float[N,3] y) { y = Relu (x) }"),
    ("a constant per feature", True,
     "(float[N,3] x) => (float[N,3] y) <float[3] c = {1,2,3}> { y = Add (x, c) }"),
    ("a constant per sample", False,
     "(float[N,3] x) => (float[M,3] y) <float[2,1] c = {1,2}> { y = Add (x, c) }"),
    ("two inputs", True,
     "(float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add (x, z) }"),
    ("inputs of two ranks", False,
     "(float[N,3] x, float[N] z) => (float[N,3] y) { y = Add (x, z) }"),
    ("a fixed batch", False, "(float[2,3] x) => (float[2,3] y) { y = Relu (x) }"),
    ("Concat of features", True,
     "(float[N,3] x) => (float[N,6] y) { y = Concat <axis: int = 1> (x, x) }"),
    ("Concat of samples", False,
     "(float[N,3] x) => (float[M,3] y) { y = Concat <axis: int = -2> (x, x) }"),
    ("a mean of features", True,
     "(float[N,3] x) => (float[N,1] y) <int64[1] a = {-1}> { y = ReduceMean (x, a) }"),
    ("a mean of samples", False,
     "(float[N,3] x) => (float[1,3] y) <int64[1] a = {0}> { y = ReduceMean (x, a) }"),
    ("a mean of everything", False, "(float[N,3] x) => (float[1,1] y) { y = ReduceMean (x) }"),
    ("Softmax over features", True,
     "(float[N,3] x) => (float[N,3] y) { y = Softmax <axis: int = 1> (x) }"),
    ("Softmax over samples", False,
     "(float[N,3] x) => (float[N,3] y) { y = Softmax <axis: int = 0> (x) }"),
    ("LayerNormalization of features", True,
     "(float[N,3] x) => (float[N,3] y) <float[3] g = {1,2,3}> { y = LayerNormalization (x, g) }"),
    ("LayerNormalization of samples", False,
     "(float[N,3] x) => (float[N,3] y) <float g = {1}>"
     " { y = LayerNormalization <axis: int = 0> (x, g) }"),
    ("InstanceNormalization", True,
     "(float[N,3,5] x) => (float[N,3,5] y) <float[3] g = {1,2,3}>"
     " { y = InstanceNormalization (x, g, g) }"),
    ("Unsqueeze behind samples", True,
     "(float[N,3] x) => (float[N,1,3] y) <int64[1] a = {1}> { y = Unsqueeze (x, a) }"),
    ("Unsqueeze in front of samples", False,
     "(float[N,3] x) => (float[1,N,3] y) <int64[1] a = {-3}> { y = Unsqueeze (x, a) }"),
    ("Transpose of features", True,
     "(float[N,3,2] x) => (float[N,2,3] y) { y = Transpose <perm: ints = [0,2,1]> (x) }"),
    ("Transpose", False, "(float[N,3] x) => (float[3,N] y) { y = Transpose (x) }"),
    ("Reshape of a sample", True,
     "(float[N,3,2] x) => (float[N,6] y) <int64[2] s = {0,-1}> { y = Reshape (x, s) }"),
    ("Reshape to known sizes", True,
     "(float[N,3,2] x) => (float[N,6] y) <int64[2] s = {-1,6}> { y = Reshape (x, s) }"),
    ("Reshape across samples", False,
     "(float[N,3,2] x) => (float[M,12] y) <int64[2] s = {-1,12}> { y = Reshape (x, s) }"),
    ("Pad of samples", False,
     "(float[N,3] x) => (float[M,3] y) <int64[4] p = {1,0,0,0}> { y = Pad (x, p) }"),
    ("Slice of samples", False,
     "(float[N,3] x) => (float[1,3] y) <int64[1] b = {0}, int64[1] e = {1}, int64[1] a = {0}>"
     " { y = Slice (x, b, e, a) }"),
    ("a weight that depends on samples", False,
     "(float[N,3] x) => (float[N,N] y) { y = Gemm <transB: int = 1> (x, x) }"),
    ("what is not in the table", False, "(float[N,3] x) => (int64[2] y) { y = Shape (x) }"),
]  # fmt: skip


@pytest.mark.parametrize(("apart", "text"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_rules(apart, text):
    model = ir.from_onnx_text(f"{HEAD} g {text}")
    infer_shapes(model)
    assert keeps_samples_apart(model.graph) is apart


def test_bits_stay(tmp_path, monkeypatch):
    bundle = edgeq.compile(
        str(DIGITS / "digits.onnx"),
        target="ort-cpu",
        calibration=str(DIGITS / "calibration.npz"),
        output=tmp_path / "bundle",
        samples=16,
    )
    model = ir.load(bundle.artifact)
    assert keeps_samples_apart(model.graph)
    name = str(model.graph.inputs[0].name)
    with np.load(DIGITS / "evaluation.npz") as data:
        images = data[name][:9]
    # By its module: the name `edgeq.simulate` is the function of the facade.
    monkeypatch.setattr(sys.modules["edgeq.simulate"], "THREADS", 2)
    cut = Simulator(model)
    for count in (1, 3, 4, 9):
        found = cut.run({name: images[:count]}, "all")
        whole = Simulator(model)
        whole._cuttable = False
        expected = whole.run({name: images[:count]}, "all")
        assert list(found) == list(expected) and len(found) > 10
        for tensor, array in expected.items():
            assert found[tensor].shape == array.shape, tensor
            assert found[tensor].tobytes() == array.tobytes(), tensor
