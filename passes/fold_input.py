"""Feed camera frames: fold the normalisation behind an input into the first linear op.

before:  y = Conv(x * k + c, w, b)              x: normalised from a frame by Mul, Div, Add, Sub
after:   y = Conv(x, w * k, b + sum(w * c))     x: the frame itself, its codes are its values

Only for inputs that the user wants to feed as uint8 (`--input-type NAME=uint8`); `k` and `c` are
one number, or one per channel. The decision `scale 1, zero point 0` is written to
`context.qparams`: code q means the real q. A model without such nodes takes raw frames already, and
gets the same decision.

**Borders.** A padded Conv sees normalised zeros outside the image, that is the frame value
`r = -c / k` per channel, not 0. With `c = 0` nothing is to be done. If all `r` are the same integer
of 0..255, an explicit Pad puts that value around the frame, and the rest is as without padding:

    y = Conv(Pad(x, r), w * k, b + sum(w * c), pads = 0)

Otherwise (channel means are hardly ever integers) no code stands for `r`, and the offset moves into
a channel of its own, which is 255 inside the image and, by the Conv's own padding, 0 outside:

    y = Conv([x, 255], [w * k, sum_i(w_i * c_i) / 255], b)

Inside and outside this is the same sum as before, for every size, stride and dilation. Folded
weights are computed in float64 and rounded to float32 once. Where an input's normalisation cannot
be folded exactly (no linear op reads it, or a grouped and padded Conv), its nodes stay and are
quantized like all others; a note says so.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.affine_nodes import Float64, affine_node, per_channel
from edgeq.errors import ModelError, suggest
from edgeq.graph import (
    Editor,
    consumers,
    int_attribute,
    ints_attribute,
    rank,
    remove_dead,
    replace_uses,
    string_attribute,
)
from edgeq.linear_weights import (
    LinearWeights,
    behind_affine,
    has_linear_weights,
    has_padding,
    input_channels,
    linear_weights,
    set_linear_weights,
)
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import UINT8
from edgeq.passing import Context, Pass

WHITE = 255
_SAME_REAL = 2.0**-22  # relative; the constants of a normalisation are float32
RAW = QParams(UINT8, np.array(1, np.float32), np.array(0, np.int32))


@dataclass(frozen=True)
class FoldInput(Pass):
    """Let the inputs in `context.input_types` take raw frames."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many linear nodes took over a normalisation.

        Raises:
            ModelError: There is no such input, or it cannot be fed as codes.
        """
        inputs = {str(value.name): value for value in model.graph.inputs}
        folded = 0
        for name, qtype in context.input_types.items():
            if name not in inputs:
                raise ModelError(
                    f"--input-type {name}={qtype}: the model has no input {name!r}"
                    f"{suggest(name, list(inputs))}; its inputs: {', '.join(inputs)}"
                )
            if qtype not in ("uint8", "float32"):
                raise ModelError(f"--input-type {name}={qtype}: one of uint8, float32")
            if qtype == "uint8":
                folded += _fold(inputs[name], Editor(model.graph), context)
        remove_dead(model.graph)
        return folded


@dataclass(frozen=True, eq=False)
class _Normalised:
    """The value behind an input's normalisation: `factor * frame + offset` per channel."""

    value: ir.Value
    factor: Float64
    offset: Float64


def _fold(source: ir.Value, editor: Editor, context: Context) -> int:
    _drop_cast(source)
    if source.dtype is not ir.DataType.FLOAT:
        raise ModelError(f"--input-type {source.name}=uint8: the input is {source.dtype}, no image")
    name = str(source.name)
    context.qparams[name] = RAW
    found = _normalised(source)
    if found.value is source:
        context.notes.append(("fold-input", f"{name}: no normalisation found, frames go in raw"))
        return 0
    readers = consumers(found.value)
    if found.value.is_graph_output() or not all(_takes(node, found) for node in readers):
        context.notes.append(
            ("fold-input", f"{name}: its normalisation stays, no linear op can take it exactly")
        )
        return 0
    for node in readers:
        _rewrite(node, source, found, editor, context)
    context.notes.append(("fold-input", f"{name}: normalisation folded, raw frames are the input"))
    return len(readers)


def _drop_cast(source: ir.Value) -> None:
    """Let the float32 casts of an uint8 input read float32 frames directly."""
    casts = consumers(source)
    if source.dtype is not ir.DataType.UINT8 or any(
        n.op_type != "Cast" or int_attribute(n, "to", 0) != ir.DataType.FLOAT for n in casts
    ):
        return
    if any(node.outputs[0].is_graph_output() for node in casts):
        return
    source.dtype = ir.DataType.FLOAT
    for node in casts:
        replace_uses(node.outputs[0], source)


