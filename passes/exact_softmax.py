"""Write Softmax and LogSoftmax as a table, an exact sum and one division.

before:  p   = Softmax(DequantizeLinear(x_q, s, z), axis)
after:   d   = Sub(ReduceMax(x_q), x_q)                      codes, 0 .. 255
         e   = GatherElements(table, d)                      integers held in float32
         p   = Div(e, ReduceSum(e, axis))

before:  p_q = QuantizeLinear(Softmax(x), sp, 0)             x float32
after:   i   = QuantizeLinear(Sub(x, ReduceMax(x)), step, 255)
         e   = GatherElements(table, i)
         p_q = QuantizeLinear(e, Mul(ReduceSum(e), sp))      one scale per row: one rounding

before:  p_q = QuantizeLinear(Softmax(Add(Mul(MatMul(q, k), c), mask)), sp, 0)
after:   x   = Add(Cast(MatMulInteger(q_q, k_q, zq, zk)), mask)
         ... as above, with the step divided by `sq * sk * c`

Attention has no codes between its two products: what is rounded there is the distance of each score
to the largest of its row. `edgeq.softmax_form` and `edgeq.scores_form` say why the bits hold. A row
that a mask leaves nothing of is uniform, or 0 where the model guards itself against NaN.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.attention import Attention, find_attentions
from edgeq.errors import ModelError
from edgeq.graph import Editor, int_attribute, remove_dead, replace_uses, take_output
from edgeq.passing import Context, Pass
from edgeq.qdq import LimitedCodes, Result, limited_codes, operand, result
from edgeq.scores_form import LOWEST, ScoresWriter, coded_operands, may_be_empty, score_unit
from edgeq.softmax_form import HIGHEST_CODE, LONGEST, Constants, Rows, SoftmaxWriter


@dataclass(frozen=True)
class ExactSoftmax(Pass):
    """Replace each Softmax and LogSoftmax."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many went.

        Raises:
            ModelError: A row can be longer than what float32 sums exactly.
        """
        rewriter = _Rewriter(Editor(model.graph), context.max_dim)
        attentions = {attention.softmax: attention for attention in find_attentions(model)}
        done = 0
        for node in list(model.graph):
            if node.op_type not in ("Softmax", "LogSoftmax") or node.domain:
                continue
            if context.keep_float(node):
                continue
            rewriter.replace(node, attentions.get(node))
            done += 1
        remove_dead(model.graph)
        return done


class _Rewriter:
    def __init__(self, editor: Editor, max_dim: int) -> None:
        self._editor = editor
        self._max_dim = max_dim
        self._constants = Constants(editor)
        self._scores = ScoresWriter(editor, self._constants)

    def replace(self, node: ir.Node, attention: Attention | None) -> None:
        """Write the exact form of `node` in its place."""
        source = node.inputs[0]
        assert source is not None
        output = node.outputs[0] if attention is None else attention.output
        y = result(output) if node.op_type == "Softmax" else None
        fine = y is None or y.qparams.qtype.bits > 8
        coded = None if attention is None else coded_operands(attention)
        empty = attention is not None and coded is not None and may_be_empty(attention)
        rows = Rows(int_attribute(node, "axis", -1), self._longest(node), LOWEST if empty else None)
        write = SoftmaxWriter(self._editor, self._constants, output.name or "softmax", rows)
        x = operand(source)
        if attention is not None and coded is not None:
            scores = self._scores.write(attention, *coded)
            terms = write.of_reals(scores, score_unit(attention, *coded), fine=fine)
        elif x is None or x.qparams.axis is not None:
            terms = write.of_reals(source, 1.0, fine=fine)
        elif x.qparams.qtype.bits <= 8:
            terms = write.of_codes(x)
        else:
            terms = write.of_reals(write.units(x), float(x.qparams.scale), fine=fine)
        limits = None if y is None else limited_codes(y.codes)
        if y is not None:
            output, found = y.codes, write.codes(terms, y)
        elif node.op_type == "LogSoftmax":
            found = write.log_shares(terms)
        else:
            found = write.shares(terms)
        if limits is not None:
            found.metadata_props[HIGHEST_CODE] = str(limits.high)
        if y is not None and limits is not None and _are_idle(limits, y):
            output = limits.codes
        self._editor.insert_before(node, [*self._scores.made, *write.made])
        self._scores.made.clear()
        replace_uses(output, found)
        found.metadata_props.update(output.metadata_props)
        take_output(output, found)
        if limits is not None and output is not limits.codes:
            limits.codes.metadata_props.update(found.metadata_props)
            found.metadata_props.clear()

    def _longest(self, node: ir.Node) -> int:
        value, axis = node.inputs[0], int_attribute(node, "axis", -1)
        length = None if value is None or value.shape is None else value.shape[axis]
        longest = length if isinstance(length, int) else self._max_dim
        if longest > LONGEST:
            raise ModelError(
                f"node {node.name} ({node.op_type}): rows of {longest} elements; at most {LONGEST}"
                f" are summed exactly. Leave it in float with --keep-float '{node.name}'"
            )
        return longest


def _are_idle(limits: LimitedCodes, y: Result) -> bool:
    """Whether the codes of probabilities, 1 at most, are within the limits anyway."""
    if y.qparams.axis is not None or limits.low > int(y.qparams.zero_point):
        return False
    # The scale of a row is rounded once, and so is the share of its largest element.
    highest = (1 + 2.0**-20) / float(y.qparams.scale) + float(y.qparams.zero_point)
    return highest < limits.high + 0.5
