"""fold-softmax-bias with a scale for each row: what is written, and that bits are equal."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.certify import certify
from edgeq.graph import to_text
from edgeq.qdq import REAL_NAME
from edgeq.simulate import Simulator
from tests.attended import CASES, SCALES, as_codes, corrected, kinds, prepared, samples, sqnr
from tests.test_exact_softmax import TARGET, everywhere


@pytest.mark.parametrize("form", ["row", "row+beta"])
@pytest.mark.parametrize("name", CASES)
def test_rows_have_equal_bits_everywhere_and_are_nearer_to_float(name: str, form: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, context = corrected(case, feeds, f"form={form}")
    assert certify(model, TARGET.capabilities, 256).unproven == ()
    for length in (1, 2, 37, 61):
        everywhere(model, samples(case, length, 1)[0])
    (row,) = context.softmax_rows
    assert row.form == form and abs(row.row_sum_before - 1) > 0.02 > abs(row.row_sum_after - 1)
    assert row.row_sum_after == 1 or form == "row"
    fresh = samples(case, 41, 3)
    gained = sqnr(case, model, fresh) - sqnr(case, before, fresh)
    assert gained > 10
    assert row.sqnr_after_db is not None and row.sqnr_before_db is not None
    if "LessOrEqual" not in case.nodes:  # first rows of causal ones leave the range of the result
        assert row.sqnr_after_db - row.sqnr_before_db == pytest.approx(gained, abs=1.5)


def behind_terms(model: ir.Model) -> list[str]:
    """Return the nodes behind the sum of the terms, one in a line."""
    lines = to_text(model).splitlines()
    first = next(number for number, line in enumerate(lines) if "= ReduceSum" in line)
    nodes = [line.partition("] ")[2] for line in lines[first:] if "= " in line]
    return [line.replace("y_replaced_", "") for line in nodes]


BEFORE = """\
p_sum = ReduceSum <keepdims: int = 1> (p_terms, p_integers)
p_scales = Mul (p_sum, p_scale_1)
p_row_scales = Reshape (p_scales, p_integers)
p_shape = Shape (p_terms)
p_length = Slice (p_shape, p_integers, p_integers_1)
p_matrix = Concat <axis: int = 0> (p_integers, p_length)
p_rows = Reshape (p_terms, p_matrix)
p_row_codes = QuantizeLinear <axis: int = 0, output_dtype: int = 2> (p_rows, p_row_scales)
p_q = Reshape (p_row_codes, p_shape)
v_dq = DequantizeLinear (v_q, v_scale, v_zero_point)
p_dq = DequantizeLinear (p_q, p_scale, p_zero_point)
y_replaced = MatMul (p_dq, v_dq)
y_q = QuantizeLinear (y_replaced, y_scale, y_zero_point)
y = DequantizeLinear (y_q, y_scale, y_zero_point)"""
ROW = """\
p_sum = ReduceSum <keepdims: int = 1> (p_terms, p_integers)
quantizelinear = QuantizeLinear (p_terms, constant_1, constant)
matmulinteger = MatMulInteger (quantizelinear, v_q, constant, constant_2)
cast = Cast <to: int = 1> (matmulinteger)
div = Div (cast, p_sum)
y_q = QuantizeLinear (div, constant_3, constant_2)
y = DequantizeLinear (y_q, y_scale, y_zero_point)"""
CAUSAL_ROW_AND_BETA = """\
p_sum = ReduceSum <keepdims: int = 1> (p_terms, p_integers)
quantizelinear = QuantizeLinear (p_terms, constant_1, constant)
matmulinteger = MatMulInteger (quantizelinear, v_q, constant, constant_2)
cast = Cast <to: int = 1> (matmulinteger)
cast_1 = Cast <to: int = 1> (quantizelinear)
reducesum = ReduceSum <keepdims: int = 1> (cast_1, constant_3)
div = Div (p_sum, constant_1)
sub = Sub (div, reducesum)
cast_2 = Cast <to: int = 2> (m)
cast_3 = Cast <to: int = 1> (cast_2)
reducesum_1 = ReduceSum <keepdims: int = 1> (cast_3, constant_3)
max = Max (reducesum_1, constant_4)
div_1 = Div (sub, max)
cast_4 = Cast <to: int = 6> (v_q)
sub_1 = Sub (cast_4, constant_5)
cumsum = CumSum (sub_1, constant_6)
cast_5 = Cast <to: int = 1> (cumsum)
mul = Mul (cast_5, div_1)
add = Add (cast, mul)
div_2 = Div (add, p_sum)
y_q = QuantizeLinear (div_2, constant_7, constant_2)
y = DequantizeLinear (y_q, y_scale, y_zero_point)"""
PADDED_ROW_AND_BETA = (
    CAUSAL_ROW_AND_BETA.replace("(m)", "(pad)")
    .replace(
        """\