def _normalised(source: ir.Value) -> _Normalised:
    """Follow the affine nodes behind `source` as far as one alone reads the other."""
    ndim = rank(source) or 0
    ones: Float64 = np.ones((1,) * ndim)
    found = _Normalised(source, ones, 0 * ones)
    while not found.value.is_graph_output() and len(readers := consumers(found.value)) == 1:
        affine = affine_node(readers[0])
        if affine is None:
            break
        factor = found.factor * affine.factor
        offset = found.offset * affine.factor + affine.offset
        found = _Normalised(readers[0].outputs[0], factor, offset)
    return found


def _channels(node: ir.Node, found: _Normalised) -> tuple[Float64, Float64] | None:
    count = input_channels(node)
    factor = per_channel(found.factor, 1, count)
    offset = per_channel(found.offset, 1, count)
    return None if factor is None or offset is None else (factor, offset)


def _takes(node: ir.Node, found: _Normalised) -> bool:
    if node.op_type not in ("Conv", "Gemm") or not has_linear_weights(node):
        return False
    if node.inputs[0] is not found.value or list(node.inputs).count(found.value) != 1:
        return False
    channels = _channels(node, found)
    if channels is None or not np.all(channels[0]):
        return False
    exact_anyway = not has_padding(node) or not channels[1].any()
    return (
        exact_anyway or _border(node, *channels) is not None or int_attribute(node, "group", 1) == 1
    )


def _border(node: ir.Node, factor: Float64, offset: Float64) -> int | None:
    """Return the one code that stands for a normalised zero in every channel, if there is one."""
    raw = -offset / factor
    code = round(float(raw[0]))
    same = np.all(np.abs(raw - code) <= _SAME_REAL * max(code, 1))
    explicit = string_attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    return code if same and explicit and UINT8.qmin <= code <= UINT8.qmax else None


def _rewrite(
    node: ir.Node, source: ir.Value, found: _Normalised, editor: Editor, context: Context
) -> None:
    channels = _channels(node, found)
    assert channels is not None
    factor, offset = channels
    if not has_padding(node) or not offset.any():
        set_linear_weights(node, behind_affine(node, factor, offset), editor)
        node.replace_input_with(0, source)
        return
    border = _border(node, factor, offset)
    if border is not None:
        _pad_with(node, source, border, editor, context)
        set_linear_weights(node, behind_affine(node, factor, -factor * border), editor)
        return
    _add_inside_channel(node, source, factor, offset, editor, context)


def _pad_with(
    node: ir.Node, source: ir.Value, border: int, editor: Editor, context: Context
) -> None:
    pads = ints_attribute(node, "pads", ())
    half = len(pads) // 2
    padded = _pad(source, [0, 0, *pads[:half], 0, 0, *pads[half:]], border, "padded", editor)
    editor.insert_before(node, [padded])
    context.qparams[str(padded.name)] = RAW
    node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    node.replace_input_with(0, padded)


def _add_inside_channel(
    node: ir.Node,
    source: ir.Value,
    factor: Float64,
    offset: Float64,
    editor: Editor,
    context: Context,
) -> None:
    weights = linear_weights(node)
    assert weights is not None
    ndim = weights.weight.ndim
    pads = [0] * (2 * ndim)
    pads[ndim + 1] = 1  # one channel behind the others
    framed = _pad(source, pads, WHITE, "inside", editor)
    editor.insert_before(node, [framed])
    context.qparams[str(framed.name)] = RAW
    shape = (1, -1, *[1] * (weights.weight.ndim - 2))
    inside = (weights.weight * offset.reshape(shape)).sum(1, keepdims=True) / WHITE
    wide = np.concatenate([weights.weight * factor.reshape(shape), inside], axis=1)
    set_linear_weights(node, LinearWeights(wide, weights.bias, 0), editor)
    node.replace_input_with(0, framed)


def _pad(source: ir.Value, pads: list[int], value: int, suffix: str, editor: Editor) -> ir.Value:
    sizes = editor.initializer(f"{source.name}_{suffix}_pads", np.array(pads, np.int64))
    number = editor.initializer(f"{source.name}_{suffix}_value", np.float32(value))
    padded = editor.node(
        "Pad", [source, sizes, number], f"{source.name}_{suffix}", dtype=ir.DataType.FLOAT
    )
    if source.shape is not None:
        half = len(pads) // 2
        padded.shape = ir.Shape(
            d + pads[i] + pads[half + i]
            if isinstance(d, int)
            else d
            if not pads[i] + pads[half + i]
            else None
            for i, d in enumerate(source.shape)
        )
    return padded
