"""Round the weights of each linear op so that its results change least, not the weights.

before:  y = Conv(DequantizeLinear(x_q), DequantizeLinear(w_q, sw, 0), DequantizeLinear(b_q))
after:   the same with other w_q, sw and b_q

The error of a layer over all samples is a quadratic form of its weights (edgeq/second_moments.py),
which each method makes small, on the grid of the weight's format:

    nearest     as quantize-weights rounds, with the scales and biases that fit best
    gptq        column by column, each answering for those before it (Frantar et al. 2022)
    adaround    by the gradient of a soft choice between two codes (Nagel et al. 2020)
    descent     gptq, then every weight in turn as is best for the others, until none moves

Layers are rounded in the order of the graph, each with the inputs that the rounded layers in front
of it make; those that do not depend on each other are independent tasks, and so are the outputs of
one layer. A bias takes up the mean error, so correct-bias need not follow, and its `cause=weights`
would correct biases twice. Scales that are powers of two stay.

Measured with 24 samples, weights in int4 but for the first and the last layer, 8-bit activations:
SQNR of the first output, top1, and seconds of one core for this pass.

    resnet20-cifar10      nearest 11.1 dB  78.4 %    gptq 19.2 dB  80.5 %  3 s
                          descent 19.7 dB  79.4 %  5 s
    vit-mnist             nearest 20.2 dB  98.0 %    gptq 22.0 dB  98.0 %  6 s
                          descent 22.9 dB  98.0 %  7 s           (500 images; 16 samples)
    mobilenet-v1-075      nearest  1.5 dB  15.0 %    descent 10.4 dB  77.5 %  36 s
                          (200 images; correct-bias behind both)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx_ir as ir

from edgeq.calibrate import silent
from edgeq.errors import RecipeError
from edgeq.linear_rows import LinearRows
from edgeq.passing import Context, Pass
from edgeq.qdq import linear_group
from edgeq.rounded_layer import RoundedLayer
from edgeq.rounding_tasks import METHODS, gather, round_outputs, rounding_tasks
from edgeq.second_moments import float_results, moment_bytes, second_moments
from edgeq.simulate import Simulator
from edgeq.tasks import run_tasks


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weights of integer Conv, Gemm and MatMul nodes anew.

    Attributes:
        method: `nearest`, `gptq`, `adaround` or `descent`.
        follow: The share of the error of earlier layers that a layer takes back.
        damping: Pull towards the real weights, as a share of the mean second moment of an input.
        refit: Fit scales to the codes.
        iterations: Steps of adaround.
        samples: At most so many calibration samples take part.
        megabytes: Memory for second moments; layers are looked at in more sweeps to keep it, and
            one that takes more is left as it is.
    """

    method: str = "descent"
    follow: float = 0.5
    damping: float = 0.3
    refit: bool = True
    iterations: int = 1000
    samples: int = 128
    megabytes: int = 1024

    def run(self, model: ir.Model, context: Context) -> int:
        """Change initializers of weights and biases; return in how many layers.

        Raises:
            RecipeError: There is no such method.
        """
        if self.method not in METHODS:
            raise RecipeError(f"round-weights: method {self.method!r}: choose {', '.join(METHODS)}")
        assert context.reference is not None, "round-weights compares with the float model"
        layers = list(self._layers(model, context))
        simulator = Simulator(model)
        left: dict[str, float] = {}
        for stage in _stages(model, layers, self.megabytes * 2**20):
            context.progress("round weights", len(left), len(layers))
            left |= self._round(stage, model, simulator, context)
        if left:
            context.notes.append(("round-weights", _summary(self.method, left)))
        return len(left)

    def _layers(self, model: ir.Model, context: Context) -> Iterator[LinearRows]:
        for node in model.graph:
            group = linear_group(node)
            if group is None or str(group.w.codes.name) not in context.float_weights:
                continue
            rows = LinearRows.of(group)
            if rows is None or np.any(group.w.qparams.zero_point) or len(group.w.codes.uses()) > 1:
                continue
            if moment_bytes(rows) > self.megabytes * 2**20:
                text = f"{node.name}: left as it is, its moments take over {self.megabytes} MB"
                context.notes.append(("round-weights", text))
                continue
            yield rows

    def _round(
        self,
        stage: Sequence[LinearRows],
        model: ir.Model,
        simulator: Simulator,
        context: Context,
    ) -> dict[str, float]:
        """Round layers that do not depend on each other; return how much error is left of each."""
        assert context.reference is not None
        names = float_results(stage, context.reference) if self.follow else {}
        feeds = islice(context.samples, self.samples)
        found = second_moments(model, simulator, stage, feeds, context.reference, names)
        rounded = [
            RoundedLayer(
                rows, context.float_weights[str(rows.group.w.codes.name)], moments, self.follow
            )
            for rows, moments in zip(stage, found, strict=True)
        ]
        problems = [layer.rounding(self.damping) for layer in rounded]
        quiet = replace(context, progress=silent)  # told by layers, not within one
        tasks = rounding_tasks(
            problems,
            [layer.fixed for layer in rounded],
            method=self.method,
            refit=self.refit,
            iterations=self.iterations,
        )
        results = gather(problems, run_tasks(round_outputs, tasks, quiet, "round weights"))
        left = {}
        for layer, result in zip(rounded, results, strict=True):
            layer.write(result["base"], result["scale"])
            simulator.refresh(layer.rows.group.node)
            before, after = result["error"].sum((1, 2))
            left[str(layer.rows.group.node.name)] = float(after / before) if before > 0 else 1.0
        return left


def _stages(
    model: ir.Model, layers: Sequence[LinearRows], limit: int
) -> Iterator[Sequence[LinearRows]]:
    """Yield layers in order, those together that no other of them leads to and that fit memory."""
    by_node = {rows.group.node: rows for rows in layers}
    depth: dict[ir.Value, int] = {}
    levels: dict[int, list[LinearRows]] = {}
    for node in model.graph:
        level = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        if node in by_node:
            levels.setdefault(level, []).append(by_node[node])
            level += 1
        depth.update(dict.fromkeys(node.outputs, level))
    for level in sorted(levels):
        part: list[LinearRows] = []
        for rows in levels[level]:
            if part and sum(map(moment_bytes, (*part, rows))) > limit:
                yield part
                part = []
            part.append(rows)
        yield part


def _summary(method: str, left: dict[str, float]) -> str:
    mean = float(np.exp(np.mean(np.log(np.maximum(list(left.values()), 1e-9)))))
    least, most = max(left, key=left.__getitem__), min(left, key=left.__getitem__)
    return (
        f"{len(left)} layers by {method}: {mean:.2f} of the squared error of nearest codes is left"
        f" (geometric mean; {left[most]:.2f} of {most} to {left[least]:.2f} of {least})"
    )
