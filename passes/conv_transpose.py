"""Write ConvTranspose as an ordinary Conv and DepthToSpace, which have integer kernels.

before:  y = ConvTranspose(x, w, b), stride s
after:   y = Slice(DepthToSpace(Conv(x, w', b'), blocksize = s))

Output pixel `s * i + r` of a transposed convolution with kernel k and leading pad p receives
`x[i'] * w[s * i + r + p - s * i']`: for each of the s phases r that is an ordinary correlation
with every s-th tap of w. All phases are one Conv with s*s times the channels (Shi et al. 2016,
"Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
Network"); DepthToSpace interleaves them. Phases whose taps end early are padded with zeros.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import (
    Editor,
    constant,
    int_attribute,
    ints_attribute,
    string_attribute,
    take_output,
)
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class Phases:
    """One spatial axis of the rewrite.

    Attributes:
        taps: Length of the ordinary kernel.
        before: Its leading pad.
        after: Its trailing pad.
        source: For each phase and tap, the index into the transposed kernel, or -1 for zero.
        trim: Pixels to cut at the end, behind DepthToSpace.
    """

    taps: int
    before: int
    after: int
    source: NDArray[np.int64]
    trim: int


def phases(kernel: int, stride: int, pads: tuple[int, int], output_padding: int) -> Phases:
    """Return how an axis of a transposed convolution splits into `stride` correlations.

    Output o = s*i + r reads inputs i' with weight index j = o + p - s*i' in [0, k). With
    i' = i + t the index is r + p - s*t, so t runs from ceil((r + p - k + 1) / s) to
    floor((r + p) / s).
    """
    begin, end = pads
    first = min(-(-(r + begin - kernel + 1) // stride) for r in range(stride))
    last = max((r + begin) // stride for r in range(stride))
    taps = last - first + 1
    index = np.full((stride, taps), -1)
    for r in range(stride):
        for t in range(first, last + 1):
            j = r + begin - stride * t
            if 0 <= j < kernel:
                index[r, t - first] = j
    # n inputs make s*(n - 1) + k - begin - end + output_padding pixels; ceil(that / s) are needed
    length = kernel - begin - end + output_padding - stride
    blocks = -(-length // stride)
    return Phases(taps, -first, last + blocks, index, blocks * stride - length)


@dataclass(frozen=True)
class ConvTransposeToConv(Pass):
    """Rewrite two-dimensional ConvTranspose nodes with equal strides and no dilation."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many ConvTranspose nodes went."""
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            if node.op_type == "ConvTranspose" and not node.domain and not context.keep_float(node):
                done += _rewrite(node, editor)
        return done


def _rewrite(node: ir.Node, editor: Editor) -> bool:
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 4:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and constant(bias) is None:
        return False
    strides = ints_attribute(node, "strides", (1, 1))
    fits = strides[0] == strides[1] and set(ints_attribute(node, "dilations", (1, 1))) == {1}
    explicit = string_attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    if not fits or not explicit or "output_shape" in node.attributes:
        return False
    pads = ints_attribute(node, "pads", (0, 0, 0, 0))
    extra = ints_attribute(node, "output_padding", (0, 0))
    axes = [
        phases(weight.shape[2 + i], strides[i], (pads[i], pads[2 + i]), extra[i]) for i in (0, 1)
    ]
    if any(axis.before < 0 or axis.after < 0 for axis in axes):
        return False
    _replace(node, weight, strides[0], axes, editor)
    return True


def _phase_weights(
    weight: NDArray[np.float32], group: int, stride: int, axes: list[Phases]
) -> NDArray[np.float32]:
    """Return the Conv weight [out * s * s, in / group, taps, taps], channels in CRD order."""
    inputs, per_group = weight.shape[:2]
    rows, columns = axes[0].source, axes[1].source
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 1), (0, 1)))  # index -1 reads a zero
    picked = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    # [in, out/group, s, s, taps, taps] -> [group, out/group, s, s, in/group, taps, taps]
    split = picked.reshape(group, inputs // group, per_group, stride, stride, *picked.shape[4:])
    moved = split.transpose(0, 2, 3, 4, 1, 5, 6)
    return np.ascontiguousarray(
        moved.reshape(group * per_group * stride**2, inputs // group, *picked.shape[4:])
    )


def _replace(
    node: ir.Node, weight: NDArray[np.float32], stride: int, axes: list[Phases], editor: Editor
) -> None:
    output = node.outputs[0]
    name = output.name or "y"
    group = int_attribute(node, "group", 1)
    inputs = [node.inputs[0]]
    inputs.append(editor.initializer(f"{name}_phases", _phase_weights(weight, group, stride, axes)))
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        inputs.append(editor.initializer(f"{name}_bias", np.repeat(bias, stride**2)))
    rows, columns = axes
    conv = editor.node(
        "Conv",
        inputs,
        f"{name}_subpixels",
        attributes={
            "group": group,
            "kernel_shape": [rows.taps, columns.taps],
            "pads": [rows.before, columns.before, rows.after, columns.after],
        },
        dtype=output.dtype,
    )
    made = [conv]
    if stride > 1:
        attributes = {"blocksize": stride, "mode": "CRD"}
        made.append(
            editor.node(
                "DepthToSpace", [conv], f"{name}_pixels", attributes=attributes, dtype=output.dtype
            )
        )
    if rows.trim or columns.trim:
        made.append(_trim(made[-1], axes, name, output, editor))
    made[-1].shape = output.shape
    editor.insert_before(node, made)
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, made[-1])
    if output.is_graph_output():
        take_output(output, made[-1])
    editor.graph.remove(node, safe=True)


def _trim(
    value: ir.Value, axes: list[Phases], name: str, output: ir.Value, editor: Editor
) -> ir.Value:
    cut = [(index, axis.trim) for index, axis in enumerate(axes) if axis.trim]
    zeros = np.zeros(len(cut), np.int64)
    ends = np.array([-trim for _, trim in cut], np.int64)
    where = np.array([2 + index for index, _ in cut], np.int64)
    arrays = (("starts", zeros), ("ends", ends), ("axes", where))
    inputs = [editor.initializer(f"{name}_{label}", array) for label, array in arrays]
    return editor.node("Slice", [value, *inputs], f"{name}_trimmed", dtype=output.dtype)
