"""Correct biases for the mean error that quantization leaves in each output channel.

after:   b_q[c] += round((mean of y_float[c] - mean of y_quantized[c]) / (sx * sw[c]))

Rounding weights and clipping activations shifts the mean of a channel; the shift is measured on
calibration samples and taken out of the int32 bias, which costs nothing at run time (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2). Layers
are corrected in graph order, each with the inputs that the corrected layers in front of it make:
all samples in use go through the simulator in lockstep.

A layer without a bias gets one. The number of samples in use is bounded by memory, not by the
calibration set.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.calibrate import calibrate
from edgeq.graph import Editor, int_attribute
from edgeq.numerics.qtype import INT32
from edgeq.operators.step import Step
from edgeq.passing import Context, Pass
from edgeq.qdq import REAL_NAME, LinearGroup, linear_group
from edgeq.simulate import Simulator

Array = NDArray[Any]
_BIAS_LIMIT = 2**30


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Correct the biases of integer Conv and Gemm nodes.

    Attributes:
        samples: At most so many calibration samples take part.
        megabytes: Memory for the codes of all samples at any one point of the graph.
    """

    samples: int = 64
    megabytes: int = 128

    def run(self, model: ir.Model, context: Context) -> int:
        """Change bias initializers; return in how many layers."""
        assert context.reference is not None, "correct-bias compares with the float model"
        editor = Editor(model.graph)
        nodes = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
        groups = [g for node in nodes if (g := _with_bias(node, editor)) is not None]
        if not groups:
            return 0
        simulator = Simulator(model)
        feeds = list(islice(context.samples, self._count(simulator, context)))
        means = _float_means(context, groups, feeds)
        return _Lockstep(simulator, feeds).correct(groups, means)

    def _count(self, simulator: Simulator, context: Context) -> int:
        """Return how many samples fit: judged by the largest values of the first one."""
        largest = simulator.largest(next(iter(context.samples)))
        return max(1, min(self.samples, self.megabytes * 2**20 // max(largest, 1)))


def _with_bias(node: ir.Node, editor: Editor) -> LinearGroup | None:
    """Return the integer group of `node`; one without a bias gets one of zeros."""
    group = linear_group(node)
    if group is None or group.bias is not None:
        return group
    weight = group.w.array
    if weight is None:
        return None
    axis = 1 if node.op_type == "Gemm" and not int_attribute(node, "transB", 0) else 0
    scale = np.asarray(group.x.qparams.scale * group.w.qparams.scale, np.float32)
    name = node.outputs[0].name
    codes = np.zeros(weight.shape[axis], np.int32)
    parts = (("q", codes), ("scale", scale), ("zero_point", np.zeros(scale.shape, np.int32)))
    bias = editor.node(
        "DequantizeLinear",
        [editor.initializer(f"{name}_bias_{part}", array) for part, array in parts],
        f"{name}_bias_dq",
        attributes={"axis": 0} if scale.ndim else {},
        dtype=ir.DataType.FLOAT,
        shape=codes.shape,
    )
    editor.insert_before(node, [bias])
    node.resize_inputs(3)
    node.replace_input_with(2, bias)
    return linear_group(node)


def _float_means(
    context: Context, groups: list[LinearGroup], feeds: list[dict[str, Array]]
) -> dict[str, NDArray[np.float64]]:
    """Return the per-channel means of the float model's values, by the linear op's output name."""
    assert context.reference is not None
    known = {str(v.name) for node in context.reference.graph for v in node.outputs}
    names: dict[str, str] = {}
    for group in groups:
        name = str(group.node.outputs[0].name)
        # The name of an output of the model went to what is behind the codes.
        real = name if name in known else group.output.metadata_props.get(REAL_NAME, "")
        if real in known:
            names[name] = real
    seen = context.calibration
    if seen is None or seen.samples != len(feeds):
        seen = calibrate(context.reference, feeds, list(names.values()))
    statistics = seen.statistics
    return {name: statistics[real].channel_mean for name, real in names.items()}


class _Lockstep:
    """All samples at the same point of the graph."""

    def __init__(self, simulator: Simulator, feeds: list[dict[str, Array]]) -> None:
        self.simulator = simulator
        self.environments = [dict(feed) for feed in feeds]

    def correct(self, groups: list[LinearGroup], means: dict[str, NDArray[np.float64]]) -> int:
        by_node = {g.node: g for g in groups}
        readers = Counter(name for step in self.simulator.steps for name in step.inputs)
        corrected = position = 0
        while position < len(self.simulator.steps):
            step = self.simulator.steps[position]
            group = by_node.get(step.node)
            name = str(step.node.outputs[0].name)
            if group is not None and name in means:
                corrected += self._correct(group, means[name])
                step = self.simulator.steps[position]
            for env in self.environments:
                step.execute(env)
            self._forget(step, readers)
            position += 1
        return corrected

    def _forget(self, step: Step, readers: Counter[str]) -> None:
        """Drop values that no later step reads."""
        readers.subtract(step.inputs)
        for env in self.environments:
            for name in (*step.inputs, *step.outputs):
                if readers[name] <= 0:
                    env.pop(name, None)

    def _correct(self, group: LinearGroup, wanted: NDArray[np.float64]) -> bool:
        total, count = np.zeros(len(wanted)), 0
        for real in self._reals(group):
            axes = tuple(a for a in range(real.ndim) if a != 1)
            total += real.sum(axis=axes, dtype=np.float64)
            count += real.size // real.shape[1]
        assert group.bias is not None and count
        scale = np.asarray(group.bias.qparams.scale, np.float64)
        shift = np.rint((wanted - total / count) / scale).astype(np.int64)
        old = group.bias.array
        assert old is not None
        new = np.clip(old + shift, -_BIAS_LIMIT, _BIAS_LIMIT).astype(INT32.dtype)
        if np.array_equal(new, old):
            return False
        tensor = ir.tensor(new, name=group.bias.codes.name)
        group.bias.codes.const_value = tensor
        self.simulator.refresh(group.node)
        return True

    def _reals(self, group: LinearGroup) -> Iterator[Array]:
        """Yield, per sample, the group's result before it is quantized."""
        step = self.simulator.real_step(group.node)
        name = step.outputs[0]
        for env in self.environments:
            local = {key: env[key] for key in step.inputs}
            step.execute(local)
            yield local[name]
