"""The range of real numbers that the codes of a group of values cover, and its spec."""

from dataclasses import replace

import onnx_ir as ir

from edgeq.code_plan import Group
from edgeq.graph import consumers
from edgeq.numerics.qtype import FORMATS
from edgeq.observe import choose_range
from edgeq.passing import Context, node_names
from edgeq.places import places_of_value
from edgeq.recipe import QuantSpec
from edgeq.roles import maker_of_range


def group_spec(group: Group, role: str, context: Context) -> QuantSpec:
    """Return the spec of the node that makes the first value; of its reader, for a graph input."""
    value = group.values[0]
    node = maker_of_range(value)
    if node is None:
        readers = consumers(value)
        if not readers:
            residual = role == "residual"
            return context.recipe.residual if residual else context.recipe.activation
        node = readers[0]
    places = places_of_value(value)
    return context.recipe.spec(role, node.op_type, node_names(node), places)


def group_range(
    group: Group, spec: QuantSpec, context: Context, observer: str = ""
) -> tuple[float, float]:
    """Return the least range that holds what the observer decides for each value.

    Args:
        group: Values with one scale.
        spec: Of the group.
        context: With the statistics of calibration.
        observer: Another one than the spec's.
    """
    assert context.calibration is not None
    spec = replace(spec, observer=observer or spec.observer)
    statistics, qtype = context.calibration.statistics, FORMATS[spec.qtype]
    ranges = [choose_range(statistics[str(v.name)], spec, qtype) for v in group.values]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def roots(group: Group) -> list[ir.Value]:
    """Return the values that no op has moved here from another value of the group."""
    inside = set(group.values)
    makers = ((value, value.producer()) for value in group.values)
    return [v for v, made in makers if made is None or not inside.intersection(made.inputs)]
