"""Reading and editing `onnx_ir` graphs: constants, attributes, consumers, fresh names, text."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnx.printer
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.stored_codes import stored_codes

OPSET = 21  # every model inside edgeq has this opset: int4 and blocked QDQ exist, ORT runs it
MESSAGE_LIMIT = 2**31 - 2**20  # one protobuf message is below 2 GiB; leave room for the graph


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer or Constant node, `None` for anything else.

    Codes that are stored in fewer bits (`edgeq.stored_codes`) are constants too.
    """
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return stored_codes(value) if tensor is None else tensor.numpy()


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Return a list-of-integers attribute, or its default."""
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None else tuple(attribute.as_ints())


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def consumers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read `value`, each once, in the order of their first use."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`; `None` if others do, or it is a graph output."""
    nodes = consumers(value)
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of `value` when every dimension is a known integer."""
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def rank(value: ir.Value) -> int | None:
    """Return the number of dimensions of `value`, if known."""
    return None if value.shape is None else len(value.shape)


def value_names(graph: ir.Graph) -> set[str]:
    """Return the names of all values of `graph`."""
    names = {v.name for v in graph.inputs} | set(graph.initializers)
    names |= {out.name for node in graph for out in node.outputs}
    return {name for name in names if name}


class Names:
    """Fresh value names for one graph: `x_q`, then `x_q_1`, `x_q_2`, ..."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = value_names(graph)
        self._number: dict[str, int] = {}  # the last one behind each base
        _LATEST_NAMES[graph] = self

    def fresh(self, base: str) -> str:
        """Return `base`, or `base` with the first free number behind it."""
        number = self._number.get(base, 0)
        name = f"{base}_{number}" if number else base
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._number[base] = number
        self._taken.add(name)
        return name


# To collect the names of a graph takes as long as the graph is large: not for each node that goes.
_LATEST_NAMES: WeakKeyDictionary[ir.Graph, Names] = WeakKeyDictionary()


class Editor:
    """Adds initializers and nodes to a graph under fresh names."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.names = Names(graph)

    def initializer(self, base: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """Register `array` as an initializer named after `base`."""
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)))
        name = self.names.fresh(base)
        tensor.name = name
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        *,
        attributes: dict[str, Any] | None = None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | Sequence[int] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Make a node with one output, named after `output`; the caller inserts it.

        The node is `result.producer()`.
        """
        value = ir.Value(
            name=self.names.fresh(output),
            shape=shape if shape is None or isinstance(shape, ir.Shape) else ir.Shape(shape),
            type=None if dtype is None else ir.TensorType(dtype),
        )
        ir.node(op_type, inputs, attributes or {}, domain=domain, outputs=[value], name=value.name)
        return value

    def insert_before(self, anchor: ir.Node, values: Iterable[ir.Value]) -> None:
        """Insert the producers of `values` before `anchor`, in the order given."""
        self.graph.insert_before(anchor, [producer(v) for v in values])

    def insert_after(self, anchor: ir.Node, values: Iterable[ir.Value]) -> None:
        """Insert the producers of `values` after `anchor`, in the order given."""
        self.graph.insert_after(anchor, [producer(v) for v in values])

    def insert_first(self, values: Iterable[ir.Value]) -> None:
        """Insert the producers of `values` before all other nodes."""
        nodes = [producer(v) for v in values]
        first = next(iter(self.graph), None)
        if first is None:
            self.graph.extend(nodes)
        else:
            self.graph.insert_before(first, nodes)


def producer(value: ir.Value) -> ir.Node:
    """Return the node that makes `value`, which must have one."""
    node = value.producer()
    assert node is not None, f"{value.name} is not made by a node"
    return node


def replace_uses(old: ir.Value, new: ir.Value, *, but: Iterable[ir.Node] = ()) -> int:
    """Let every node that reads `old` read `new` instead, except the nodes in `but`.

    Graph outputs are left alone. Returns the number of inputs changed.
    """
    keep = set(but)
    uses = [(node, index) for node, index in old.uses() if node not in keep]
    for node, index in uses:
        node.replace_input_with(index, new)
    return len(uses)


def take_output(old: ir.Value, new: ir.Value) -> None:
    """Let `new` take over the name and, among the graph's outputs, the place of `old`.

    Interface names are the user's: a rewritten graph keeps them.
    """
    node = producer(old)
    graph = node.graph
    assert graph is not None
    name = old.name
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
            new.shape, new.type = new.shape or old.shape, new.type or old.type
    names = _LATEST_NAMES.get(graph) or Names(graph)
    old.name = names.fresh(f"{name}_replaced")
    new.name = name


def remove_dead(graph: ir.Graph) -> int:
    """Remove nodes whose outputs nobody reads, and unused initializers; return how many nodes."""
    removed = 0
    for node in reversed(list(graph)):
        if any(out.uses() or out.is_graph_output() for out in node.outputs):
            continue
        graph.remove(node, safe=True)
        removed += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
    return removed


def to_text(model: ir.Model) -> str:
    """Return the model as ONNX text, initializers listed once."""
    proto = ir.to_proto(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    others = [info for info in proto.graph.value_info if info.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(others)
    return onnx.printer.to_text(proto)


def to_proto(model: ir.Model, *, but: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model as one message, weights that lie in external files included.

    Initializers named in `but` stay external.
    """
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in but:
            array = model.graph.initializers[tensor.name].const_value
            assert array is not None
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = array.tobytes()
    return proto


def to_bytes(model: ir.Model, *, but: Collection[str] = ()) -> bytes:
    """Return the serialized model: the same bytes for the same graph, wherever its weights lie.

    Raises:
        ModelError: It is too large for one message.
    """
    tensors = [v.const_value for name, v in model.graph.initializers.items() if name not in but]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > MESSAGE_LIMIT:
        raise ModelError(
            f"the weights of {model.graph.name or 'the model'} take {size / 2**30:.2f} GiB, and one"
            " ONNX file holds 2 GiB; divide the model into several"
        )
    data: bytes = to_proto(model, but=but).SerializeToString(deterministic=True)
    return data


def digest(model: ir.Model) -> str:
    """Return the sha256 of the serialized model."""
    return hashlib.sha256(to_bytes(model)).hexdigest()


def clone(model: ir.Model) -> ir.Model:
    """Return an independent copy."""
    return model.clone()


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def release_mapped(model: ir.Model) -> None:
    """Give back the memory of weights in external files; they are mapped again when asked for."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            with suppress(BufferError):  # somebody still looks at it
                value.const_value.release()


def check(model: ir.Model) -> None:
    """Hold the model against the ONNX specification.

    Raises:
        onnx.checker.ValidationError: The model is not valid.
    """
    proto = ir.to_proto(model)
    if proto.ByteSize() < 2**31:
        onnx.checker.check_model(proto)
