"""Tables of functions between codes: what they hold, and the bits of every runtime setting."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeq.certify import certify
from edgeq.functions import FUNCTIONS, float64_function
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import QTYPES, all_codes
from edgeq.numerics.scale import choose_qparams
from edgeq.onnx_api import infer_shapes
from edgeq.passes.tabulate import FAST_FUNCTIONS
from edgeq.passing import Context, run_pipeline
from edgeq.proofs import certify_unary
from edgeq.qdq import quantized_tensors
from edgeq.recipe import QuantSpec, load_recipe
from edgeq.runtime import LEVELS, make_session, run
from edgeq.simulate import Simulator
from edgeq.targeting import find_target
from edgeq.unary_regions import unary_regions
from tests.unary_spellings import SPELLINGS, model

TARGET = find_target("ort-cpu")
NO_SAMPLES: Any = ()
PASSES = "insert-qdq, tabulate, prove-fused"


def qparams(low: float, high: float, qtype: str = "uint8") -> QParams:
    return choose_qparams(low, high, QuantSpec(qtype=qtype))


def quantize(float_model: ir.Model, decided: Mapping[str, QParams]) -> ir.Model:
    """Return the model with these values as codes, and its functions as tables."""
    context = Context(
        recipe=load_recipe("int8", {}),
        capabilities=TARGET.capabilities,
        samples=NO_SAMPLES,
        qparams=dict(decided),
        output_types={"y": decided["y"].qtype.name} if "y" in decided else {},
    )
    run_pipeline(PASSES, float_model, context)
    infer_shapes(float_model)
    return float_model


def all_feeds(x: QParams) -> dict[str, NDArray[Any]]:
    """Return every real that has a code, four in a row."""
    return {"x": x.dequantize(all_codes(x.qtype)).reshape(-1, 4)}


def compared_everywhere(quantized: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Hold ONNX Runtime at every level, with 1 and 2 threads, against the simulator; return y."""
    names = quantized_tensors(quantized)
    expected = Simulator(quantized).run(feeds, names)
    assert certify(quantized, TARGET.capabilities).unproven == ()
    options = TARGET.capabilities.session_options
    for level in LEVELS:
        for threads in (1, 2):
            session = make_session(quantized, options=options, level=level, threads=threads)
            found = run(session, feeds)["y"]
            assert found.size >= 256 and found.dtype == expected["y"].dtype
            assert found.tobytes() == expected["y"].tobytes(), (level, threads)
    return expected["y"]


def operators(quantized: ir.Model) -> list[str]:
    return [node.op_type for node in quantized.graph]


RANGES = {"Pow alone": (0.0, 5.0), "softplus of torch": (-4.0, 6.0)}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_a_table_with_the_bits_of_the_function(name):
    nodes, function = SPELLINGS[name]
    x = qparams(*RANGES.get(name, (-5.0, 5.0)))
    inputs = x.dequantize(all_codes(x.qtype)).astype(np.float64)
    reals = function(inputs)
    y = qparams(float(reals.min()), float(reals.max()))
    before = model(nodes)
    (region,) = unary_regions(before.graph)
    expected = y.quantize(region.evaluate(inputs).astype(np.float32))
    quantized = quantize(before, {"x": x, "y": y})
    kinds = operators(quantized)
    table = "GatherElements" in kinds
    # Only two operations in a row that IEEE defines are left as they are.
    assert table != (kinds[1] == "DequantizeLinear") and kinds.count("GatherElements") <= 1
    assert table or region.is_ieee
    found = compared_everywhere(quantized, all_feeds(x))
    if table:
        assert found.reshape(-1).tobytes() == expected.tobytes()
    else:
        assert np.abs(found.reshape(-1).astype(int) - expected.astype(int)).max() <= 1


