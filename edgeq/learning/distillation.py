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


@dataclass(frozen=True)
class Pair:
    """A value of the quantized graph, and the value of the float model that it stands for."""

    quantized: str
    real: str


def find_pairs(model: ir.Model, reference: ir.Model) -> list[Pair]:
    """Return the dequantized tensors that have a counterpart in the float model, in order."""
    known = {str(v.name) for node in reference.graph for v in node.outputs}
    found = []
    for node in model.graph:
        real = node.outputs[0].metadata_props.get(REAL_NAME, "")
        if node.op_type != "QuantizeLinear" or node.domain or real not in known:
            continue
        readers = [reader for reader, _ in node.outputs[0].uses()]
        dequantized = next((r for r in readers if r.op_type == "DequantizeLinear"), None)
        if dequantized is not None:
            found.append(Pair(str(dequantized.outputs[0].name), real))
    return found


def output_pairs(model: ir.Model, reference: ir.Model) -> list[Pair]:
    """Return the float outputs of both graphs, which have the same order."""
    both = zip(model.graph.outputs, reference.graph.outputs, strict=True)
    return [
        Pair(str(q.name), str(r.name)) for q, r in both if q.dtype == r.dtype == ir.DataType.FLOAT
    ]


class Distillation:
    """The loss of a quantized graph against the float one."""

    def __init__(
        self,
        model: ir.Model,
        reference: ir.Model,
        pairs: Sequence[Pair],
        outputs: float,
        device: str,
    ) -> None:
        """Prepare both graphs.

        Args:
            model: The quantized graph.
            reference: The float graph.
            pairs: The tensors to compare.
            outputs: The weight of the model's outputs, beside 1 for the mean of all pairs.
            device: Where to run.
        """
        self._quantized = Executor(model, device, exact=False)
        self._float = Executor(reference, device, exact=False)
        ends = output_pairs(model, reference)
        self._terms = [(pair, 1.0 / len(pairs)) for pair in pairs]
        self._terms += [(pair, outputs / len(ends)) for pair in ends]

    def loss(self, batch: Sequence[Mapping[str, Tensor]], tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch, a mean over its feeds.

        Args:
            batch: Feeds.
            tensors: What initializers are replaced with.
        """
        losses = [self._of_feed(feed, tensors) for feed in batch]
        return torch.stack(losses).mean()

    def _of_feed(self, feed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            real = self._float.run(feed, [pair.real for pair, _ in self._terms])
        found = self._quantized.run(feed, [pair.quantized for pair, _ in self._terms], tensors)
        terms = []
        for pair, weight in self._terms:
            r = real[pair.real]
            error = torch.mean(torch.square(found[pair.quantized].reshape(r.shape) - r))
            terms.append(weight * error / (torch.mean(torch.square(r)) + _TINY))
        return torch.stack(terms).sum()
