"""Normalisations between codes, written as text: what exact-normalization is tested with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.targeting import find_target

TARGET = find_target("ort-cpu")
NO_SAMPLES: Any = ()  # the pass does not look at data

LAYER = "y = LayerNormalization<axis={axis}, epsilon={epsilon}>(x, gamma, beta)"
INSTANCE = "y = InstanceNormalization<epsilon={epsilon}>(x, gamma, beta)"
GROUP = "y = GroupNormalization<num_groups={groups}, epsilon={epsilon}>(x, gamma, beta)"
# As torch exports nn.GroupNorm.
GROUP_EXPORTED = (
    "g = Reshape(x, to_groups) n = InstanceNormalization<epsilon={epsilon}>(g, ones, zeros)"
    " r = Reshape(n, from_groups) m = Mul(r, gamma) y = Add(m, beta)"
)
RMS = (
    "square = Mul(x, x2) mean = ReduceMean<keepdims=1>(square, axes) shifted = Add(mean, epsilon)"
    " root = Sqrt(shifted) unit = Div(x, root) y = Mul(unit, gamma)"
)
RMS_SHIFTED = RMS.replace("y = ", "m = ") + " y = Add(m, beta)"


@dataclass(frozen=True)
class Case:
    """One normalisation between codes.

    Attributes:
        nodes: From `x` to `y`.
        shape: Of the codes; a name stands for a size of the feeds, in `sizes`.
        parameters: The shape of gamma and beta.
        axes: Of a row.
        epsilon: Added to the variance.
        axis: Of LayerNormalization.
        groups: Of GroupNormalization.
        qtype: Of the codes of `x`.
        zero_point: Of the codes of `x`.
        scale: Of the codes of `x`.
        gamma: `random`, `ones`, `same`: one number, and beta is zero; `holes`: random, some are 0.
    """

    nodes: str
    shape: tuple[int | str, ...]
    parameters: tuple[int, ...]
    axes: tuple[int, ...] = (-1,)
    epsilon: float = 1e-5
    axis: int = -1
    groups: int = 1
    qtype: str = "uint8"
    zero_point: int = 131
    scale: float = 0.0317
    gamma: str = "random"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of the feeds."""
        named = {"B": 3, "T": 5, "H": 6, "W": 7, "?": 8}
        return tuple(named[size] if isinstance(size, str) else size for size in self.shape)

    @property
    def centered(self) -> bool:
        """Whether the mean is subtracted."""
        return self.nodes not in (RMS, RMS_SHIFTED)

    def constants(self) -> dict[str, NDArray[Any]]:
        """Return the initializers."""
        random = np.random.default_rng(3)
        gamma = np.asarray(random.normal(0.5, 1, self.parameters), np.float32)
        beta = np.asarray(random.normal(0, 0.5, self.parameters), np.float32)
        if self.gamma == "holes":
            gamma.reshape(-1)[::3] = 0
        elif self.gamma != "random":
            gamma = np.full_like(gamma, 1 if self.gamma == "ones" else -0.7)
            beta = np.zeros_like(beta)
        kind = np.dtype(self.qtype)
        return {
            "gamma": gamma,
            "beta": beta,
            "sx": np.array(self.scale, np.float32),
            "zx": np.array(self.zero_point, kind),
            "sy": np.array(0.0371, np.float32),
            "zy": np.array(117, np.uint8),
            "axes": np.array(self.axes),
            "epsilon": np.array(self.epsilon, np.float32),
            "ones": np.ones(self.groups, np.float32),
            "zeros": np.zeros(self.groups, np.float32),
            "to_groups": np.array([0, self.groups, -1]),
            "from_groups": np.array([0, *self.sizes[1:]]),
        }

    def quantized(self) -> ir.Model:
        """Return the QDQ graph."""
        nodes = self.nodes.format(axis=self.axis, epsilon=self.epsilon, groups=self.groups)
        shape = ",".join(map(str, self.shape))
        read = "x = DequantizeLinear(q, sx, zx)"
        if self.nodes == GROUP_EXPORTED:  # the Reshape moves codes
            nodes = nodes.replace("g = Reshape(x, to_groups)", "")
            read = "c = Reshape(q, to_groups) g = DequantizeLinear(c, sx, zx)"
        if not self.centered:
            read += " x2 = DequantizeLinear(q, sx, zx)"
        proto = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 21]>'
            f" g ({self.qtype}[{shape}] q) => (uint8[{shape}] p)"
            f" {{ {read} {nodes} p = QuantizeLinear(y, sy, zy) }}"
        )
        used = {name for node in proto.graph.node for name in node.input}
        for name, array in self.constants().items():
            if name in used:
                proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model = ir.from_proto(proto)
        infer_shapes(model)
        return model

    def exact(self) -> ir.Model:
        """Return the graph as edgeq deploys it."""
        model = self.quantized()
        context = Context(load_recipe("int8", {}), TARGET.capabilities, NO_SAMPLES)
        (record,) = run_pipeline("exact-normalization", model, context)
        assert record.rewrites == 1
        return model

    def ideal(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Return what is quantized, evaluated in float64, in steps of the result's codes."""
        arrays = self.constants()
        x = (codes.astype(np.float64) - self.zero_point) * np.float64(arrays["sx"])
        rows, axes = x, self.axes
        if self.groups > 1:
            rows, axes = x.reshape(len(x), self.groups, -1), (-1,)
        if self.centered:
            rows = rows - rows.mean(axis=axes, keepdims=True)
        variance = np.square(rows).mean(axis=axes, keepdims=True)
        with np.errstate(all="ignore"):
            y = (rows / np.sqrt(variance + self.epsilon)).reshape(x.shape)
        gamma, beta = (arrays[n].astype(np.float64) for n in ("gamma", "beta"))
        if self.nodes in (INSTANCE, GROUP):
            channels = (-1, *(1,) * (x.ndim - 2))
            gamma, beta = gamma.reshape(channels), beta.reshape(channels)
        y = y * gamma if self.nodes == RMS else y * gamma + beta
        return np.asarray(y / np.float64(arrays["sy"]))

    def feeds(self) -> list[NDArray[Any]]:
        """Return codes: random ones, narrow ones, extremes, constant rows but for one element."""
        random, limits = np.random.default_rng(5), np.iinfo(self.qtype)
        shape, kind = self.sizes, np.dtype(self.qtype)
        middle = (limits.max + limits.min + 1) // 2
        narrow = random.normal(middle, 9, shape).round().clip(limits.min, limits.max)
        extremes = random.choice([limits.min, limits.max], shape)
        alike = np.full(shape, limits.max)
        alike[..., 0] -= random.integers(0, 2, shape[:-1])
        arrays = (random.integers(limits.min, limits.max + 1, shape), narrow, extremes, alike)
        return [a.astype(kind) for a in arrays]


def layer(length: int, **changes: Any) -> Case:
    """Return a LayerNormalization of rows of `length` elements."""
    return Case(LAYER, ("B", length), (length,), **changes)


WIDE: dict[str, Any] = {"qtype": "uint16", "zero_point": 30001, "scale": 0.000131}
CASES = {
    **{f"LayerNormalization, N = {n}": layer(n) for n in (1, 2, 3, 48, 257, 768, 1021, 4096)},
    **{f"the same, 16 bits, N = {n}": layer(n, **WIDE) for n in (1, 2, 48, 1021, 4096)},
    "N = 300000": layer(300_000),
    "N = 300000, 16 bits": layer(300_000, **WIDE),
    "codes of 8 bits with a sign": layer(64, qtype="int8", zero_point=-3),
    "epsilon 0": layer(64, epsilon=0.0),
    "epsilon 0, N = 1": layer(1, epsilon=0.0),
    "epsilon 0, 16 bits": layer(64, epsilon=0.0, **WIDE),
    "gamma 1, beta 0": layer(64, gamma="ones"),
    "gamma one negative number": layer(64, gamma="same"),
    "a batch of sequences": Case(LAYER, ("B", "T", 64), (64,), **WIDE),
    "axis 1 of 4": Case(LAYER, (2, 3, 4, 5), (3, 4, 5), axes=(1, 2, 3), axis=1),
    "axis 1 of 4, 16 bits": Case(LAYER, (2, 30, 4, 5), (30, 4, 5), (1, 2, 3), axis=1, **WIDE),
    "all axes": Case(LAYER, (3, 40), (3, 40), axes=(0, 1), axis=0),
    "InstanceNormalization of a signal": Case(INSTANCE, ("B", 4, 50), (4,), (2,)),
    "InstanceNormalization of an image": Case(INSTANCE, ("B", 4, 9, 7), (4,), (2, 3), **WIDE),
    "InstanceNormalization, open sizes": Case(INSTANCE, ("B", 4, "H", "W"), (4,), (2, 3)),
    "InstanceNormalization, nameless sizes": Case(INSTANCE, ("?", 4, "?", "?"), (4,), (2, 3)),
    "InstanceNormalization, gamma 1": Case(INSTANCE, (2, 4, 9, 7), (4,), (2, 3), gamma="ones"),
    "GroupNormalization": Case(GROUP, ("B", 6, 5, 4), (6,), groups=3),
    "GroupNormalization, 16 bits": Case(GROUP, ("B", 6, 5, 4), (6,), groups=2, **WIDE),
    "GroupNormalization, open sizes": Case(GROUP, ("B", 6, "H", "W"), (6,), groups=2, **WIDE),
    "GroupNormalization, nameless sizes": Case(GROUP, ("?", 6, "?", "?"), (6,), groups=2),
    "GroupNormalization, gamma 1": Case(GROUP, (2, 6, 5, 4), (6,), groups=3, gamma="ones"),
    "GroupNormalization, gamma with zeros": Case(
        GROUP, ("B", 6, 5, 4), (6,), groups=2, gamma="holes"
    ),
    "GroupNormalization of a vector": Case(GROUP, ("B", 60), (60,), groups=3),
    "GroupNormalization of a signal": Case(GROUP, ("B", 6, 20), (6,), groups=3),
    "GroupNorm as torch exports it": Case(
        GROUP_EXPORTED, ("B", 6, 5, 4), (6, 1, 1), groups=3, **WIDE
    ),
    "GroupNorm so, gamma 1": Case(GROUP_EXPORTED, (2, 6, 5, 4), (6, 1, 1), groups=2, gamma="ones"),
    "RMS": Case(RMS, ("B", 64), (64,)),
    "RMS, 16 bits": Case(RMS, ("B", "T", 64), (64,), **WIDE),
    "RMS, zero point 0": Case(RMS, ("B", 300), (300,), zero_point=0),
    "RMS, gamma one number": Case(RMS, ("B", 300), (1,)),
    "RMS, gamma and beta one number": Case(RMS_SHIFTED, ("B", 300), (1,), **WIDE),
    "RMS of channels": Case(RMS, ("B", 24, "H", 5), (24, 1, 1), axes=(1,), **WIDE),
}
