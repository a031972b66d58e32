"""Einsum in plain operators computes the same, with static and with symbolic shapes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from edgeq.elementary import write_elementary
from edgeq.graph import Editor, to_bytes
from edgeq.onnx_api import infer_shapes
from tests.fused_operators.row import run

LENGTHS = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6, "k": 7, "s": 8}
ROWS = [
    # equation              operators
    ("bhid,bhjd->bhij", "Transpose MatMul"),
    ("bhij,bhjd->bhid", "MatMul"),
    ("bhij,bhjd->bihd", "MatMul Transpose"),
    ("bihd,bjhd->bhij", "Transpose Transpose MatMul"),
    ("bij,bjk->bik", "MatMul"),
    ("bsd,dk->bsk", "MatMul"),
    ("bsd,kd->bsk", "Transpose MatMul"),
    ("bsd,dhk->bshk", "Reshape MatMul Reshape"),
    ("bshk,hkd->bsd", "Reshape Reshape MatMul"),
    ("ij,jk", "MatMul"),
    ("ij,kj->ik", "Transpose MatMul"),
    ("...ij,...jk->...ik", "MatMul"),
    ("... i j, ... k j -> ... i k", "Transpose MatMul"),
    ("bijd,bhd->bhij", "Transpose Reshape MatMul Reshape Transpose"),
    ("bid,bd->bi", "Reshape MatMul Reshape"),
    ("d,d->", "Reshape MatMul Reshape"),
    ("...ij,jk->...ik", "MatMul"),
    ("bhsd,bhdj->bhsj", "MatMul"),
    ("bsid,bdk->bsik", "Reshape MatMul Reshape"),
    ("i,j->ij", "Unsqueeze Unsqueeze Mul"),
    ("bi,bj->bij", "Unsqueeze Unsqueeze Mul"),
    ("bij,bj->bji", "Transpose Unsqueeze Mul"),
    ("bij->bji", "Transpose"),
    ("bij", "Identity"),
]
NOT = [
    ("a letter twice", "ii,ij->ij"),
    ("a sum over one operand", "bij,bj->b"),
    ("three operands", "ij,jk,kd->id"),
    ("a sum", "bij->bi"),
    ("a diagonal", "ii->i"),
]


def einsum(equation: str, symbolic: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    feeds, infos = {}, []
    for index, letters in enumerate(equation.replace(" ", "").partition("->")[0].split(",")):
        letters = letters.replace("...", "bh")
        name = f"x{index}"
        feeds[name] = rng.normal(size=[LENGTHS[c] for c in letters]).astype(np.float32)
        dims = [c if symbolic and c in "bs" else LENGTHS[c] for c in letters]
        infos.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    node = helper.make_node("Einsum", list(feeds), ["y"], equation=equation)
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", infos, [output])
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize(("equation", "operators"), ROWS, ids=[row[0] for row in ROWS])
def test_computes_the_same(equation, operators, symbolic):
    proto, feeds = einsum(equation, symbolic)
    model = ir.from_proto(proto)
    infer_shapes(model)
    assert write_elementary(next(iter(model.graph)), Editor(model.graph))
    assert [node.op_type for node in model.graph] == operators.split()
    (expected,), (found,) = run(proto.SerializeToString(), feeds), run(to_bytes(model), feeds)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2.0**-18 * np.abs(expected).max()


@pytest.mark.parametrize(("rule", "equation"), NOT, ids=[row[0] for row in NOT])
def test_is_left(rule, equation):
    model = ir.from_proto(einsum(equation, symbolic=False)[0])
    infer_shapes(model)
    assert not write_elementary(next(iter(model.graph)), Editor(model.graph))
    assert [node.op_type for node in model.graph] == ["Einsum"]
