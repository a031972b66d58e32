"""Correct biases for the mean error that quantization leaves in each output channel.

after:   b_q[c] += round((mean of y_float[c] - mean of y_quantized[c]) / (sx * sw[c]))

Rounding weights and clipping activations shifts the mean of a channel; the shift is measured on
calibration samples and taken out of the int32 bias, which costs nothing at run time (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2). Layers
are corrected in graph order, each with the inputs that the corrected layers in front of it make:
all samples in use go through the simulator in lockstep.

With `cause=weights` only what rounding the layer's own weights shifts is taken out,

         b_q[c] += round(sum over inputs of (w - w_q * sw[c]) * (mean of x) / (sx * sw[c]))

and not what the layers in front did; it is added once, for a second run would add it again. With
8-bit weights both are as good. With 4-bit ones the errors of the layers in front are large, and to
force the means back makes it worse: resnet20 with all weights in int4 (the recipe w4a8) has 7.3 dB
with `cause=all`, 10.0 dB uncorrected, and 12.0 dB with `cause=weights`.

A layer without a bias gets one. The number of samples in use is bounded by memory, not by the
calibration set.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.calibrate import calibrate
from edgeq.errors import RecipeError
from edgeq.graph import Editor, int_attribute
from edgeq.linear_weights import output_axis
from edgeq.numerics.qtype import INT32
from edgeq.operators.step import Step
from edgeq.passing import Context, Pass
from edgeq.qdq import REAL_NAME, LinearGroup, linear_group
from edgeq.simulate import Simulator

Array = NDArray[Any]
Float64 = NDArray[np.float64]
CAUSES = ("all", "weights")
_BIAS_LIMIT = 2**30


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Correct the biases of integer Conv and Gemm nodes.

    Attributes:
        samples: At most so many calibration samples take part.
        megabytes: Memory for the codes of all samples at any one point of the graph.
        cause: What of the shift is corrected: `all` of it, or what the layer's `weights` make.
    """

    samples: int = 64
    megabytes: int = 128
    cause: str = "all"

    def __post_init__(self) -> None:
        """Refuse a cause that there is not.

        Raises:
            RecipeError: It is none.
        """
        if self.cause not in CAUSES:
            raise RecipeError(f"correct-bias: cause is {self.cause!r}; one of {', '.join(CAUSES)}")

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
        if self.cause == "weights":
            errors = _weight_errors(context, groups)
            return _Lockstep(simulator, feeds).correct(groups, errors, _own_shift)
        means = _float_means(context, groups, feeds)
        return _Lockstep(simulator, feeds).correct(groups, means, _shift)

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
) -> dict[str, Float64]:
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


def _weight_errors(context: Context, groups: list[LinearGroup]) -> dict[str, Float64]:
    """Return what rounding took from each weight, (outputs, inputs), by the linear op's output."""
    errors = {}
    for group in groups:
        source, codes = context.float_weights.get(str(group.w.codes.name)), group.w.array
        if source is None or codes is None:
            continue
        error = source.weight.astype(np.float64) - group.w.qparams.dequantize(codes)
        axis = output_axis(group.node, error.ndim)
        assert axis is not None
        rows = np.moveaxis(error, axis, 0)
        errors[str(group.node.outputs[0].name)] = rows.reshape(*rows.shape[:2], -1).sum(2)
    return errors


def _shift(samples: "_Lockstep", group: LinearGroup, wanted: Float64) -> Float64:
    """Return what the mean of each channel lacks."""
    return wanted - _channel_means(samples.reals(group))


def _own_shift(samples: "_Lockstep", group: LinearGroup, error: Float64) -> Float64:
    """Return what rounding the weights took from the mean of each channel."""
    name, x = str(group.x.codes.name), group.x.qparams
    mean = _channel_means(x.dequantize(env[name]) for env in samples.environments)
    blocks = mean.reshape(int_attribute(group.node, "group", 1), -1)
    return np.asarray((error * np.repeat(blocks, len(error) // len(blocks), axis=0)).sum(1))


def _channel_means(arrays: Iterable[Array]) -> Float64:
    """Return the mean of each channel, axis 1, over all arrays."""
    total, count = np.zeros(1), 0
    for array in arrays:
        axes = tuple(a for a in range(array.ndim) if a != 1)
        total = total + array.sum(axis=axes, dtype=np.float64)
        count += array.size // array.shape[1]
    assert count
    return np.asarray(total / count)


class _Lockstep:
    """All samples at the same point of the graph."""

    def __init__(self, simulator: Simulator, feeds: list[dict[str, Array]]) -> None:
        self.simulator = simulator
        self.environments = [dict(feed) for feed in feeds]

    def correct(self, groups: list[LinearGroup], known: dict[str, Float64], shift: "_Shift") -> int:
        """Add `shift(samples, group, known[name])` to the bias of each group that is known."""
        by_node = {g.node: g for g in groups}
        readers = Counter(name for step in self.simulator.steps for name in step.inputs)
        corrected = position = 0
        while position < len(self.simulator.steps):
            step = self.simulator.steps[position]
            group = by_node.get(step.node)
            name = str(step.node.outputs[0].name)
            if group is not None and name in known:
                corrected += self._correct(group, shift(self, group, known[name]))
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

    def _correct(self, group: LinearGroup, shift: NDArray[np.float64]) -> bool:
        assert group.bias is not None
        scale = np.asarray(group.bias.qparams.scale, np.float64)
        steps = np.rint(shift / scale).astype(np.int64)
        old = group.bias.array
        assert old is not None
        new = np.clip(old + steps, -_BIAS_LIMIT, _BIAS_LIMIT).astype(INT32.dtype)
        if np.array_equal(new, old):
            return False
        tensor = ir.tensor(new, name=group.bias.codes.name)
        group.bias.codes.const_value = tensor
        self.simulator.refresh(group.node)
        return True

    def reals(self, group: LinearGroup) -> Iterator[Array]:
        """Yield, per sample, the group's result before it is quantized."""
        step = self.simulator.real_step(group.node)
        name = step.outputs[0]
        for env in self.environments:
            local = {key: env[key] for key in step.inputs}
            step.execute(local)
            yield local[name]


_Shift = Callable[[_Lockstep, LinearGroup, Float64], Float64]
