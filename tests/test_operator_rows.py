"""What runs where: kernels and formats of every node of a deployed model."""

from edgeq.certify import certify
from edgeq.operator_rows import operator_rows
from edgeq.report import FloatRow
from edgeq.targeting import find_target
from tests.certificates import ORT


def test_a_model_on_onnx_runtime(tiny):
    placement = find_target("ort-cpu").placement(tiny)
    reasons = [FloatRow("flat", "Flatten", "kept")]
    rows = operator_rows(tiny, certify(tiny, ORT), placement, reasons)
    by_node = {row.node: row for row in rows}
    assert len(rows) == len(tiny.graph)
    conv, gemm = by_node["conv"], by_node["fc"]
    assert (conv.kernel, conv.formats) == ("QLinearConv", "uint8 * int8 -> uint8")
    assert (gemm.kernel, gemm.formats) == ("QGemm", "uint8 * int8 -> uint8")
    assert conv.kind == gemm.kind == "integer" and conv.detail
    assert by_node["x_q"].formats == "float32 -> uint8"
    assert (by_node["w_dq"].kernel, by_node["w_dq"].formats) == ("", "int8 -> float32")
    assert by_node["flat"].float_reason == "kept"


def test_a_target_that_does_not_tell(tiny):
    rows = operator_rows(tiny, certify(tiny, ORT), {})
    assert {row.kernel for row in rows} == {""} and rows[4].formats == "uint8 * int8 -> uint8"
