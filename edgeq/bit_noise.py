"""What rounding one layer alone does to the outputs of the float model.

before:  y = Conv(x, w)
after:   y = Conv(Where(rounded, DequantizeLinear(Min(QuantizeLinear(x, s, z), last), s, z), x), w')

with w', s, z, last and rounded as inputs: one session tries all formats of the layer. Everything
else stays float32, so that what is measured is what this layer costs.

    mse = mean over the outputs of  |y' - y|^2 / |y|^2          (noise power over signal power)
    kl  = mean over rows of  KL(softmax(y) || softmax(y'))      (over the last axis: classes)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import Editor, clone, remove_dead, to_bytes
from edgeq.numerics.affine import QParams
from edgeq.runtime import make_session, run

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Float32 = NDArray[np.float32]
LOSSES = ("mse", "kl")

_PREFIX = "edgeq."  # of the inputs that say how the layer is rounded
_FEED, REAL = "feed", "real"  # arrays of a task: `feed/0/image`, `real/0/logits`
_LEAST = 1e-30


@dataclass(frozen=True, eq=False)
class Trial:
    """A way to round a layer.

    Attributes:
        weight: Which of the rounded weights it multiplies with; None: the float ones.
        x: Parameters of uint8 codes of what it reads; None: it reads reals.
    """

    weight: int | None
    x: QParams | None


def noise_task(
    model: ir.Model,
    weights: Sequence[Float32],
    biases: Sequence[Float32] | None,
    operands: Collection[tuple[str, int]],
    reads: Collection[tuple[str, int]],
    trials: Sequence[Trial],
    runs: Arrays,
) -> dict[str, Array]:
    """Return the arrays that `layer_noise` takes.

    Args:
        model: The float model; not changed.
        weights: Of the layer: the float ones, then the rounded ones that trials count from 0; none
            where only what is read is rounded.
        biases: As many, (channels,), of the first of `operands`; None: it keeps its own.
        operands: Inputs of nodes that hold them: (name of the node, index).
        reads: Inputs of nodes that read what is to be rounded, of one value or of several.
        trials: What to try.
        runs: From `float_runs`.
    """
    own = biases is None
    return {
        "model": np.frombuffer(to_bytes(_with_inputs(model, operands, reads, own)), np.uint8),
        **({"weights": np.stack(weights)} if weights else {}),
        "variant": np.array([0 if t.weight is None else 1 + t.weight for t in trials], np.int64),
        "rounded": np.array([t.x is not None for t in trials]),
        "scale": np.array([1.0 if t.x is None else t.x.scale for t in trials], np.float32),
        "zero_point": np.array([0 if t.x is None else t.x.zero_point for t in trials], np.uint8),
        "last": np.array([255 if t.x is None else t.x.qtype.qmax for t in trials], np.uint8),
        **({} if biases is None else {"biases": np.stack(biases)}),
        **runs,
    }


def with_constants(model: ir.Model, constants: Mapping[tuple[str, int], Float32]) -> ir.Model:
    """Return the model with other constants.

    Args:
        model: Not changed.
        constants: By (name of the node, index of its input), which need not be there.
    """
    model = clone(model)
    editor = Editor(model.graph)
    nodes = {str(node.name): node for node in model.graph}
    made: dict[int, ir.Value] = {}
    for (name, index), array in constants.items():
        node = nodes[name]
        if id(array) not in made:  # one for all that hold it
            made[id(array)] = editor.initializer(f"{name}_constant", array)
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, made[id(array)])
    remove_dead(model.graph)
    return model


def float_runs(model: ir.Model, feeds: Sequence[Arrays]) -> dict[str, Array]:
    """Return feeds, and what the float model makes of them, as arrays of a task."""
    session = make_session(model)
    real = {str(v.name) for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT}
    arrays: dict[str, Array] = {}
    for place, feed in enumerate(feeds):
        arrays |= {f"{_FEED}/{place}/{name}": array for name, array in feed.items()}
        found = run(session, feed)
        arrays |= {f"{REAL}/{place}/{n}": array for n, array in found.items() if n in real}
    return arrays


def layer_noise(task: Arrays) -> dict[str, Array]:
    """Return `mse` and `kl` of each trial, float64 (trials,)."""
    session = make_session(task["model"].tobytes())
    count = len(task["variant"])
    meters = [_Meter() for _ in range(count)]
    feeds, reals = _places(task, _FEED), _places(task, REAL)
    known = {str(given.name) for given in session.get_inputs()}
    for feed, real in zip(feeds, reals, strict=True):
        for number in range(count):
            variant = task["variant"][number]
            settings = {
                **({"weight": task["weights"][variant]} if "weights" in task else {}),
                **({"bias": task["biases"][variant]} if "biases" in task else {}),
                **{n: task[n][number] for n in ("rounded", "scale", "zero_point", "last")},
            }
            given = {f"{_PREFIX}{n}": np.asarray(a) for n, a in settings.items()}
            found = run(session, feed | {n: a for n, a in given.items() if n in known})
            meters[number].add(real, found)
    return {
        "mse": np.array([meter.error() for meter in meters]),
        "kl": np.array([meter.divergence() for meter in meters]),
    }


def _places(task: Arrays, kind: str) -> list[dict[str, Array]]:
    """Return the arrays of each sample by name."""
    found: dict[int, dict[str, Array]] = {}
    for key, array in task.items():
        word, _, rest = key.partition("/")
        if word == kind and rest:
            place, _, name = rest.partition("/")
            found.setdefault(int(place), {})[name] = array
    return [found[place] for place in sorted(found)]


class _Meter:
    """Sums over samples, by output."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._divergence, self._rows = 0.0, 0

    def add(self, real: Arrays, found: Arrays) -> None:
        """Take in one sample's outputs."""
        for name, array in real.items():
            wide, other = array.astype(np.float64), found[name].astype(np.float64)
            self._signal[name] = self._signal.get(name, 0.0) + float(np.square(wide).sum())
            noise = float(np.square(other - wide).sum())
            self._noise[name] = self._noise.get(name, 0.0) + noise
            if wide.ndim and wide.size:
                p, q = _log_softmax(wide), _log_softmax(other)
                self._divergence += float((np.exp(p) * (p - q)).sum())
                self._rows += wide.size // wide.shape[-1]

    def error(self) -> float:
        """Return the mean over the outputs of noise power over signal power."""
        shares = [self._noise[n] / max(self._signal[n], _LEAST) for n in self._signal]
        return sum(shares) / max(1, len(shares))

    def divergence(self) -> float:
        """Return the mean over the rows of the Kullback-Leibler divergence, in nats."""
        return max(self._divergence, 0.0) / max(1, self._rows)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _with_inputs(
    model: ir.Model,
    operands: Collection[tuple[str, int]],
    reads: Collection[tuple[str, int]],
    own_bias: bool,
) -> ir.Model:
    """Return the model with the layer's constants, and how its codes are, as inputs."""
    model = clone(model)
    nodes = {str(node.name): node for node in model.graph}
    held = [(nodes[name], index) for name, index in operands]
    if held:
        first, index = held[0]
        old = first.inputs[index]
        assert old is not None
        weight = _input(model.graph, "weight", ir.DataType.FLOAT, old.shape)
        for node, index in held:
            node.replace_input_with(index, weight)
    if not own_bias:
        node, _ = held[0]
        bias = _input(model.graph, "bias", ir.DataType.FLOAT, ir.Shape(["channels"]))
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)
    if reads:
        _round_reads(model.graph, [(nodes[name], index) for name, index in reads])
    remove_dead(model.graph)
    return model


