"""Give every size of a model a number, as ahead-of-time code needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph import clone
from edgeq.onnx_api import infer_shapes
from edgeq.qdq import linear_group
from edgeq.simulate import Simulator

Array = NDArray[Any]
BATCH = 1  # of a device, where the model leaves it open


@dataclass(frozen=True)
class StaticModel:
    """A model whose inputs have fixed sizes.

    Attributes:
        model: A copy, with these inputs and the sizes of all values.
        shapes: Of every value that is computed, by name.
        dtypes: Likewise, numpy's names.
    """

    model: ir.Model
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]


def fix_sizes(model: ir.Model, feeds: Mapping[str, Array]) -> StaticModel:
    """Fix the sizes of the inputs to those of `feeds`, and find all others by running it.

    Raises:
        ModelError: An input is missing.
    """
    fixed = clone(model)
    for value in fixed.graph.inputs:
        name = str(value.name)
        if name in fixed.graph.initializers:
            continue
        if name not in feeds:
            raise ModelError(f"the size of input {name!r} is not known")
        value.shape = ir.Shape(feeds[name].shape)
    infer_shapes(fixed)
    names = _values(fixed)
    found = Simulator(fixed).run(feeds, names)
    shapes = {name: array.shape for name, array in found.items()}
    for value in (value for node in fixed.graph for value in node.outputs):
        if value.name in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    dtypes = {name: array.dtype.name for name, array in found.items()}
    for name, array in feeds.items():
        shapes[name], dtypes[name] = array.shape, array.dtype.name
    return StaticModel(fixed, shapes, dtypes)


def feeds_of_zeros(model: ir.Model) -> dict[str, Array]:
    """Return feeds of zeros; an open size is 1.

    Raises:
        ModelError: The rank of an input is not known.
    """
    feeds = {}
    for value in model.graph.inputs:
        if str(value.name) in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise ModelError(f"input {value.name!r} has no shape")
        shape = [size if isinstance(size, int) else BATCH for size in value.shape]
        feeds[str(value.name)] = np.zeros(shape, value.dtype.numpy())
    return feeds


def _values(model: ir.Model) -> list[str]:
    """Return the names of the values that a kernel may write: what groups hide is left out."""
    hidden = set()
    for node in model.graph:
        group = linear_group(node)
        if group is not None and group.y is not None:
            hidden.add(str(node.outputs[0].name))
    return [
        str(value.name)
        for node in model.graph
        for value in node.outputs
        if value.name and value.name not in hidden
    ]
