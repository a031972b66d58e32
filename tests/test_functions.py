"""Functions in float64, held against ONNX Runtime's float32 kernels: the assumed bound holds."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.functions import FUNCTIONS, float64_function
from edgeq.proofs import FUNCTION_ERROR
from tests.conformance.runtime import by_onnxruntime, one_node

REALS = np.concatenate(
    [np.linspace(-30, 30, 60001), np.geomspace(1e-6, 80, 20001), -np.geomspace(1e-6, 80, 20001)]
).astype(np.float32)
NO_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({})
VARIANTS: list[tuple[str, Mapping[str, Any]]] = [
    *((name, NO_ATTRIBUTES) for name in sorted(FUNCTIONS)),
    ("Celu", {"alpha": 0.7}),
    ("Elu", {"alpha": 0.3}),
    ("Gelu", {"approximate": "tanh"}),
    ("HardSigmoid", {"alpha": 0.1, "beta": 0.25}),
    ("Selu", {"alpha": 1.5, "gamma": 1.25}),
]


@pytest.mark.parametrize(("name", "attributes"), VARIANTS)
def test_float32_kernels_err_less_than_certificates_assume(name, attributes):
    model, feeds = one_node(name, [REALS], attributes)
    function = float64_function(next(iter(ir.from_proto(model).graph)))
    assert function is not None
    wide = REALS.astype(np.float64)
    expected = function(wide)
    bound = FUNCTION_ERROR * np.maximum(1, np.maximum(np.abs(wide), np.abs(expected)))
    defined = np.isfinite(expected) & (np.abs(expected) < np.finfo(np.float32).max)
    for optimize in (False, True):
        found = by_onnxruntime(model, feeds, optimize=optimize)["y0"].astype(np.float64)
        assert (np.abs(found[defined] - expected[defined]) <= bound[defined]).all()
        assert np.isnan(found[np.isnan(expected)]).all()
    assert defined.sum() > 1000


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("Log", 0.0, -np.inf), ("Log", -1.0, np.nan), ("Reciprocal", 0.0, np.inf),
        ("Asin", 2.0, np.nan), ("Acosh", 0.5, np.nan), ("Atanh", 1.0, np.inf),
        ("Exp", 1000.0, np.inf), ("Sigmoid", -1000.0, 0.0), ("Softplus", 1000.0, 1000.0),
        ("Gelu", -1000.0, 0.0), ("Mish", -1000.0, 0.0),
    ],
)  # fmt: skip
def test_ends_and_gaps_are_those_of_ieee(name, x, expected):
    function = float64_function(ir.node(name, [ir.Value(name="x")]))
    assert function is not None
    np.testing.assert_array_equal(function(np.array([x])), [expected])


def test_operators_of_other_domains_are_no_functions():
    node = ir.node("Gelu", [ir.Value(name="x")], domain="com.microsoft")
    assert float64_function(node) is None