def _round_reads(graph: ir.Graph, reads: Sequence[tuple[ir.Node, int]]) -> None:
    """Let `reads` read rounded values where the input `rounded` says so."""
    scale = _input(graph, "scale", ir.DataType.FLOAT)
    zero_point, last = (_input(graph, n, ir.DataType.UINT8) for n in ("zero_point", "last"))
    rounded = _input(graph, "rounded", ir.DataType.BOOL)
    editor, chosen = Editor(graph), dict[ir.Value, ir.Value]()
    for node, index in reads:
        x = node.inputs[index]
        assert x is not None
        if x not in chosen:
            codes = editor.node("QuantizeLinear", [x, scale, zero_point], f"{x.name}_codes")
            limited = editor.node("Min", [codes, last], f"{x.name}_limited")
            real = editor.node("DequantizeLinear", [limited, scale, zero_point], f"{x.name}_real")
            chosen[x] = editor.node("Where", [rounded, real, x], f"{x.name}_chosen")
            made, maker = [codes, limited, real, chosen[x]], x.producer()
            if maker is None:
                editor.insert_first(made)
            else:
                editor.insert_after(maker, made)
        node.replace_input_with(index, chosen[x])


def _input(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: ir.Shape | None = None
) -> ir.Value:
    value = ir.Value(
        name=f"{_PREFIX}{name}", type=ir.TensorType(dtype), shape=shape or ir.Shape(())
    )
    graph.inputs.append(value)
    return value
