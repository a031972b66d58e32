"""Fused operators compute the same, up to rounding, when they are written in plain ones.

The oracle is ONNX Runtime running the operator itself; ONNX's reference, or the formula in numpy,
where its CPU kernels lack one. Each row runs with static shapes and with symbolic ones.

What is written is shown by the files tests/fused_operators/*.txt: a graph before and after.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import edgeq
from edgeq.attention import find_attentions
from edgeq.errors import ModelError
from edgeq.graph import check, to_bytes, to_text
from edgeq.load import load_model, normalize
from edgeq.normalization import normalization
from tests.fused_operators.attention import ATTENTIONS, SHORT_MASKS
from tests.fused_operators.attention_of_ort import MULTI_HEAD, OF_ORT, PACKED
from tests.fused_operators.normalizations import NORMALIZATIONS
from tests.fused_operators.products import ACTIVATIONS, PRODUCTS
from tests.fused_operators.rotary import ROTARY
from tests.fused_operators.row import real, run
from tests.test_passes import parse, structure

FILES = sorted((Path(__file__).parent / "fused_operators").glob("*.txt"))
ROWS = [
    *ACTIVATIONS, *PRODUCTS, *NORMALIZATIONS, *ATTENTIONS, *MULTI_HEAD, *OF_ORT, *PACKED, *ROTARY,
]  # fmt: skip
# Kernels sum and round in other orders; another axis, mask or head is far off.
TOLERANCE = 2.0**-16


@pytest.mark.parametrize("row", SHORT_MASKS, ids=lambda row: row.rule)
def test_short_masks(tmp_path, row):
    test_computes_the_same(tmp_path, row, symbolic=False)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
def test_computes_the_same(tmp_path, row, symbolic):
    path = tmp_path / "model.onnx"
    path.write_bytes(row.model(symbolic).SerializeToString())
    model = load_model(path).model
    assert {node.domain for node in model.graph} == {""}
    assert set(model.opset_imports) == {""}
    # Later nodes get free names of values, so a node has no other name than its value's.
    assert all(node.name in ("fused", node.outputs[0].name) for node in model.graph)
    expected, found = row.expected(), run(to_bytes(model), row.feeds())
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape and np.isfinite(a).all()
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(a).max()


# Capped scores and scores that are read are activations; clean-up folds the parameters by channel.
UNRECOGNISED = ("capped", "scores", "unmasked", "GroupNormalization by group")


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize(
    "row", [*ATTENTIONS, *MULTI_HEAD, *OF_ORT, *PACKED, *NORMALIZATIONS], ids=lambda row: row.rule
)
def test_is_recognised(row, symbolic):
    model = normalize(ir.from_proto(row.model(symbolic)), "model").model
    found = sum(normalization(node) is not None for node in model.graph)
    if "Attention" in row.op_type:
        found += len(find_attentions(model))
    assert found == (not row.rule.startswith(UNRECOGNISED))


# One of each kind through the whole of edgeq; the rest is recognised alike.
COMPILED = (
    "causal, flat", "Attention, padded and causal", "GroupNorm with SiLU",
    "SkipLayerNormalization, sum read", "RotaryEmbedding, flat, 0",
)  # fmt: skip


@pytest.mark.parametrize("rule", COMPILED)
def test_compiles(tmp_path, rule):
    row = next(row for row in ROWS if row.rule == rule)
    path = tmp_path / "model.onnx"
    path.write_bytes(row.model(symbolic=True).SerializeToString())
    bundle = edgeq.compile(
        path, target="ort-cpu", calibration=[row.feeds()] * 2, output=tmp_path / "bundle"
    )
    assert bundle.manifest.bitwise.mismatches == 0 < bundle.manifest.bitwise.compared
    assert bundle.manifest.certificate.unproven == ()
    assert bundle.manifest.metrics["sqnr_db"] > 20


BERT = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (int32[N,S] ids, int32[N,S] mask, int64[2] shape) => (float[N,S,4] y) {
  segments = Reshape (zeros, shape)
  x, counts = com.microsoft.EmbedLayerNormalization <epsilon = 0.001>
    (ids, segments, words, places, kinds, gamma, beta, mask)
  a = com.microsoft.Attention <num_heads = 2> (x, w, b, counts)
  o = MatMul (a, wo)
  n, , , s = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (o, x, gamma, beta, bias)
  u = MatMul (n, wu)
  g = com.microsoft.BiasGelu (u, bu)
  d = MatMul (g, wd)
  y = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (d, s, gamma, beta, bias)
}"""


