"""How a node becomes a call: an operator is a function whose signature is its ONNX schema.

Positional parameters are the node's inputs, `None` where an optional one is left out; keyword
parameters are its attributes, with ONNX's defaults. An attribute that the function does not name,
or a text that is not among its `Literal` choices, is refused. A parameter called `outputs` receives
the number of outputs that the node asks for.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import UnsupportedOperatorError

Array = NDArray[Any]
AttributeValue = int | float | str | Array | tuple[Any, ...]
Kernel = Callable[..., tuple[Array, ...]]


@dataclass(frozen=True)
class Operator:
    """One row of the table of operators.

    Attributes:
        function: Takes arrays, returns one array or a tuple of them.
        outputs: The most outputs that it can give.
    """

    function: Callable[..., Array | tuple[Array, ...]]
    outputs: int = 1


def describe(node: ir.Node) -> str:
    """Return how messages name a node."""
    outputs = ", ".join(str(out.name) for out in node.outputs)
    return f"{node.op_type} node {node.name!r} (output {outputs})"


def attribute_value(attribute: ir.Attr) -> AttributeValue:
    """Return an attribute as int, float, str, array or tuple of these."""
    kind = ir.AttributeType
    if attribute.type == kind.TENSOR:
        return attribute.as_tensor().numpy()
    if attribute.type == kind.STRING:
        return attribute.as_string()
    if attribute.type in (kind.INTS, kind.FLOATS, kind.STRINGS):
        return tuple(attribute.value)
    if attribute.type == kind.INT:
        return attribute.as_int()
    return attribute.as_float()


def bind(node: ir.Node, table: Mapping[str, Operator]) -> Kernel:
    """Return the function that executes `node`, given its inputs.

    Raises:
        UnsupportedOperatorError: The operator, an attribute, its value or an output is not defined.
    """
    operator = None if node.domain not in ("", "ai.onnx") else table.get(node.op_type)
    if operator is None:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise UnsupportedOperatorError(
            f"{describe(node)}: edgeq has no definition of operator {name};"
            " write it in other operators, or cut the graph there"
        )
    wanted = _last_named(node.outputs)
    if wanted > operator.outputs:
        raise UnsupportedOperatorError(
            f"{describe(node)}: output {wanted} of {node.op_type} is not supported"
        )
    parameters = inspect.signature(operator.function).parameters
    _check_inputs(node, parameters)
    attributes = _attributes(node, operator.function, parameters)
    if "outputs" in parameters:
        attributes["outputs"] = len(node.outputs)
    call = partial(operator.function, **attributes)

    def run(*inputs: Array | None) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):  # IEEE results are the definition: inf and NaN included
            result = call(*inputs)
        return result if isinstance(result, tuple) else (result,)

    return run


def _last_named(outputs: Sequence[ir.Value]) -> int:
    return max((i for i, out in enumerate(outputs, 1) if out.name), default=0)


def _check_inputs(node: ir.Node, parameters: Mapping[str, inspect.Parameter]) -> None:
    if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return
    positional = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    required = sum(p.default is p.empty for p in positional)
    given = [value is not None for value in node.inputs]
    if sum(given[:required]) < required or len(given) > len(positional):
        raise UnsupportedOperatorError(
            f"{describe(node)}: {len(given)} inputs, {required} to {len(positional)} expected"
        )


def _attributes(
    node: ir.Node, function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    keywords = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} - {"outputs"}
    hints = get_type_hints(function)
    values = {}
    for name, attribute in node.attributes.items():
        if name not in keywords:
            raise UnsupportedOperatorError(f"{describe(node)}: attribute {name!r} is not supported")
        if attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH,):
            raise UnsupportedOperatorError(f"{describe(node)}: attribute {name!r} is not a value")
        value = attribute_value(attribute)
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else None
        if choices is not None and value not in choices:
            raise UnsupportedOperatorError(
                f"{describe(node)}: attribute {name} = {value!r} is not supported, only"
                f" {', '.join(map(repr, choices))}"
            )
        values[name] = value
    for name in keywords - set(values):
        if parameters[name].default is inspect.Parameter.empty:
            raise UnsupportedOperatorError(f"{describe(node)}: attribute {name!r} is missing")
    return values
