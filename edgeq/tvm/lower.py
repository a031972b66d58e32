"""From a quantized model to a program: what is stored, what is fused, and which kernel does what.

Linear groups, reductions and dynamic products are kernels of their own. What treats each element
alone becomes part of the kernel that reads it, unless it is codes, an output, or dear and read more
than once: then it is stored. What only moves elements is never a kernel, unless its reader needs
them side by side.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.code_counts import code_count
from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import constant
from edgeq.operators import OPERATORS
from edgeq.operators.binding import bind, describe
from edgeq.qdq import linear_group, operand, quantize_node
from edgeq.tvm import heavy, linear_groups
from edgeq.tvm.builder import Builder
from edgeq.tvm.channel_quantization import quantized_by_channel
from edgeq.tvm.dot import Isa
from edgeq.tvm.elementwise import elementwise
from edgeq.tvm.gathers import look_up
from edgeq.tvm.loops import outermost_first
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import DTYPES, NHWC, Kind, Layout, Program, Tensor
from edgeq.tvm.quantization import dequantized, quantized
from edgeq.tvm.reading import flattened, images, look_ups, needed_nodes
from edgeq.tvm.static_model import StaticModel
from edgeq.tvm.views import View, stride_of

Array = NDArray[Any]
DEAR = 3  # operations: what takes more, and is read more than once, is stored
MOST_VIEWS = 8  # that one kernel reads for one element
MOVES = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Resize", "Slice", "SpaceToDepth",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def lower(static: StaticModel, isa: Isa) -> Program:
    """Return the kernels of a quantized model.

    Raises:
        UnsupportedOperatorError: A node has no kernel; the message names it.
    """
    return Lowering(static, isa).program()


class Lowering:
    """Lowers one model.

    Attributes:
        builder: Collects what is made.
        isa: How the device multiplies.
        constants: Values that are known, by name.
    """

    def __init__(self, static: StaticModel, isa: Isa) -> None:
        graph = static.model.graph
        self.builder = Builder()
        self.isa = isa
        self.constants: dict[str, Array] = {}
        self._shapes, self._dtypes = static.shapes, static.dtypes
        self._graph = graph
        self._outputs = [str(value.name) for value in graph.outputs]
        self._values: dict[str, Pointwise] = {}
        self._stored: dict[str, Tensor] = {}
        self._nodes = needed_nodes(graph)
        self._spatial = images(self._nodes)
        self._look_ups = look_ups(self._nodes, static.shapes)
        self._absorbed = {
            node
            for last, (_, gather) in self._look_ups.items()
            for node in (gather, flattened(gather))
        }
        self._readers = Counter(
            str(value.name) for node in self._nodes for value in node.inputs if value is not None
        )

    def program(self) -> Program:
        """Lower all nodes."""
        for name, value in self._graph.initializers.items():
            array = constant(value)
            if array is not None:
                self.constants[name] = array
        inputs = []
        for value in self._graph.inputs:
            name = str(value.name)
            if name not in self.constants:
                layout = Layout.plain(self._shapes[name])
                tensor = self.builder.tensor(name, self._dtypes[name], layout, "input")
                inputs.append(tensor)
                self._keep(tensor)
        hidden: set[ir.Node] = set()
        for node in self._nodes:
            group = linear_group(node)
            if node in self._look_ups:
                index, gather = self._look_ups[node]
                look_up(self, gather, index, node.outputs[0])
            elif node in self._absorbed:
                continue
            elif group is not None:
                hidden.update(linear_groups.lower_group(self, group))
            elif node not in hidden:
                self._lower(node)
        outputs = tuple(
            self._output(name, again=name in self._outputs[:number])
            for number, name in enumerate(self._outputs)
        )
        taps = [t for t in self._stored.values() if t.buffer.kind in ("workspace", "output")]
        codes = ("uint8", "int8", "uint16", "int16")
        return Program(
            tuple(self.builder.kernels),
            self.builder.constants,
            tuple(inputs),
            outputs,
            tuple(t for t in taps if t.buffer.dtype in codes),
        )

    # What lowering rules read and make.

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the sizes of a value."""
        name = str(value.name)
        return self.constants[name].shape if name in self.constants else self._shapes[name]

    def dtype(self, value: ir.Value) -> str:
        """Return the dtype of a value, numpy's name."""
        name = str(value.name)
        known = self.constants.get(name)
        return self._dtypes[name] if known is None else known.dtype.name

    def pointwise(self, value: ir.Value) -> Pointwise:
        """Return a value as what its elements are computed from."""
        name = str(value.name)
        return (
            self.parameter(self.constants[name]) if name in self.constants else self._values[name]
        )

    def parameter(self, array: Array) -> Pointwise:
        """Return a constant as an operand."""
        if array.size == 1:
            return Pointwise.literal(array.reshape(-1)[0])
        buffer = self.builder.constant(array)
        return Pointwise.of(Tensor(buffer.name, buffer, Layout.plain(array.shape)))

    def stored(self, value: ir.Value, order: tuple[int, ...] | None = None) -> Tensor:
        """Return a value that lies in memory, in `order` if that matters."""
        name = str(value.name)
        if name in self.constants:
            array = self.constants[name]
            buffer = self.builder.constant(array)
            return Tensor(name, buffer, Layout.plain(array.shape))
        if name not in self._stored:
            self._store(name, order)
        tensor = self._stored[name]
        if order is None or Layout(tensor.layout.shape, order).strides == tensor.layout.strides:
            return tensor
        wanted = Layout(tensor.layout.shape, order)
        if _same_memory(wanted, tensor.layout):
            return Tensor(name, tensor.buffer, wanted)
        copy = self.builder.tensor(name, tensor.buffer.dtype, wanted)
        self.builder.write(Pointwise.of(tensor), View.of(copy), f"Transpose {name}")
        return copy

    def new(self, value: ir.Value, order: tuple[int, ...] | None = None) -> Tensor:
        """Return a new tensor for a value that a kernel will write; an output lies as in ONNX."""
        name, shape = str(value.name), self.shape(value)
        plain = tuple(range(len(shape)))
        direct = name in self._outputs and (order is None or Layout(shape, order).is_plain)
        if order is None:
            order = NHWC if name in self._spatial and len(shape) == 4 else plain
            order = plain if direct else order
        kind: Kind = "output" if direct else "workspace"
        tensor = self.builder.tensor(name, self.dtype(value), Layout(shape, order), kind)
        self._keep(tensor)
        return tensor

    def keep(self, value: ir.Value, x: Pointwise) -> None:
        """Note what a value is; store it where that is better."""
        name = str(value.name)
        self._values[name] = x
        codes = x.dtype in ("uint8", "int8", "uint16", "int16") and not x.is_view
        dear = x.cost > DEAR and self._readers[name] > 1
        if codes or dear or len(x.views) > MOST_VIEWS:
            self._store(name)

    def _keep(self, tensor: Tensor) -> None:
        self._stored[tensor.name] = tensor
        self._values[tensor.name] = Pointwise.of(tensor)

    def _store(self, name: str, order: tuple[int, ...] | None = None) -> None:
        x = self._values[name]
        direct = name in self._outputs
        whole = _whole(x, name)
        if whole is not None and not (direct and whole.buffer.kind == "output"):
            self._stored[name] = whole
            return
        plain = tuple(range(len(x.shape)))
        if order is None:
            order = NHWC if len(plain) == 4 and name in self._spatial else _order(x)
        order = plain if direct else order
        kind: Kind = "output" if direct else "workspace"
        tensor = self.builder.tensor(name, x.dtype, Layout(x.shape, order), kind)
        self.builder.write(x, View.of(tensor), f"Elementwise {name}")
        self._keep(tensor)

    def _output(self, name: str, *, again: bool) -> Tensor:
        if name in self.constants:
            array = self.constants[name]
            x = self.parameter(array)
            x = Pointwise(
                array.shape, x.dtype, tuple(v.broadcast(array.shape) for v in x.views), x.compute,
                x.evaluate,
            )  # fmt: skip
            layout = Layout.plain(array.shape)
        else:
            tensor = self._stored.get(name)
            if tensor is not None and tensor.buffer.kind == "output" and not again:
                return tensor
            x = self._values[name]
            layout = Layout.plain(x.shape)
        tensor = self.builder.tensor(name, x.dtype, layout, "output")
        self.builder.write(x, View.of(tensor), f"Output {name}")
        return tensor

    # Nodes that are no linear group.

    def _lower(self, node: ir.Node) -> None:
        for value in node.outputs:
            if 0 in self._shapes.get(str(value.name), ()):
                raise UnsupportedOperatorError(f"{describe(node)}: a tensor without elements")
            if self._dtypes.get(str(value.name), "float32") not in DTYPES:
                raise UnsupportedOperatorError(
                    f"{describe(node)}: values of {self._dtypes[str(value.name)]}"
                )
        names = [None if value is None else str(value.name) for value in node.inputs]
        if all(name is None or name in self.constants for name in names):
            self._fold(node, [None if name is None else self.constants[name] for name in names])
        elif node.op_type in ("Shape", "Size"):
            assert node.inputs[0] is not None
            self._fold(node, [np.broadcast_to(np.int8(0), self.shape(node.inputs[0]))])
        elif node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node)
        elif node.op_type in MOVES and all(name in self.constants for name in names[1:] if name):
            self._move(node)
        elif node.op_type in heavy.RULES:
            heavy.RULES[node.op_type](self, node)
        else:
            self._elementwise(node)

    def _fold(self, node: ir.Node, arrays: Sequence[Array | None]) -> None:
        for value, array in zip(node.outputs, bind(node, OPERATORS)(*arrays), strict=False):
            self.constants[str(value.name)] = np.asarray(array)

    def _elementwise(self, node: ir.Node) -> None:
        (output,) = node.outputs
        shape, dtype = self.shape(output), self.dtype(output)
        operands = []
        for value in node.inputs:
            x = None if value is None else self.pointwise(value)
            if x is not None and value is not None and x.cost > 1 and _smaller(x.shape, shape):
                x = Pointwise.of(self.stored(value))
            operands.append(x)
        counts: dict[str, int] = {}
        for value in node.inputs:
            codes = operand(value)
            if codes is not None:
                counts[str(codes.codes.name)] = code_count(codes)

        def count(view: View) -> int:
            bits = 8 * np.dtype(view.buffer.dtype).itemsize
            return max(counts.values(), default=1 << bits) if bits > 8 else 1 << bits

        self.keep(output, elementwise(node, operands, shape, dtype, count))

    def _quantize(self, node: ir.Node) -> None:
        x, scale = node.inputs[0], node.inputs[1]
        assert x is not None and scale is not None
        kernel = bind(node, OPERATORS)
        rest = [None if v is None else self.constants.get(str(v.name)) for v in node.inputs[1:]]

        def evaluate(*arrays: Array) -> Array:
            return kernel(arrays[0], *rest)[0]

        found = quantize_node(node)
        if found is not None and found.qparams.axis is None:
            q = found.qparams
            y = quantized(
                self.pointwise(x), np.float32(q.scale), int(q.zero_point), q.qtype, evaluate
            )
        else:
            y = quantized_by_channel(self, node, evaluate)
        self.keep(node.outputs[0], y)

    def _dequantize(self, node: ir.Node) -> None:
        found = operand(node.outputs[0])
        if found is None:
            raise UnsupportedOperatorError(f"{describe(node)}: its parameters are not constant")
        kernel = bind(node, OPERATORS)
        rest = [None if v is None else self.constants[str(v.name)] for v in node.inputs[1:]]
        codes, q = self.pointwise(found.codes), found.qparams

        def along(array: Array) -> Pointwise:
            if q.axis is None:
                return self.parameter(np.asarray(array).reshape(()))
            shape = [1] * len(codes.shape)
            shape[q.axis] = -1
            return self.parameter(np.asarray(array).reshape(shape))

        def evaluate(x: Array) -> Array:
            return kernel(x, *rest)[0]

        y = dequantized(codes, q.scale, q.zero_point, along, evaluate)
        self.keep(node.outputs[0], y)

    def _move(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        kernel = bind(node, OPERATORS)
        rest = [None if v is None else self.constants[str(v.name)] for v in node.inputs[1:]]
        for number, value in enumerate(node.outputs):

            def move(places: Array, number: int = number) -> Array:
                try:
                    return kernel(places, *rest)[number]
                except UnsupportedOperatorError as error:
                    raise UnsupportedOperatorError(f"{describe(node)}: {error}") from None

            x = self.pointwise(source).moved(move)
            if x is None:
                plain = tuple(range(len(self.shape(source))))
                x = Pointwise.of(self.stored(source, plain)).moved(move)
            if x is None:
                raise UnsupportedOperatorError(f"{describe(node)}: where it reads has no formula")
            self.keep(value, x)


def _smaller(shape: Sequence[int], than: Sequence[int]) -> bool:
    return int(np.prod(shape)) * 2 <= int(np.prod(than))


def _same_memory(a: Layout, b: Layout) -> bool:
    """Whether two layouts differ in axes of size 1 alone."""
    steps = zip(a.shape, a.strides, b.strides, strict=True)
    return all(x == y or size == 1 for size, x, y in steps)


def _order(x: Pointwise) -> tuple[int, ...]:
    """Return the order of the tensors that `x` reads: another than ONNX's if there is one."""
    found = tuple(range(len(x.shape)))
    for view in x.views:
        steps = [stride_of(axis) for axis in view.axes]
        is_whole = all(step or len(axis) == 1 for step, axis in zip(steps, view.axes, strict=True))
        order = tuple(outermost_first(view))
        if view.buffer.kind == "workspace" and is_whole and not Layout(x.shape, order).is_plain:
            found = order
    return found


def _whole(x: Pointwise, name: str) -> Tensor | None:
    """Return the tensor that `x` is, if it is all of a buffer in some order of the axes."""
    if not x.is_view:
        return None
    (view,) = x.views
    if (
        view.base
        or view.buffer.kind in ("input", "constant")
        or view.places.size != view.buffer.elements
    ):
        return None
    order = sorted(range(len(view.axes)), key=lambda a: (-_stride(view, a), a))
    layout = Layout(view.shape, tuple(order))
    return (
        Tensor(name, view.buffer, layout)
        if np.array_equal(View.of(Tensor(name, view.buffer, layout)).places, view.places)
        else None
    )


def _stride(view: View, axis: int) -> int:
    steps = view.axes[axis]
    return int(steps[1] - steps[0]) if len(steps) > 1 else 1 << 62
