"""Learning the numbers of a quantized graph: what is learned, from what, and whether it is kept."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgeq.checkpoint import digest
from edgeq.graph import digest as model_digest
from edgeq.learning.batches import Batches
from edgeq.learning.distillation import Distillation, find_pairs
from edgeq.learning.learnable import find_activation_scales, find_biases, find_weights
from edgeq.learning.parameters import Parameters
from edgeq.learning.parameters import Rates as Rates
from edgeq.learning.training import reproducible, train
from edgeq.numerics.affine import QParams
from edgeq.passing import Context
from edgeq.qdq import quantize_node
from edgeq.recipe import Recipe

STAGE = "learn rounding"
Moved = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def learn(
    model: ir.Model,
    context: Context,
    *,
    rates: Rates,
    iterations: int,
    batch: int,
    outputs: float,
) -> int:
    """Learn codes, biases and scales together; keep them if the held-out loss falls.

    Args:
        model: A graph of QuantizeLinear and DequantizeLinear pairs; its initializers change.
        context: With the float model, the samples, and what weights were rounded from.
        rates: How fast.
        iterations: Steps of the optimizer.
        batch: Samples for each.
        outputs: How much the model's outputs count, beside 1 for the mean of all tensors.

    Returns:
        How many initializers are learned; 0 where that made nothing better.
    """
    assert context.reference is not None, "learning compares with the float model"
    rates = allowed_rates(rates, context.recipe)
    graph, device = model.graph, context.device
    parameters = Parameters(
        find_weights(graph, context.float_weights),
        find_activation_scales(graph, context.qparams),
        find_biases(graph),
        rates,
        torch.device(device),
    )
    if not parameters.leaves:
        return 0
    words = (STAGE, repr((rates, iterations, batch, outputs, context.seed, device)))
    sources = (model_digest(model), model_digest(context.reference), _samples_digest(context))
    batches = Batches(context.samples, graph.inputs, size=batch, seed=context.seed, device=device)
    distillation = Distillation(
        model, context.reference, find_pairs(model, context.reference), outputs, device
    )
    with reproducible():
        before = _held_loss(distillation, batches, parameters)
        train(
            parameters.leaves,
            parameters.rates,
            lambda number: distillation.loss(batches.batch(number), parameters.tensors()),
            parameters.keep_within_limits,
            iterations=iterations,
            checkpoint=context.checkpoint,
            key=digest((*words, *sources), {}),
            progress=lambda done: context.progress(STAGE, done, iterations),
        )
        after = _held_loss(distillation, batches, parameters)
    kept = after < before
    context.notes.append((
        "learn-rounding",
        f"relative squared error on held-out samples: {before:.5f}, learned {after:.5f}"
        f" ({iterations} iterations of {batch} samples)" + ("" if kept else "; not kept"),
    ))  # fmt: skip
    if not kept:
        return 0
    follow(graph, context, parameters.commit())
    return len(parameters.leaves)


def allowed_rates(rates: Rates, recipe: Recipe) -> Rates:
    """Return the rates, those of scales that have to stay powers of two set to 0."""
    for role, field in (("weight", "scales"), ("activation", "activations")):
        changes = [dict(getattr(rule, role)).get("scale") for rule in recipe.rules]
        if "power_of_two" in (getattr(recipe, role).scale, *changes):
            rates = replace(rates, **{field: 0.0})
    return rates


def _samples_digest(context: Context) -> str:
    return "" if context.calibration is None else context.calibration.digest


@torch.no_grad()
def _held_loss(distillation: Distillation, batches: Batches, parameters: Parameters) -> float:
    tensors = parameters.tensors()
    return float(np.mean([float(distillation.loss([feed], tensors)) for feed in batches.held]))


def follow(graph: ir.Graph, context: Context, moved: Moved) -> None:
    """Let the decided parameters of tensors follow the scales that were learned."""
    for node in graph:
        made = quantize_node(node) if node.op_type == "QuantizeLinear" else None
        scale = node.inputs[1] if made is not None else None
        if made is None or scale is None or str(scale.name) not in moved:
            continue
        old, new = moved[str(scale.name)]
        zero = made.qparams.zero_point
        for decided in (context.qparams, context.copies):
            for name, qparams in decided.items():
                if _same(qparams, old, zero):
                    decided[name] = QParams(qparams.qtype, new, qparams.zero_point)


def _same(qparams: QParams, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> bool:
    """Whether parameters are these: equal ones share their initializers."""
    if qparams.axis is not None:
        return False
    same_scale = qparams.scale.tobytes() == np.float32(scale).tobytes()
    return same_scale and int(qparams.zero_point) == int(zero)