cast_4 = Cast <to: int = 6> (v_q)
sub_1 = Sub (cast_4, constant_5)
cumsum = CumSum (sub_1, constant_6)
cast_5 = Cast <to: int = 1> (cumsum)
mul = Mul (cast_5, div_1)""",
        """\
matmulinteger_1 = MatMulInteger (cast_2, v_q, constant, constant_2)
cast_4 = Cast <to: int = 1> (matmulinteger_1)
mul = Mul (cast_4, div_1)""",
    )
    .replace("constant_7", "constant_5")
)


@pytest.mark.parametrize(
    ("name", "form", "after"),
    [
        ("none", "row", ROW),
        ("causal", "row", ROW),
        ("padded", "row", ROW),
        ("causal", "row+beta", CAUSAL_ROW_AND_BETA),
        ("padded", "row+beta", PADDED_ROW_AND_BETA),
    ],
)
def test_what_is_written_behind_the_terms(name: str, form: str, after: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    before, _ = prepared(case, feeds)
    model, _ = corrected(case, feeds, f"form={form}")
    assert behind_terms(before) == BEFORE.splitlines()
    assert behind_terms(model) == after.splitlines()


def test_an_open_length_is_counted_without_the_codes_that_are_gone() -> None:
    case = CASES["none"]
    model, _ = corrected(case, samples(case), "form=row+beta")
    assert kinds(model).count("Shape") == 1 and "Concat" not in kinds(model)


def test_rows_take_the_place_of_codes_with_one_scale() -> None:
    """The report shows no figures in steps of a scale that is gone."""
    case = CASES["none"]
    feeds = samples(case)
    model, context = corrected(case, feeds, "gain=2")
    assert context.softmax_rows[0].form == "row"
    assert kinds(model).count("MatMulInteger") == 2 and "MatMul" not in kinds(model)
    codes = {v.metadata_props.get(REAL_NAME) for node in model.graph for v in node.outputs}
    assert "p" in codes and "p" not in context.qparams


@pytest.mark.parametrize("name", ["chosen", "guarded"])
@pytest.mark.parametrize("form", ["row", "row+beta"])
def test_a_row_that_sees_nothing_is_uniform_or_zero(name: str, form: str) -> None:
    case = CASES[name]
    feeds = samples(case)
    model, _ = corrected(case, feeds, f"form={form}")
    (found,) = Simulator(model).run(feeds[0]).values()
    (v,) = as_codes(feeds[0], "v")
    wanted = v.mean(-2) if name == "chosen" else np.zeros_like(v[..., 0, :])
    assert np.abs(found[:, :, 4] - wanted).max() <= SCALES["y"][0] / 2 + 1e-6


def test_what_costs_more_than_rows_must_win_more() -> None:
    case = CASES["none"]
    for gain, form in (("0.25", "row+beta"), ("2", "row"), ("99", "row")):
        _, context = corrected(case, samples(case), f"gain={gain}")
        assert context.softmax_rows[0].form == form
