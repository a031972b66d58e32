"""Learning the numbers of a quantized graph: what is learned, from what, and whether it is kept."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgeq.checkpoint import digest
from edgeq.graph import digest as model_digest
from edgeq.learning.batches import Batches
from edgeq.learning.blocks import find_blocks
from edgeq.learning.distillation import Distillation, Term, find_terms
from edgeq.learning.learnable import find_activation_scales, find_biases, find_weights
from edgeq.learning.parameters import Parameters
from edgeq.learning.parameters import Rates as Rates
from edgeq.learning.training import reproducible, train
from edgeq.numerics.affine import QParams
from edgeq.passing import Context
from edgeq.qdq import quantize_node
from edgeq.recipe import Recipe

STAGE = "learn rounding"
Scope = Literal["model", "block"]
Moved = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Stage:
    """What is learned at one time: names of leaves, and the errors that count."""

    leaves: tuple[str, ...]
    terms: tuple[Term, ...]


def learn(
    model: ir.Model,
    context: Context,
    *,
    rates: Rates,
    scope: Scope,
    iterations: int,
    batch: int,
    outputs: float,
) -> int:
    """Learn codes, biases and scales; keep them if the held-out loss falls.

    Args:
        model: A graph of QuantizeLinear and DequantizeLinear pairs; its initializers change.
        context: With the float model, the samples, and what weights were rounded from.
        rates: How fast.
        scope: Everything together, or block by block: each with the inputs that the learned blocks
            in front of it make, and only the errors inside it.
        iterations: Steps of the optimizer, of each block.
        batch: Samples for each.
        outputs: How much the model's outputs count, beside 1 for the mean of all tensors.

    Returns:
        How many initializers are learned; 0 where that made nothing better.
    """
    assert context.reference is not None, "learning compares with the float model"
    graph, device = model.graph, context.device
    parameters = open_parameters(graph, context, rates)
    terms = find_terms(model, context.reference, outputs)
    if not parameters.leaves or not terms:
        return 0
    words = (STAGE, repr((rates, scope, iterations, batch, outputs, context.seed, device)))
    sources = (model_digest(model), model_digest(context.reference), _samples_digest(context))
    batches = Batches(context.samples, graph.inputs, size=batch, seed=context.seed, device=device)
    distillation = Distillation(model, context.reference, device)
    stages = [Stage(tuple(parameters.leaves), tuple(terms))]
    if scope == "block":
        stages = _stages(graph, parameters, terms)
    with reproducible():
        before = _held_loss(distillation, batches, parameters, terms)
        for place, stage in enumerate(stages):
            parameters.learn_only(stage.leaves)
            train(
                {name: parameters.leaves[name] for name in stage.leaves},
                {name: parameters.rates[name] for name in stage.leaves},
                partial(_loss, distillation, batches, parameters, stage.terms),
                parameters.keep_within_limits,
                iterations=iterations,
                checkpoint=context.checkpoint,
                key=digest((*words, *sources, str(place)), {}),
                progress=partial(_tell, context, place * iterations, len(stages) * iterations),
            )
        after = _held_loss(distillation, batches, parameters, terms)
    kept = after < before
    context.notes.append((
        "learn-rounding",
        f"relative squared error on held-out samples: {before:.5f}, learned {after:.5f}"
        f" ({len(stages)} times {iterations} iterations of {batch} samples)"
        + ("" if kept else "; not kept"),
    ))  # fmt: skip
    if not kept:
        return 0
    follow(graph, context, parameters.commit())
    return len(parameters.leaves)


def _tell(context: Context, first: int, total: int, done: int) -> None:
    context.progress(STAGE, first + done, total)


def _loss(
    distillation: Distillation,
    batches: Batches,
    parameters: Parameters,
    terms: tuple[Term, ...],
    number: int,
) -> torch.Tensor:
    return distillation.loss(batches.batch(number), parameters.tensors(), terms)


def _stages(graph: ir.Graph, parameters: Parameters, terms: list[Term]) -> list[Stage]:
    """Return a stage for each block that has something to learn, and an error to learn it from."""
    blocks = find_blocks(graph)
    leaves: dict[int, list[str]] = {}
    for name in parameters.leaves:
        readers = [blocks[node] for node, _ in graph.initializers[name].uses()]
        leaves.setdefault(min(readers), []).append(name)
    found = []
    for block in sorted(leaves):
        inside = [t for t in terms if t.maker is not None and blocks[t.maker] == block]
        if inside:
            found.append(Stage(tuple(leaves[block]), tuple(inside)))
    return found


def open_parameters(graph: ir.Graph, context: Context, rates: Rates) -> Parameters:
    """Return everything in the graph that may be learned; powers of two stay what they are."""
    return Parameters(
        find_weights(graph, context.float_weights),
        find_activation_scales(graph, context.qparams),
        find_biases(graph),
        _allowed(rates, context.recipe),
        torch.device(context.device),
    )


def _allowed(rates: Rates, recipe: Recipe) -> Rates:
    """Return the rates, those of scales that have to stay powers of two set to 0."""
    for role, field in (("weight", "scales"), ("activation", "activations")):
        changes = [dict(getattr(rule, role)).get("scale") for rule in recipe.rules]
        if "power_of_two" in (getattr(recipe, role).scale, *changes):
            rates = replace(rates, **{field: 0.0})
    return rates


def _samples_digest(context: Context) -> str:
    return "" if context.calibration is None else context.calibration.digest


@torch.no_grad()
def _held_loss(
    distillation: Distillation, batches: Batches, parameters: Parameters, terms: list[Term]
) -> float:
    tensors = parameters.tensors()
    losses = [float(distillation.loss([feed], tensors, terms)) for feed in batches.held]
    return float(np.mean(losses))


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
