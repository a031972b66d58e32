"""Leave a fused kernel in place only where its own arithmetic is proven equal to the definition.

Add, Mul and AveragePool between DequantizeLinear and QuantizeLinear run as kernels whose formulas
differ from the definition, and from CPU to CPU. Every input of such a kernel is enumerated with the
formula of every CPU (`edgeq.proofs`). Where one of them differs, the node is written in single IEEE
operations that no runtime fuses:

before:  q = QuantizeLinear(Add(a, b), s, z)            after:  q = QuantizeLinear(Sum(a, b), s, z)

before:  q = QuantizeLinear(AveragePool(units), r, z)
after:   q = QuantizeLinear(Mul(AveragePool(units), float32(1 / r)), 1, z)

before:  q = QuantizeLinear(Mul(a, b), s, z)
after:   q = QuantizeLinear(Mul(Mul(a in units, b in units), M), 1, z)     M = float32(sa * sb / s)

A Sum of more than two becomes a chain of Sums of two: the definition adds from the left.

before:  y = Sum(a, b, c)                               after:  y = Sum(Sum(a, b), c)

A Relu or Clip that keeps the Gemm in front of it in float (`edgeq.qdq.limit_behind`) is written
otherwise:

before:  y = Clip(Gemm(x, w), low, high)                after:  y = Min(Max(Gemm(x, w), low), high)
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, replace_uses
from edgeq.numerics.affine import QParams
from edgeq.numerics.requantize import multiplier
from edgeq.passing import Context, Pass
from edgeq.pool_counts import fusion_obstacle, pool_counts, whole_image
from edgeq.proofs import prove_add, prove_average_pool, prove_mul
from edgeq.qdq import Operand, Result, limit_behind, linear_group, operand, result


@dataclass(frozen=True)
class ProveFused(Pass):
    """Replace fused kernels that lack a proof by unfused, exact forms."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many nodes were unfused."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.domain:
                continue
            if node.op_type == "Sum":
                done += _chain(node, editor)
            if node.op_type == "Gemm" and context.capabilities.fused:
                done += _limit(node, editor)
            if node.op_type not in context.capabilities.fused:
                continue
            rewrite = {"Add": _add, "Mul": _mul, "AveragePool": _average_pool}.get(node.op_type)
            done += rewrite is not None and rewrite(node, editor)
        return done


def _add(node: ir.Node, editor: Editor) -> bool:
    a, b, y = operand(node.inputs[0]), operand(node.inputs[1]), result(node.outputs[0])
    if a is None or b is None or y is None:
        return False
    if prove_add(a.qparams, b.qparams, y.qparams).equal:
        return False
    node.op_type = "Sum"
    return True


def _chain(node: ir.Node, editor: Editor) -> bool:
    total, *others = node.inputs
    if len(others) < 2 or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    made = []
    for value in others[:-1]:
        total = editor.node(
            "Sum", [total, value], f"{node.outputs[0].name}_part", dtype=ir.DataType.FLOAT
        )
        made.append(total)
    editor.insert_before(node, made)
    node.resize_inputs(2)
    node.replace_input_with(0, total)
    node.replace_input_with(1, others[-1])
    return True


def _limit(node: ir.Node, editor: Editor) -> bool:
    group, limit = linear_group(node), limit_behind(node)
    if limit is None or group is None or group.y is not None:
        return False
    value, output = node.outputs[0], limit.outputs[0]
    zero = [editor.initializer(f"{output.name}_zero", np.float32(0))]
    limits = zero if limit.op_type == "Relu" else limit.inputs[1:]
    made = []
    for op_type, bound in zip(("Max", "Min"), limits, strict=False):
        if bound is not None:
            value = editor.node(
                op_type,
                [value, bound],
                f"{output.name}_{op_type.lower()}",
                dtype=output.dtype,
                shape=output.shape,
            )
            made.append(value)
    editor.insert_before(limit, made)
    replace_uses(output, value)
    editor.graph.remove(limit, safe=True)
    return True


def _mul(node: ir.Node, editor: Editor) -> bool:
    group = linear_group(node)
    if group is None or group.y is None or prove_mul(*_parameters(group.x, group.w, group.y)).equal:
        return False
    for index, side in enumerate((group.x, group.w)):
        node.replace_input_with(index, _units(side, node, editor))
    factor = multiplier(group.x.qparams.scale, group.w.qparams.scale, group.y.qparams.scale)
    _scale_by(node, np.asarray(factor), group.y, editor)
    return True


def _parameters(x: Operand, w: Operand, y: Result) -> tuple[QParams, QParams, QParams]:
    return x.qparams, w.qparams, y.qparams


def _average_pool(node: ir.Node, editor: Editor) -> bool:
    x, y = operand(node.inputs[0]), result(node.outputs[0])
    if x is None or y is None:
        return False
    if _pool_is_proven(node, x.qparams, y.qparams):
        return False
    _scale_by(node, np.asarray(np.float32(1) / y.qparams.scale), y, editor)
    return True


def _pool_is_proven(node: ir.Node, x: QParams, y: QParams) -> bool:
    if fusion_obstacle(node):
        return False
    counts = pool_counts(node)
    forms = (False, True) if whole_image(node) else (False,)
    return all(prove_average_pool(x, y, counts, whole_image=form).equal for form in forms)


def _units(side: Operand, node: ir.Node, editor: Editor) -> ir.Value:
    name = side.codes.name or "x"
    one = editor.initializer(f"{name}_one", np.float32(1))
    units = editor.node(
        "DequantizeLinear",
        [side.codes, one, *side.node.inputs[2:3]],
        f"{name}_units",
        dtype=ir.DataType.FLOAT,
        shape=side.codes.shape,
    )
    editor.insert_before(node, [units])
    return units


def _scale_by(node: ir.Node, factor: np.ndarray, y: Result, editor: Editor) -> None:
    """Put `Mul(factor)` behind `node` and let the QuantizeLinear have scale 1."""
    output = node.outputs[0]
    name = output.name
    scaled = editor.node(
        "Mul",
        [output, editor.initializer(f"{name}_multiplier", factor.astype(np.float32))],
        f"{name}_scaled",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    editor.insert_after(node, [scaled])
    y.node.replace_input_with(0, scaled)
    y.node.replace_input_with(1, editor.initializer(f"{name}_one", np.float32(1)))
    assert constant(y.node.inputs[1]) is not None