def test_a_chain_of_them():
    """A layer of BERT as ONNX Runtime's optimizer writes it: shapes come out one after another."""
    proto = onnx.parser.parse_model(BERT)
    sizes = {
        "words": (9, 4), "places": (6, 4), "kinds": (2, 4), "gamma": (4,), "beta": (4,),
        "bias": (4,), "w": (4, 12), "b": (12,), "wo": (4, 4), "wu": (4, 8), "bu": (8,),
        "wd": (8, 4),
    }  # fmt: skip
    weights = {name: real(*size, seed=n) for n, (name, size) in enumerate(sizes.items())}
    weights["zeros"] = np.zeros((2, 5), np.int32)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    feeds = {
        "ids": np.arange(10, dtype=np.int32).reshape(2, 5) % 9,
        "mask": np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32),
        "shape": np.array([2, 5]),
    }
    (expected,) = run(proto.SerializeToString(), feeds)
    loaded = normalize(ir.from_proto(proto), "bert")
    (found,) = run(to_bytes(loaded.model), feeds)
    assert np.abs(expected - found).max() <= TOLERANCE * np.abs(expected).max()
    assert len(find_attentions(loaded.model)) == 1
    assert sum(normalization(node) is not None for node in loaded.model.graph) == 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_written(path):
    before, _, after = path.read_text(encoding="utf-8").partition("\n---\n")
    proto = onnx.parser.parse_model(before[before.index("<") :])
    loaded = normalize(ir.from_proto(proto), path.stem)
    check(loaded.model)
    # Through a message, where attributes are float32.
    assert structure(ir.from_proto(ir.to_proto(loaded.model))) == structure(parse(after)), to_text(
        loaded.model
    )
    assert any("written in plain operators" in note for note in loaded.notes)


GROUPED_QUERIES = "com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x)"
MULTI = "com.microsoft.MultiHeadAttention <num_heads = 2>"
CAPPED = "Attention <qk_matmul_output_mode = 2, is_causal = 1>"
REFUSALS = [
    ("cache in place", GROUPED_QUERIES, "that it changes in place; export the model without"),
    ("scatter", "TensorScatter (x, x)", "ai.onnx.TensorScatter, which keeps keys and values"),
    ("sparse", "com.microsoft.LongformerAttention (x)", "with dense attention"),
    ("quantized", "com.microsoft.MatMulNBits (x)", "is quantized already; compile the float model"),
    ("experts", "com.microsoft.MoE (x)", "which experts compute"),
    ("loop", "com.microsoft.BeamSearch (x)", "a whole decoding loop"),
    ("state", "LinearAttention (x, x, x)", "carries a state"),
    ("packing", "com.microsoft.RemovePadding (x)", "whose length depends on the data"),
    ("of ONNX Runtime", "com.microsoft.CDist (x)", "ONNX Runtime alone knows; give edgeq the"),
    ("layout", "com.microsoft.nchwc.Conv (x)", "laid out for the CPU that it was saved on"),
    ("stranger", "my.Layer (x)", "my.Layer, which is not an ONNX operator"),
    ("missing input", "com.microsoft.FusedMatMul (x)", "its input 1 is missing"),
    ("missing heads", "com.microsoft.Attention (x, w)", "num_heads is missing"),
    ("shared buffer", f"{MULTI} (x, x, x, , , , x, x, i)", "buffer that is its input too"),
    ("rotary", "com.microsoft.Attention <num_heads = 1, do_rotary = 1> (x, w)", "rotates queries"),
    ("mask", f"{MULTI} (x, x, x, , m)", "its mask is of a rare form"),
    ("masked scores", f"{CAPPED} (z, z, z)", "its masked scores are read"),
    ("statistics", "com.microsoft.SkipLayerNormalization (x, x, g)", r"output 1 \(mean\) is read"),
    ("activation", 'com.microsoft.FusedConv <activation = "Gelu"> (z, z)', "activation is 'Gelu'"),
    ("shape", "com.microsoft.RotaryEmbedding (f, i, c, c)", "rank of f is not known; give"),
]  # fmt: skip
OUTPUTS = {"masked scores": "y, p, q, s", "statistics": "y, mean"}


@pytest.mark.parametrize(("rule", "node", "message"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_is_refused(rule, node, message):
    domains = ("com.microsoft", "com.microsoft.nchwc", "my")
    opsets = ", ".join(['"" : 27', *(f'"{domain}" : 1' for domain in domains)])
    outputs = OUTPUTS.get(rule, "y")
    kinds = ", ".join(f"float[A,B,C,D] {name}" for name in outputs.split(", "))
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: [{opsets}]>
        g (float[2,3,4] x, float[4,12] w, int64[9] m, int64[1] i, float[2,2,3,4] z, float[4] g,
           float[9,2] c, int64[R] shape) => ({kinds}) {{
          f = Reshape (x, shape)
          [fused] {outputs} = {node}
        }}"""
    )
    with pytest.raises(ModelError, match=f"'fused'.*{message}"):
        normalize(ir.from_proto(proto), "model")


def test_is_refused_in_a_body():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
          y = If (c) <then_branch = a () => (float[2] t) { t = com.microsoft.Gelu (x) },
                      else_branch = b () => (float[2] e) { e = Neg (x) }>
        }"""
    )
    with pytest.raises(ModelError, match=r"com\.microsoft\.Gelu, inside the body"):
        normalize(ir.from_proto(proto), "model")
