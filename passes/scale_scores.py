"""Scale the scores of an attention, not the queries and keys that they are made of.

before:  s = MatMul(Mul(q, c), Transpose(Div(k, d)))
after:   s = Mul(MatMul(q, Transpose(k)), c / d)

Behind the product a number costs nothing: `exact-softmax` makes it part of a step. In front of it
queries and keys would be rounded to codes twice.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.attention import MOVES, find_attentions, scalar_factor
from edgeq.graph import Editor, rank, replace_uses
from edgeq.passing import Context, Pass
from edgeq.roles import activation_inputs


@dataclass(frozen=True)
class ScaleScores(Pass):
    """Move numbers that scale queries and keys behind their product."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many attentions were changed."""
        editor = Editor(model.graph)
        done = 0
        for attention in find_attentions(model):
            if context.keep_float(attention.scores) or context.keep_float(attention.softmax):
                continue
            scales = [s for value in (attention.q, attention.k) for s in _scales_above(value)]
            factor = np.prod([scalar_factor(node) or 1.0 for node in scales])
            for node in scales:
                (source,) = activation_inputs(node)
                replace_uses(node.outputs[0], source)
                editor.graph.remove(node, safe=True)
            if scales:
                _scale(attention.scores.outputs[0], np.float32(factor), editor)
                done += 1
        return done


def _scales_above(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that scale `value`, which alone reads them, looking through moves."""
    found = []
    node = value.producer()
    while node is not None and len(value.uses()) == 1 and not value.is_graph_output():
        if _scales(node):
            found.append(node)
        elif node.op_type not in MOVES or node.domain:
            break
        (value,) = activation_inputs(node)
        node = value.producer()
    return found


def _scales(node: ir.Node) -> bool:
    """Whether `node` is a product with one number, which leaves the rank as it is."""
    if scalar_factor(node) is None:
        return False
    (source,) = activation_inputs(node)
    return rank(source) is not None and rank(source) == rank(node.outputs[0])


def _scale(scores: ir.Value, factor: np.float32, editor: Editor) -> None:
    number = editor.initializer(f"{scores.name}_scale", factor)
    scaled = editor.node(
        "Mul", [scores, number], f"{scores.name}_scaled", dtype=scores.dtype, shape=scores.shape
    )
    node, scaling = scores.producer(), scaled.producer()
    assert node is not None and scaling is not None
    editor.insert_after(node, [scaled])
    replace_uses(scores, scaled, but=[scaling])
