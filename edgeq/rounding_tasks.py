"""Rounding layers as tasks: each is some outputs of one layer, which depend on no other output."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.float_weight import FloatWeight
from edgeq.layer_rounding import LayerRounding
from edgeq.numerics.qtype import FORMATS
from edgeq.rounding_adaround import adaround
from edgeq.rounding_descent import descend
from edgeq.rounding_gptq import gptq

Array = NDArray[Any]
Float64 = NDArray[np.float64]

OUTPUTS = 128  # of one task, at least: each factorizes the moments anew
REFITS = 2


def _nearest(layer: LayerRounding, iterations: int) -> Float64:
    return layer.nearest(layer.real, layer.step)


def _gptq(layer: LayerRounding, iterations: int) -> Float64:
    return gptq(layer)


def _descent(layer: LayerRounding, iterations: int) -> Float64:
    return descend(layer, gptq(layer))


METHODS: dict[str, Callable[[LayerRounding, int], Float64]] = {
    "nearest": _nearest,
    "gptq": _gptq,
    "adaround": adaround,
    "descent": _descent,
}


def round_outputs(task: Mapping[str, Array]) -> dict[str, Array]:
    """Round the outputs of one task.

    Args:
        task: Of `rounding_tasks`.

    Returns:
        `base`, int32 (groups, outputs, depth); `scale`, float32 (groups * outputs,); and the
        `error` of each output, float64 (2, groups * outputs): of the nearest codes, and of these.
    """
    layer = _layer(task)
    before = layer.error(layer.nearest(layer.real, layer.step))
    method = str(task["method"])
    base = METHODS[method](layer, int(task["iterations"]))
    if bool(task["refit"]):
        for _ in range(REFITS if method == "descent" else 1):
            fitted = layer.refitted(base)
            layer = layer.with_scale(np.where(task["fixed"], layer.scale, fitted.scale))
            if method == "descent":
                base = descend(layer, base)
    error = np.stack([before.reshape(-1), layer.error(base).reshape(-1)])
    return {"base": base.astype(np.int32), "scale": layer.scale, "error": error}


def rounding_tasks(
    layers: Sequence[LayerRounding],
    fixed: Sequence[NDArray[np.bool_]],
    *,
    method: str,
    refit: bool,
    iterations: int,
) -> list[Mapping[str, Array]]:
    """Cut layers into tasks of `round_outputs`.

    Args:
        layers: What to round.
        fixed: Of each layer, the outputs whose scales stay, (groups * outputs,).
        method: A name of `METHODS`.
        refit: Fit the other scales to the codes.
        iterations: Of methods that need a number.
    """
    options = {
        "method": np.array(method),
        "refit": np.array(refit),
        "iterations": np.array(iterations),
    }
    return [
        {**options, **_task(layer, kept, part)}
        for layer, kept in zip(layers, fixed, strict=True)
        for part in _parts(layer)
    ]


def gather(
    layers: Sequence[LayerRounding], results: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """Return the result of each layer, put together again."""
    left, found = iter(results), []
    for layer in layers:
        groups = len(layer.targets)
        mine = [next(left) for _ in _parts(layer)]
        shapes = {"base": (groups, -1, layer.targets.shape[2]), "scale": (groups, -1)}
        whole = {
            name: np.concatenate([r[name].reshape(shape) for r in mine], 1)
            for name, shape in shapes.items()
        }
        errors = np.concatenate([r["error"].reshape(2, groups, -1) for r in mine], 2)
        found.append({**whole, "scale": whole["scale"].reshape(-1), "error": errors})
    return found


def _task(layer: LayerRounding, fixed: NDArray[np.bool_], part: slice) -> dict[str, Array]:
    """Return what the outputs `part` of every group are rounded from."""
    groups, outputs = layer.targets.shape[:2]

    def cut(array: Array) -> Array:
        """Return the rows of a (groups * outputs, ...) array."""
        return array.reshape(groups, outputs, -1)[:, part].reshape(-1, array.size // len(array))

    weight, shift = layer.weight.weight, layer.weight.shift
    task = {
        "weight": cut(weight),
        "qtype": np.array(layer.weight.qtype.name),
        "limit": np.array(layer.weight.limit),
        "scale": cut(layer.scale)[:, 0],
        "fixed": cut(fixed)[:, 0],
        "inputs": layer.inputs,
        "targets": layer.targets[:, part],
    }
    return task if shift is None else {**task, "shift": cut(np.broadcast_to(shift, weight.shape))}


def _parts(layer: LayerRounding) -> list[slice]:
    """Cut the outputs; the cuts depend on the layer alone, so that the bits do too."""
    outputs, depth = layer.targets.shape[1:]
    size = max(OUTPUTS, depth // 2)
    return [slice(start, min(outputs, start + size)) for start in range(0, outputs, size)]


def _layer(task: Mapping[str, Array]) -> LayerRounding:
    qtype, limit = FORMATS[str(task["qtype"])], int(task["limit"])
    weight = FloatWeight(task["weight"], qtype, limit, task.get("shift"), 0)
    return LayerRounding(weight, task["scale"], task["inputs"], task["targets"])