# Functions that are not defined everywhere, or are infinite somewhere, meet all that here.
@pytest.mark.parametrize("kind", ["uint8", "int8", "to reals"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_has_the_same_bits_everywhere(name, kind):
    qtype = "int8" if kind == "int8" else "uint8"
    x, y = qparams(-3.1, 3.7, qtype), qparams(-4.0, 5.0, qtype)
    before = model(f"y = {name}(x)")
    function = float64_function(next(iter(before.graph)))
    assert function is not None
    with np.errstate(over="ignore"):
        reals = function(x.dequantize(all_codes(x.qtype)).astype(np.float64)).astype(np.float32)
    decided = {"x": x} if kind == "to reals" else {"x": x, "y": y}
    found = compared_everywhere(quantize(before, decided), all_feeds(x)).reshape(-1)
    if kind == "to reals":
        np.testing.assert_array_equal(found, reals)  # infinities and NaN alike
        return
    assert found.tobytes() == y.quantize(reals).tobytes()
    assert (found[np.isnan(reals)] == y.qtype.qmin).all()
    assert (found[reals == np.inf] == y.qtype.qmax).all()


@pytest.mark.parametrize(
    ("rule", "nodes", "code", "real"),
    [
        ("the logarithm of zero is below everything", "y = Log(x)", 0, -np.inf),
        ("the reciprocal of zero is above everything", "y = Reciprocal(x)", 255, np.inf),
        (
            "the logarithm of what is negative has the smallest code",
            "a = Sub(x, one) y = Log(a)",
            0,
            np.nan,
        ),
    ],
)
def test_where_a_function_is_not_defined(rule, nodes, code, real):
    x, y = qparams(0.0, 2.0), qparams(-2.0, 2.0)
    for decided, expected in (({"x": x, "y": y}, code), ({"x": x}, real)):
        found = compared_everywhere(quantize(model(nodes), decided), all_feeds(x))
        np.testing.assert_array_equal(found.reshape(-1)[0], expected)


@pytest.mark.parametrize("to", ["uint8", "uint16", "reals"])
@pytest.mark.parametrize("qtype", ["uint16", "int16"])
def test_codes_of_16_bits_have_a_table_too(qtype, to):
    nodes, function = SPELLINGS["SiLU"]
    x = qparams(-6.0, 6.0, qtype)
    decided = {"x": x} if to == "reals" else {"x": x, "y": qparams(-0.3, 6.0, to)}
    quantized = quantize(model(nodes), decided)
    (table,) = (v for v in quantized.graph.initializers.values() if "table" in str(v.name))
    assert table.shape == (65536,)
    found = compared_everywhere(quantized, all_feeds(x)).reshape(-1)
    reals = function(x.dequantize(all_codes(x.qtype)).astype(np.float64)).astype(np.float32)
    expected = reals if to == "reals" else decided["y"].quantize(reals)
    assert found.tobytes() == expected.tobytes()


def certain_parameters(name: str) -> tuple[QParams, QParams]:
    """Return parameters for which the function's results are far from ties."""
    function = float64_function(ir.node(name, [ir.Value(name="x")]))
    assert function is not None
    random = np.random.default_rng(0)
    low = 0.25 if name == "Reciprocal" else -8.0
    zero = 0 if name == "Reciprocal" else 128
    for _ in range(20000):
        scale = np.asarray(random.uniform(0.2, 0.3), np.float32)
        x = QParams(QTYPES["uint8"], scale, np.array(zero))
        reals = function(np.linspace(low, 8.0, 9))
        y = qparams(float(reals.min()), float(reals.max()) * random.uniform(0.001, 0.1))
        if certify_unary(function, x, y).certain:
            return x, y
    raise AssertionError(f"{name}: no scales found")


@pytest.mark.parametrize("name", sorted(FAST_FUNCTIONS))
def test_a_fast_function_far_from_ties_stays_in_float(name):
    x, y = certain_parameters(name)
    quantized = quantize(model(f"y = {name}(x)"), {"x": x, "y": y})
    assert operators(quantized) == ["QuantizeLinear", "DequantizeLinear", name, "QuantizeLinear"]
    compared_everywhere(quantized, all_feeds(x))


def test_a_fast_function_between_codes_of_16_bits_is_a_table():
    x, y = certain_parameters("Tanh")
    wide = QParams(QTYPES["uint16"], x.scale, x.zero_point)
    quantized = quantize(model("y = Tanh(x)"), {"x": wide, "y": y})
    assert "GatherElements" in operators(quantized)


def test_tables_hold_no_denormals():
    x = qparams(-100.0, 0.0)
    quantized = quantize(model("y = Exp(x)"), {"x": x})
    found = compared_everywhere(quantized, all_feeds(x)).reshape(-1)
    assert found[0] == 0 and found[found > 0].min() >= np.finfo(np.float32).tiny


def test_a_wrong_entry_of_a_table_is_seen():
    nodes, _ = SPELLINGS["Mish"]
    x, y = qparams(-5.0, 5.0), qparams(-0.4, 5.0)
    quantized = quantize(model(nodes), {"x": x, "y": y})
    wrong = quantized.clone()
    (table,) = (v for v in wrong.graph.initializers.values() if "table" in str(v.name))
    assert table.const_value is not None
    entries = table.const_value.numpy().copy()
    entries[77] += 1
    table.const_value = ir.tensor(entries, name=table.name)
    feeds = all_feeds(x)
    right, found = Simulator(quantized).run(feeds)["y"], run(make_session(wrong), feeds)["y"]
    assert np.flatnonzero(found != right).tolist() == [77]
