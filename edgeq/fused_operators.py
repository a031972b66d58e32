"""Operators for which plain ones can be written: of com.microsoft, and late ones of ai.onnx.

Exporters and ONNX Runtime's optimizer emit them. What is written in their place has an exact form:
activations and normalisations are operators or spellings that passes know, attention is
`MatMul - Mul - Where - Softmax - MatMul`. Whatever is not in the table is refused by its name.

ONNX's checker and its version converter do not know all of these operators in opset 21, so a model
is read in three steps: set the late ones aside, convert the rest, decompose them all.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.fused_activations import ACTIVATIONS, swiglu, swish
from edgeq.fused_attention import attention
from edgeq.fused_attention_of_ort import (
    attention_of_ort,
    multi_head_attention,
    packed_attention,
    packed_multi_head_attention,
)
from edgeq.fused_normalizations import (
    NORMALIZATIONS,
    group_normalization_by_group,
    layer_normalization,
    rms_normalization,
)
from edgeq.fused_products import PRODUCTS
from edgeq.graph import Editor, constant
from edgeq.onnx_api import infer_shapes
from edgeq.rotary_embedding import rotary_embedding, rotary_embedding_of_ort
from edgeq.writing import Attribute, Results, ShapeUnknown, Writer

ORT = "com.microsoft"
ASIDE = "edgeq.aside"  # the domain of operators of ai.onnx that wait while the rest is converted
NEWEST = 1000
Rule = Callable[[Writer], Results]


def _plain(op_type: str) -> Rule:
    """Return the rule for an operator that ai.onnx has too, with the same meaning."""

    def rule(write: Writer) -> Results:
        kept: dict[str, Attribute] = {k: a.value for k, a in write.node.attributes.items()}
        return [write(op_type, *write.node.inputs, **kept)]

    return rule


def _expand_dims(write: Writer) -> Results:
    axis = constant(write.required(1))
    if axis is None or axis.size != 1:
        raise write.refusal("its axis is computed", "export the model with Unsqueeze")
    return [write("Unsqueeze", write.required(0), write.integers(int(axis.reshape(()))))]


_OF_ORT: Mapping[str, Rule] = MappingProxyType(
    {
        **ACTIVATIONS,
        **NORMALIZATIONS,
        **PRODUCTS,
        "Attention": attention_of_ort,
        "ExpandDims": _expand_dims,
        "GatherND": _plain("GatherND"),
        "MultiHeadAttention": multi_head_attention,
        "PackedAttention": packed_attention,
        "PackedMultiHeadAttention": packed_multi_head_attention,
        "Pad": _plain("Pad"),
        "Range": _plain("Range"),
        "RotaryEmbedding": rotary_embedding_of_ort,
        "Trilu": _plain("Trilu"),
    }
)

# Of ai.onnx: the opsets in which an operator is set aside, and what is written for it. ONNX Runtime
# has LayerNormalization and SimplifiedLayerNormalization in opsets that ONNX knows without them.
_ASIDE: Mapping[str, tuple[range, Rule]] = MappingProxyType(
    {
        "Attention": (range(23, NEWEST), attention),
        "GlobalMaxPool": (range(22, NEWEST), _plain("GlobalMaxPool")),  # not convertible, onnx 1.23
        "GroupNormalization": (range(18, 21), group_normalization_by_group),
        "LayerNormalization": (range(17), layer_normalization),
        "RMSNormalization": (range(23, NEWEST), rms_normalization),
        "RotaryEmbedding": (range(23, NEWEST), rotary_embedding),
        "SimplifiedLayerNormalization": (range(NEWEST), rms_normalization),
        "SwiGLU": (range(28, NEWEST), swiglu),
        "Swish": (range(24, NEWEST), swish),
    }
)


def is_fused(node: ir.Node) -> bool:
    """Whether `node` is one that `decompose` writes in plain operators."""
    return _rule(node) is not None


def set_aside(model: ir.Model) -> None:
    """Move operators that ONNX cannot check in the model's opset, or convert, out of its sight."""
    opset = model.opset_imports.get("", 0)
    for node in model.graph:
        known = _ASIDE.get(node.op_type)
        if known is not None and not node.domain and opset in known[0]:
            node.domain = ASIDE
            model.opset_imports[ASIDE] = 1


def decompose(model: ir.Model) -> list[str]:
    """Write plain operators in the place of fused ones; return what was done, as sentences.

    Args:
        model: float32, opset 21, named, its shapes inferred; they are again afterwards.

    Raises:
        ModelError: One of them is of a form that has no plain equivalent, or needs a shape that is
            not known; the message names it and says what to do.
        onnx.shape_inference.InferenceError: Shapes contradict each other.
    """
    editor = Editor(model.graph)
    done: Counter[str] = Counter()
    while True:
        before = done.total()
        waiting = [text for node in list(model.graph) if (text := _replace(node, editor, done))]
        if done.total() > before:
            infer_shapes(model)
        if not waiting:
            break
        if done.total() == before:
            raise ModelError(waiting[0])
    for domain in (ORT, ASIDE):
        if all(node.domain != domain for node in ir.traversal.RecursiveGraphIterator(model.graph)):
            model.opset_imports.pop(domain, None)
    return [f"{count} {name} written in plain operators" for name, count in sorted(done.items())]


def _replace(node: ir.Node, editor: Editor, done: Counter[str]) -> str:
    """Replace `node` if it is fused; return what cannot be done before shapes are inferred."""
    rule = _rule(node)
    if rule is None:
        return ""
    write = Writer(node, editor)
    try:
        write.replace(rule(write))
    except ShapeUnknown as unknown:
        write.discard()
        way_out = "give the input a static shape there, or save the model with its shapes inferred"
        return str(write.refusal(f"{unknown} is not known", way_out))
    done[_full_name(node)] += 1
    return ""


def _rule(node: ir.Node) -> Rule | None:
    if node.domain == ORT:
        return _OF_ORT.get(node.op_type)
    return _ASIDE[node.op_type][1] if node.domain == ASIDE else None


def _full_name(node: ir.Node) -> str:
    return f"{ORT if node.domain == ORT else 'ai.onnx'}.{node.op_type}"
