"""How far a quantized graph is from the float one: the error of its tensors, beside their power.

    loss = mean over tensors of |q - r|^2 / |r|^2  +  outputs * the same for the model's outputs

`q` is what the codes of a tensor stand for, `r` the float model's value of that name. The float
model runs along with each batch, so nothing is kept of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from edgeq.learning.executor import Executor
from edgeq.qdq import REAL_NAME

_TINY = 1e-12  # power of a tensor that is 0


@dataclass(frozen=True, eq=False)
class Term:
    """One error of the loss.

    Attributes:
        quantized: A value of the quantized graph.
        real: The value of the float model that it stands for.
        maker: The node of the quantized graph that rounds it, or that makes an output.
        weight: What the relative error counts.
    """

    quantized: str
    real: str
    maker: ir.Node | None
    weight: float


def find_terms(model: ir.Model, reference: ir.Model, outputs: float) -> list[Term]:
    """Return the errors of all tensors that have a counterpart in the float model, in order.

    Args:
        model: The quantized graph.
        reference: The float graph.
        outputs: What the model's outputs count together, beside 1 for all tensors.
    """
    tensors = _tensors(model, reference)
    both = zip(model.graph.outputs, reference.graph.outputs, strict=True)
    ends = [(q, r) for q, r in both if q.dtype == r.dtype == ir.DataType.FLOAT]
    terms = [Term(q, r, maker, 1.0 / len(tensors)) for q, r, maker in tensors]
    terms += [
        Term(str(q.name), str(r.name), q.producer(), outputs / len(ends))
        for q, r in ends
        if outputs
    ]
    return terms


def _tensors(model: ir.Model, reference: ir.Model) -> list[tuple[str, str, ir.Node]]:
    """Return what is dequantized, the name in the float model, and what rounds it."""
    known = {str(v.name) for node in reference.graph for v in node.outputs}
    found = []
    for node in model.graph:
        real = node.outputs[0].metadata_props.get(REAL_NAME, "")
        if node.op_type != "QuantizeLinear" or node.domain or real not in known:
            continue
        readers = [reader for reader, _ in node.outputs[0].uses()]
        dequantized = next((r for r in readers if r.op_type == "DequantizeLinear"), None)
        if dequantized is not None:
            found.append((str(dequantized.outputs[0].name), real, node))
    return found


class Distillation:
    """The loss of a quantized graph against the float one."""

    def __init__(self, model: ir.Model, reference: ir.Model, device: str) -> None:
        """Prepare both graphs.

        Args:
            model: The quantized graph.
            reference: The float graph.
            device: Where to run.
        """
        self._quantized = Executor(model, device, exact=False)
        self._float = Executor(reference, device, exact=False)

    def loss(
        self,
        batch: Sequence[Mapping[str, Tensor]],
        tensors: Mapping[str, Tensor],
        terms: Sequence[Term],
    ) -> Tensor:
        """Return the loss of a batch, a mean over its feeds.

        Args:
            batch: Feeds.
            tensors: What initializers are replaced with.
            terms: The errors that count; nothing behind the last of them is computed.
        """
        return torch.stack([self._of_feed(feed, tensors, terms) for feed in batch]).mean()

    def _of_feed(
        self, feed: Mapping[str, Tensor], tensors: Mapping[str, Tensor], terms: Sequence[Term]
    ) -> Tensor:
        with torch.no_grad():
            real = self._float.run(feed, [term.real for term in terms])
        found = self._quantized.run(feed, [term.quantized for term in terms], tensors)
        errors = []
        for term in terms:
            r = real[term.real]
            error = torch.mean(torch.square(found[term.quantized].reshape(r.shape) - r))
            errors.append(term.weight * error / (torch.mean(torch.square(r)) + _TINY))
        return torch.stack(errors).sum()
