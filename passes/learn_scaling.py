"""Learn a factor for each input channel of linear ops, so that both sides of a product round well.

before:  y = Conv(v, w)
after:   y = Conv(Mul(v, 1 / t), w * t)                       one t > 0 for each input channel

A channel with a few large values makes the steps of all others coarse. Divided by its t it does
not, and its weights, times t, pay: what is best for both depends on what the layer makes of them,
and is learned layer by layer (`edgeq.learning.scaling`), from closed forms in powers of the largest
magnitudes of activations and weights (SmoothQuant, cross-layer equalization). With `iterations=0`
the best closed form is taken, and torch is not needed. All readers of a value share its factors.

Where a linear op makes `v`, its weights take the factors; elsewhere `fold-channel-scales` takes the
Mul into the QuantizeLinear behind it: neither costs anything at run time. Values that integer
kernels make as codes for others as well are left alone, and counted in a note. So are values of
which calibration shows few elements: their largest ones are beyond those that were seen.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import find_buckets
from edgeq.channel_noise import (
    activation_qparams,
    activation_spec,
    layer_noise,
    rounded_weight,
)
from edgeq.channel_samples import Budget, Rows, sampled_rows
from edgeq.channel_shifts import VOTERS, as_samples, held_out, split
from edgeq.channel_sites import Site, find_sites, scale_channels
from edgeq.data import input_specs
from edgeq.errors import RecipeError
from edgeq.graph import Editor, constant, int_attribute, ints_attribute, string_attribute
from edgeq.passing import Context, Pass
from edgeq.tasks import run_tasks

Array = NDArray[Any]
Float64 = NDArray[np.float64]
ENOUGH = 1024  # elements of each channel: see `_is_enough`
TOGETHER = 32  # values whose rows are in memory at a time
# Powers of the largest magnitudes of a channel, and of its weights: 1 / t is in between.
POWERS = ((0.0, 0.0), (0.5, 0.5), (0.25, 0.25), (0.5, 0.0), (0.25, 0.0), (0.0, 0.25))


@dataclass(frozen=True)
class LearnScaling(Pass):
    """Learn factors and apply them.

    Attributes:
        iterations: Steps of Adam for each value; 0: the best closed form.
        rate: Of learning, for logarithms of factors; it falls to 0 along a cosine.
        batch: Images in one step, or groups of 64 tokens.
        exponent: How strongly timesteps with large losses count less.
        gain_db: The least gain in squared error for which a value is changed.
        samples: At most so many calibration samples take part.
    """

    iterations: int = 200
    rate: float = 0.01
    batch: int = 8
    exponent: float = 20.0
    gain_db: float = 0.1
    samples: int = 128

    def __post_init__(self) -> None:
        """Hold the options against what there is.

        Raises:
            RecipeError: One of them is out of range.
        """
        if self.iterations < 0 or self.batch < 1 or self.samples < 1 or self.rate <= 0:
            text = "iterations is at least 0, batch and samples at least 1, rate above 0"
            raise RecipeError(f"pass {self.name()}: {text}")

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many values were scaled.

        Raises:
            RecipeError: torch is missing.
        """
        sites, refused = find_sites(model, context)
        if not sites:
            return 0
        by_name = {site.name: site for site in sites}
        rows = sampled_rows(
            model,
            context.samples,
            list(by_name),
            budget=Budget(samples=self.samples),
            buckets=find_buckets(input_specs(model, input_ranges=context.input_ranges)),
            seed=context.seed,
        )
        factors: dict[str, Float64] = {}
        choose = self._learned if self.iterations else self._closed
        while group := list(itertools.islice(rows, TOGETHER)):
            enough = [(name, found) for name, found in group if _is_enough(found)]
            factors |= choose({name: (by_name[name], found) for name, found in enough}, context)
        editor = Editor(model.graph)
        for name, found in factors.items():
            scale_channels(by_name[name], found, editor, context)
        self._note(len(factors), len(sites), refused, context)
        return len(factors)

    def _note(self, done: int, count: int, refused: int, context: Context) -> None:
        text = f"{done} of {count} values have factors by channel"
        if refused:
            text += f"; {refused} more are codes of a fused kernel, and are left alone"
        context.notes.append((self.name(), text))

    def _closed(self, group: dict[str, tuple[Site, Rows]], context: Context) -> dict[str, Float64]:
        """Return the closed form with the least noise of each value that gains by one."""
        chosen = {}
        for name, (site, rows) in group.items():
            seen, unseen = split(as_samples(rows.x))
            spec = activation_spec(site.value, context)
            costs = []
            candidates = list(closed_forms(site, seen))
            for factors in candidates:
                scaled = (seen / factors[:, None]).astype(np.float32)
                qparams = activation_qparams(scaled, spec, context)
                costs.append(layer_noise(site, unseen, qparams, context, factors=factors).total)
            best = int(np.argmin(costs))
            if costs[best] * 10 ** (self.gain_db / 10) < costs[0]:
                chosen[name] = candidates[best]
        return chosen

    def _learned(self, group: dict[str, tuple[Site, Rows]], context: Context) -> dict[str, Float64]:
        try:
            from edgeq.learning.scaling import learn_factors
        except ImportError as error:
            raise RecipeError(
                f"pass {self.name()} needs torch ({error}): pip install edgeq[torch], or take the"
                " best closed form with iterations=0"
            ) from None
        able = {name: pair for name, pair in group.items() if all(map(_geometry, pair[0].readers))}
        tasks = [self._task(site, rows, context) for site, rows in able.values()]
        results = run_tasks(learn_factors, tasks, context, "learn factors of channels")
        chosen = self._closed({n: pair for n, pair in group.items() if n not in able}, context)
        for name, result in zip(able, results, strict=True):
            before, _, after = result["losses"]
            if after * 10 ** (self.gain_db / 10) < before:
                chosen[name] = result["factors"]
        return chosen

    def _task(self, site: Site, rows: Rows, context: Context) -> dict[str, Array]:
        """Return what `learn_factors` takes."""
        samples = as_samples(rows.x)
        spec = activation_spec(site.value, context)
        qparams = activation_qparams(samples, spec, context)
        low, high = min(float(samples.min()), 0.0), max(float(samples.max()), 0.0)
        reach = 2 * max(-low, high) if spec.symmetric else high - low
        first, last = qparams.qtype.qmin, qparams.qtype.qmax
        task: dict[str, Array] = {
            "x": rows.x,
            "buckets": rows.bucket,
            "apart": held_out(len(rows.x), VOTERS if rows.x.ndim == 2 else 1),
            "codes": np.array([first, last]),
            "symmetric": np.array(spec.symmetric),
            "shrink": np.array(min(1.0, float(qparams.scale) * (last - first) / (reach or 1.0))),
            "start": np.stack(list(closed_forms(site, samples))),
            "readers": np.array(len(site.readers)),
            "iterations": np.array(self.iterations),
            "rate": np.array(self.rate),
            "batch": np.array(self.batch * (VOTERS if rows.x.ndim == 2 else 1)),
            "exponent": np.array(self.exponent),
            "seed": np.array(context.seed),
            "device": np.array(context.device),
        }
        for place, node in enumerate(site.readers):
            weight = constant(node.inputs[1])
            assert weight is not None
            made = rounded_weight(node, weight, qparams, context)
            if node.op_type == "Gemm" and not int_attribute(node, "transB", 0):
                weight = np.ascontiguousarray(weight.T)
            grid = made.grid
            peak = np.abs(weight).reshape(made.scale.size, -1).max(1)
            shrink = made.scale.reshape(-1) * grid[-1] / np.maximum(peak, np.finfo(np.float32).tiny)
            geometry = _geometry(node)
            assert geometry is not None
            task |= {
                f"weight_{place}": weight,
                f"geometry_{place}": np.array(geometry),
                f"grid_{place}": grid,
                f"shrink_{place}": np.where(peak > 0, shrink, 1),
            }
        return task


