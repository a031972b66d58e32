"""The names in a request: refused before any work where the model does not have them."""

import onnx_ir as ir

from edgeq.errors import ModelError, suggest
from edgeq.passing import node_names
from edgeq.recipe import Rule
from edgeq.request import CompileRequest


def check_names(request: CompileRequest, model: ir.Model) -> None:
    """Refuse names that the model does not have, and codes of what is not real.

    Raises:
        ModelError: The message says which option, and what the model has.
    """
    for pattern in request.keep_float:
        rule = Rule(name=pattern)
        if not any(rule.matches(node.op_type, node_names(node)) for node in model.graph):
            every = [name for node in model.graph for name in node_names(node)]
            raise ModelError(
                f"--keep-float {pattern}: no node or value of the model has such a name"
                f"{suggest(pattern, every)}"
            )
    for name, (low, high) in request.input_ranges.items():
        option = f"--input-range {name}={low}:{high}"
        named = {str(value.name): value for value in model.graph.inputs}
        if name not in named:
            raise ModelError(f"{option}: the model has {', '.join(named)}{suggest(name, [*named])}")
        dtype = named[name].dtype
        if low > high:
            raise ModelError(f"{option}: the least value comes first")
        if dtype is None or dtype.numpy().kind not in "iu":
            raise ModelError(
                f"{option}: {name} is {dtype}; only an integer takes the values of a range one by"
                " one. Export the model with an integer input (int64 timesteps)"
            )
    for option, names, values in (
        ("--input-type", request.input_types, model.graph.inputs),
        ("--output-type", request.output_types, model.graph.outputs),
    ):
        known = {str(value.name): value for value in values}
        for name, kind in names.items():
            if name not in known:
                raise ModelError(f"{option} {name}: the model has {', '.join(known)}")
            if kind not in ("float32", "uint8"):
                raise ModelError(f"{option} {name}={kind}: write uint8 or float32")
            value, real = known[name], ir.DataType.FLOAT
            if kind == "uint8" and value.dtype not in (real, None):
                raise ModelError(f"{option} {name}={kind}: {name} is {value.dtype}, not real")
            if kind == "uint8" and value.is_graph_input() and value.is_graph_output():
                raise ModelError(
                    f"{option} {name}={kind}: {name} is an input and an output of the model, and"
                    " passes through as it is; leave it float32, or remove it from the outputs"
                )
