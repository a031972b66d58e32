"""Learned equivalent scaling: one factor for each input channel of linear ops.

After Lee et al. 2025, "DMQ: Dissecting Outliers of Diffusion Models for Post-Training
Quantization", and its published code. With Y the result of a linear op,

    Y = (X / t) (t * W)          loss_i = |f(X_i, W) - f(Q(X_i / t), Q(W * t))|^2

summed over channels and averaged over space, for the sample i. Activations are rounded per tensor,
weights per output channel, with ranges that follow t in each step; rounding is straight-through.
Losses of a diffusion model's timesteps differ by orders of magnitude. With L the running sums of
the losses by bucket of timesteps (momentum 0.95), sample i counts

    (1 - L[bucket of i] / sum L) ** exponent

so that no bucket rules. Without timesteps every sample counts 1. Factors are learned as logarithms:
they stay positive, and halving costs as many steps as doubling.

Factors that are learned on some rows bring the largest value of each channel there to the ends of
the range, and cut off what other rows have beyond. So rows that are kept apart decide how far to go
from 1 towards what was learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgeq.learning.straight_through import round_half_even, saturate

Arrays = Mapping[str, NDArray[Any]]
MOMENTUM = 0.95
PARTS = (1.0, 0.75, 0.5, 0.25)  # of the way, in the logarithm
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, eq=False)
class _Reader:
    """One linear op.

    Attributes:
        weight: (outputs, inputs / groups, ...); of a Gemm without spatial axes.
        geometry: Strides, dilations, pads at the begin, pads at the end, each as long as there are
            spatial axes; and the number of groups.
        grid: The codes that a weight may have, ascending.
        shrink: (outputs,) or (1,): the range that codes cover, over the largest magnitude.
    """

    weight: Tensor
    geometry: tuple[int, ...]
    grid: Tensor
    shrink: Tensor

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the result without bias, (samples, outputs, ...)."""
        space = weight.ndim - 2
        if not space:
            return F.linear(x, weight)
        strides, dilations, begin, end = (
            self.geometry[i * space : (i + 1) * space] for i in range(4)
        )
        pads = [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]
        if any(pads):
            x = F.pad(x, pads)
        return CONVOLUTIONS[space](
            x, weight, stride=strides, dilation=dilations, groups=self.geometry[-1]
        )

    def rounded(self, factors: Tensor) -> Tensor:
        """Return the weights times the factors of their inputs, rounded to codes times scales."""
        weight = self.weight * self.by_input(factors)
        rows = weight.flatten(1).abs()
        if len(self.shrink) == 1:
            rows = rows.flatten()[None]
        peak = rows.amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        scale = (peak * self.shrink / self.grid[-1]).reshape(-1, *(1,) * (weight.ndim - 1))
        units = saturate(weight / scale, self.grid[0].item(), self.grid[-1].item())
        middles = (self.grid[1:] + self.grid[:-1]) / 2
        codes = self.grid[torch.bucketize(units.detach(), middles)]
        return (units + (codes - units).detach()) * scale

    def by_input(self, factors: Tensor) -> Tensor:
        """Return factors in a shape that broadcasts against the weight."""
        ones = (1,) * (self.weight.ndim - 2)
        group = self.geometry[-1]
        if group == 1:
            return factors.reshape(1, -1, *ones)
        outputs, inputs = self.weight.shape[:2]
        by_group = factors.reshape(group, 1, inputs).expand(group, outputs // group, inputs)
        return by_group.reshape(outputs, inputs, *ones)


@dataclass(frozen=True, eq=False)
class _Layer:
    """What reads one value, and how the value is rounded.

    Attributes:
        x: (samples, channels, ...).
        buckets: (samples,): -1 where it is not known.
        low: (channels,): the least element that was seen.
        high: (channels,): the greatest.
        codes: The least and the greatest code.
        symmetric: Whether real 0 lies in the middle of the codes.
        shrink: The range that codes cover, over the range of all elements.
        readers: At least one.
    """

    x: Tensor
    buckets: Tensor
    low: Tensor
    high: Tensor
    codes: tuple[float, float]
    symmetric: bool
    shrink: float
    readers: tuple[_Reader, ...]

    def rounded(self, x: Tensor, factors: Tensor) -> Tensor:
        """Return `x / factors` rounded to codes times a scale."""
        low = (self.low / factors).amin().clamp_max(0) * self.shrink
        high = (self.high / factors).amax().clamp_min(0) * self.shrink
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        first, last = self.codes
        scale = ((high - low) / (last - first)).clamp_min(torch.finfo(torch.float32).tiny)
        zero = round_half_even(first - low / scale)
        along = factors.reshape(-1, *(1,) * (x.ndim - 2))
        units = round_half_even(x / along / scale)
        return saturate(units, (first - zero).detach(), (last - zero).detach()) * scale

    def losses(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return the loss of each of some samples."""
        x = self.x[rows]
        rounded = self.rounded(x, factors)
        total = torch.zeros(len(x), device=x.device)
        for reader in self.readers:
            with torch.no_grad():
                wanted = reader(x, reader.weight)
            error = (reader(rounded, reader.rounded(factors)) - wanted).square()
            total = total + error.reshape(*error.shape[:2], -1).mean(2).sum(1)
        return total


def learn_factors(task: Arrays) -> dict[str, NDArray[Any]]:
    """Learn the factors of one value.

    Args:
        task: The fields of a layer (`x`, `buckets`, which rows are `apart`, `codes`, `symmetric`,
            `shrink`), of each of its `readers` (`weight_0`, `geometry_0`, `grid_0`, `shrink_0`,
            ...), and the options: `start` (candidates, channels), `iterations`, `rate`, `batch`,
            `exponent`, `seed`, `device`.

    Returns:
        `factors`, float64, (channels,); and `losses`, on the rows kept apart: with factors of 1,
        with the best candidate, and with `factors`.
    """
    layer, apart = _layers(task)
    candidates = list(torch.tensor(task["start"], dtype=torch.float32, device=layer.x.device))
    batch = int(task["batch"])

    def best(tried: list[Tensor]) -> tuple[float, Tensor]:
        losses = [_mean_loss(apart, factors, batch) for factors in tried]
        place = int(np.argmin(losses))
        return losses[place], tried[place]

    plain, _ = best([torch.ones_like(candidates[0])])
    started, start = best(candidates)
    learned = _descend(layer, start, task)
    after, factors = best([start, *(learned**part for part in PARTS)])
    return {
        "factors": factors.cpu().numpy().astype(np.float64),
        "losses": np.array([plain, started, after]),
    }


def _layers(task: Arrays) -> tuple[_Layer, _Layer]:
    """Return the layer with the rows to learn by, and with those to judge by: both if too few."""
    device = str(task["device"])
    x, buckets = (torch.tensor(task[name], device=device) for name in ("x", "buckets"))
    apart = torch.tensor(task["apart"], device=device)
    seen = ~apart if bool(apart.any()) else torch.ones_like(apart)
    channels = x[seen].transpose(0, 1).flatten(1)
    readers = tuple(
        _Reader(
            torch.tensor(task[f"weight_{i}"], device=device),
            tuple(task[f"geometry_{i}"].tolist()),
            torch.as_tensor(task[f"grid_{i}"], dtype=torch.float32, device=device),
            torch.as_tensor(task[f"shrink_{i}"], dtype=torch.float32, device=device),
        )
        for i in range(int(task["readers"]))
    )
    first, last = task["codes"].tolist()
    layer = _Layer(
        x[seen], buckets[seen], channels.amin(1), channels.amax(1),
        (float(first), float(last)), bool(task["symmetric"]), float(task["shrink"]), readers,
    )  # fmt: skip
    if not bool(apart.any()):
        return layer, layer
    return layer, replace(layer, x=x[apart], buckets=buckets[apart])


def _mean_loss(layer: _Layer, factors: Tensor, batch: int) -> float:
    with torch.no_grad():
        parts = torch.arange(len(layer.x), device=layer.x.device).split(batch)
        return float(torch.cat([layer.losses(part, factors) for part in parts]).double().mean())


def _descend(layer: _Layer, start: Tensor, task: Arrays) -> Tensor:
    """Return factors learned by Adam, with a rate that falls to 0 along a cosine."""
    iterations, batch = int(task["iterations"]), int(task["batch"])
    if not iterations:
        return start
    logarithm = start.log().requires_grad_()
    optimizer = torch.optim.Adam([logarithm], lr=float(task["rate"]))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    count = max(1, int(layer.buckets.max()) + 1)
    running = torch.zeros(count, device=start.device)
    random = torch.Generator().manual_seed(int(task["seed"]))
    for _ in range(iterations):
        rows = torch.randperm(len(layer.x), generator=random)[:batch].to(start.device)
        losses = layer.losses(rows, logarithm.exp())
        weights = _weights(losses.detach(), layer.buckets[rows], running, float(task["exponent"]))
        optimizer.zero_grad()
        (weights * losses).mean().backward()
        optimizer.step()
        schedule.step()
    return logarithm.detach().exp()


def _weights(losses: Tensor, buckets: Tensor, running: Tensor, exponent: float) -> Tensor:
    """Return how much each sample counts, and take its loss into the running sums."""
    known = buckets >= 0
    running.mul_(MOMENTUM).index_add_(0, buckets[known], losses[known] * (1 - MOMENTUM))
    if int((running > 0).sum()) < 2:  # all in one bucket, or in none
        return torch.ones_like(losses)
    share = running[buckets.clamp_min(0)] / running.sum()
    return torch.where(known, (1 - share) ** exponent, 1.0)