def _is_enough(rows: Rows) -> bool:
    """Whether so many elements of a channel were seen that others will hardly lie beyond them."""
    return bool(rows.x.size // rows.x.shape[1] >= ENOUGH)


def closed_forms(site: Site, samples: NDArray[np.float32]) -> Iterator[Float64]:
    """Yield candidates for the factors, with a geometric mean of 1; the first are all 1."""
    x = np.abs(samples).max(axis=(0, 2)).astype(np.float64)
    w = np.max([_column_max(node, len(x)) for node in site.readers], axis=0)
    x, w = (np.maximum(m, max(m.max(), 1e-30) * 2.0**-10) for m in (x, w))
    for of_x, of_w in POWERS:
        factors = x**of_x / w**of_w
        yield factors / np.exp(np.log(factors).mean())


def _column_max(node: ir.Node, channels: int) -> Float64:
    """Return the largest magnitude among the weights of each input channel."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Gemm":
        peak = np.abs(weight).max(0 if int_attribute(node, "transB", 0) else 1)
        return np.asarray(peak, np.float64)
    group = int_attribute(node, "group", 1)
    grouped = np.abs(weight).reshape(group, -1, weight.shape[1], *weight.shape[2:])
    axes = (1, *range(3, grouped.ndim))
    return np.asarray(grouped.max(axes).reshape(channels), np.float64)


def _geometry(node: ir.Node) -> tuple[int, ...] | None:
    """Return strides, dilations, pads and groups; None where they depend on the input."""
    weight = constant(node.inputs[1])
    assert weight is not None
    space = weight.ndim - 2
    if node.op_type == "Gemm":
        return (1,)
    if string_attribute(node, "auto_pad", "NOTSET") != "NOTSET" or not 1 <= space <= 3:
        return None
    ones = (1,) * space
    strides, dilations = (ints_attribute(node, k, ones) for k in ("strides", "dilations"))
    pads = ints_attribute(node, "pads", (0,) * (2 * space))
    return (*strides, *dilations, *pads, int_attribute(node, "group", 1))
