"""Write several nodes in the place of one: what rules that decompose operators share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph import Editor, producer, rank, replace_uses, take_output

Attribute = int | float | str | Sequence[int]
Results = Sequence[ir.Value | None]  # one per output of the node; None where there is none


class ShapeUnknown(Exception):
    """A rule needs a shape that is not known (yet); the text says which."""


class Writer:
    """Writes the nodes that stand for one node.

    Nothing changes in the graph before `replace`.

    Attributes:
        node: The node to be replaced.
    """

    def __init__(self, node: ir.Node, editor: Editor) -> None:
        self.node = node
        self._editor = editor
        self._written: list[ir.Value] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Write a node of one output; return that."""
        name = f"{self.node.outputs[0].name}_{op_type.lower()}"
        value = self._editor.node(op_type, inputs, name, attributes=dict(attributes))
        self._written.append(value)
        return value

    def constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        """Return an initializer; equal arrays share one."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.node.outputs[0].name}_constant"
            self._constants[key] = self._editor.initializer(name, array)
        return self._constants[key]

    def number(self, number: float) -> ir.Value:
        """Return a float32 scalar."""
        return self.constant(np.float32(number))

    def integers(self, *numbers: int) -> ir.Value:
        """Return an int64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def slice(self, x: ir.Value, start: int, stop: int, axis: int = -1) -> ir.Value:
        """Return `x[start:stop]` along `axis`."""
        places = (self.integers(n) for n in (start, stop, axis))
        return self("Slice", x, *places)

    def take(self, x: ir.Value, index: int, axis: int) -> ir.Value:
        """Return `x[index]` along `axis`, which goes."""
        return self("Gather", x, self.constant(np.int64(index)), axis=axis)

    def length(self, x: ir.Value, axis: int) -> ir.Value:
        """Return the length of an axis, not negative, as an int64 scalar."""
        known = self.maybe_dim(x, axis)
        if known is not None:
            return self.constant(np.int64(known))
        return self("Squeeze", self("Shape", x, start=axis, end=axis + 1), self.integers(0))

    def positions(self, count: ir.Value) -> ir.Value:
        """Return 0, 1, ... as an int64 vector; `count` is a scalar."""
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        return self("Range", zero, count, one)

    def input(self, index: int) -> ir.Value | None:
        """Return an optional input of the node."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def required(self, index: int) -> ir.Value:
        """Return an input of the node.

        Raises:
            ModelError: It is missing.
        """
        value = self.input(index)
        if value is None:
            raise self.refusal(f"its input {index} is missing", "export the model anew")
        return value

    def is_read(self, index: int) -> bool:
        """Whether the node has the output `index`, and something reads it."""
        return index < len(self.node.outputs) and _is_read(self.node.outputs[index])

    def ndim(self, x: ir.Value) -> int:
        """Return the rank of `x`.

        Raises:
            ShapeUnknown: It is not known.
        """
        found = rank(x)
        if found is None:
            raise ShapeUnknown(f"the rank of {x.name}")
        return found

    def maybe_dim(self, x: ir.Value, axis: int) -> int | None:
        """Return the length of an axis of `x` as a number, if it is known."""
        found = None if x.shape is None else x.shape[axis]
        return found if isinstance(found, int) else None

    def dim(self, x: ir.Value, axis: int) -> int:
        """Return the length of an axis of `x` as a number.

        Raises:
            ShapeUnknown: It is not known.
        """
        found = self.maybe_dim(x, axis)
        if found is None:
            raise ShapeUnknown(f"axis {axis} of {x.name}")
        return found

    def refusal(self, reason: str, way_out: str) -> ModelError:
        """Return the error that refuses the node."""
        return ModelError(
            f"node {self.node.name!r} ({self.node.op_type}) cannot be used: {reason}; {way_out}"
        )

    def discard(self) -> None:
        """Give up what was written; the graph is as it was."""
        for value in self._written:
            _detach(value)
        self._drop_constants()

    def replace(self, results: Results) -> None:
        """Let `results` take the places of the node's outputs, in order, and remove the node.

        The first result takes the node's name, each takes the name of its output.

        Raises:
            ModelError: Something reads an output for which there is no result.
        """
        pairs: list[tuple[ir.Value, ir.Value]] = []
        for index, old in enumerate(self.node.outputs):
            new = results[index] if index < len(results) else None
            if not _is_read(old):
                continue
            if new is None:
                reason = f"its output {index} ({old.name}) is read, and edgeq has none"
                raise self.refusal(reason, "remove it from the model")
            own = new in self._written and all(new is not other for _, other in pairs)
            pairs.append((old, new if own or not old.is_graph_output() else self("Identity", new)))
        self._drop_unread({new for _, new in pairs})
        self._editor.insert_before(self.node, self._written)
        named: set[ir.Value] = set()
        for old, new in sorted(pairs, key=lambda pair: not pair[0].is_graph_output()):
            replace_uses(old, new)
            if new in self._written and new not in named:
                new.shape, new.type = old.shape or new.shape, old.type or new.type
                take_output(old, new)
                # Later nodes are named after free names of values.
                producer(new).name = new.name
                named.add(new)
        if pairs and pairs[0][1] in named:
            producer(pairs[0][1]).name = self.node.name
        self._editor.graph.remove(self.node, safe=True)

    def _drop_unread(self, results: set[ir.Value]) -> None:
        kept: list[ir.Value] = []
        for value in reversed(self._written):
            if value in results or value.uses():
                kept.insert(0, value)
            else:
                _detach(value)
        self._written = kept
        self._drop_constants()

    def _drop_constants(self) -> None:
        for value in self._constants.values():
            if not value.uses() and not value.is_graph_output():
                del self._editor.graph.initializers[str(value.name)]


def _detach(value: ir.Value) -> None:
    made = producer(value)
    for index in range(len(made.inputs)):
        made.replace_input_with(index, None)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
