"""Float attentions between two heads, and how tests quantize them and correct their softmax."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import Buckets
from edgeq.calibrate import Calibration
from edgeq.graph import clone
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import QTYPES
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.simulate import Simulator
from edgeq.softmax_bias import softmax
from tests.test_exact_softmax import TARGET

PASS = "fold-softmax-bias"
Array = NDArray[Any]
Feeds = dict[str, Array]
D, WIDTH = 6, 5
# Few steps for a row of probabilities: most of them round to 0 or 1.
SCALES = {"q": (0.02, 121), "k": (0.02, 130), "v": (0.02, 90), "p": (1 / 25, 0), "y": (0.012, 90)}


@dataclass(frozen=True)
class Case:
    """A float attention between `q`, `k`, `v` of two heads.

    Attributes:
        nodes: From the scores `s` to the Softmax's input `x`.
        inputs: Further inputs.
        guard: Behind the softmax `r`, which then is not `p`.
        scales: In place of those above.
        lead: The axes in front of rows and keys.
    """

    nodes: str = "x = Mul(s, c)"
    inputs: str = ""
    guard: str = ""
    scales: dict[str, tuple[float, int]] = field(default_factory=dict)
    lead: str = "B,2,"


COUNT = "n = Shape<start = -2, end = -1>(q) l = Squeeze(n) keys = Range(i0, l, i1)"
CAUSAL = f"{COUNT} rows = Unsqueeze(keys, v1) m = LessOrEqual(keys, rows)"
PADDED = "bool[B,1,1,L] pad"
CASES = {
    "none": Case(),
    "one head": Case(lead="B,1,"),
    "no heads": Case(lead="B,"),
    "causal": Case(f"{CAUSAL} x = Where(m, s, low)"),
    "causal, added": Case(f"{CAUSAL} b = Where(m, zero, low) x = Add(s, b)"),
    "chosen": Case("x = Where(keep, s, low)", "bool[1,1,L,L] keep"),
    "chosen where not": Case("x = Where(hide, low, s)", "bool[1,1,L,L] hide"),
    "padded": Case("x = Where(pad, s, low)", PADDED),
    "causal and padded": Case(f"{CAUSAL} t = Where(m, s, low) x = Where(pad, t, low)", PADDED),
    "an added input": Case("x = Add(s, bias)", "float[1,1,L,L] bias"),
    "guarded": Case(
        "x = Where(keep, s, infinity)",
        "bool[1,1,L,L] keep",
        "nan = IsNaN(r) p = Where(nan, zero, r)",
    ),
}


def reference(case: Case) -> ir.Model:
    softmax_nodes = f"r = Softmax(x) {case.guard}" if case.guard else "p = Softmax(x)"
    more = f", {case.inputs}" if case.inputs else ""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[{case.lead}L,{D}] q, float[{case.lead}{D},L] k,
           float[{case.lead}L,{WIDTH}] v{more}) => (float[{case.lead}L,{WIDTH}] y)
        <float c = {{0.7}}, float low = {{-1e9}}, float infinity = {{-inf}}, float zero = {{0}},
         int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] v1 = {{1}}>
        {{ s = MatMul(q, k) {case.nodes} {softmax_nodes} y = MatMul(p, v) }}"""
    )
    infer_shapes(model)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def samples(
    case: Case, length: int = 37, count: int = 6, batch: int = 2, spread: float = 1.2
) -> list[Feeds]:
    """Return feeds whose scores are nearly flat, and values with a mean."""
    random = np.random.default_rng(5)
    sizes = {"B": batch, "L": length}
    shape = [int(s) if s.isdecimal() else sizes[s] for s in case.lead.split(",") if s]
    found = []
    for _ in range(count):
        feeds: Feeds = {
            "q": random.normal(size=(*shape, length, D)) * spread,
            "k": random.normal(size=(*shape, D, length)) * spread,
            "v": random.normal(size=(*shape, length, WIDTH)) * 0.4 + random.uniform(-0.5, 1, WIDTH),
        }
        keep = np.asarray(random.random((1, 1, length, length)) < 0.7)
        keep[..., 0] = True
        keep[..., 4:5, :] = False  # a row that is hidden whole
        pad = np.arange(length) < random.integers(length // 2, length, (batch, 1, 1, 1))
        bias = np.where(keep, random.normal(size=keep.shape) * 0.1, -1e9)
        masks = {"keep": keep, "hide": ~keep, "pad": pad, "bias": bias}
        names = [text.split()[-1] for text in case.inputs.split(", ") if text]
        feeds |= {name: masks[name] for name in names}
        found.append({n: a if a.dtype == bool else a.astype(np.float32) for n, a in feeds.items()})
    return found


def prepared(
    case: Case, feeds: Sequence[Feeds], *, buckets: Buckets | None = None
) -> tuple[ir.Model, Context]:
    """Return the quantized model in front of the pass."""
    given = reference(case)
    return quantized(given, feeds, {**SCALES, **case.scales}, buckets)


def quantized(
    given: ir.Model,
    feeds: Sequence[Feeds],
    scales: dict[str, tuple[float, int]],
    buckets: Buckets | None = None,
    passes: str = "insert-qdq, exact-softmax",
) -> tuple[ir.Model, Context]:
    model: Any = clone(given)
    samples: Any = feeds
    qparams = {name: u8(*numbers) for name, numbers in scales.items()}
    context = Context(
        load_recipe("int8", {}),
        TARGET.capabilities,
        samples,
        calibration=Calibration({}, len(feeds), "", buckets=buckets),
        reference=given,
        qparams=qparams,
        max_dim=256,
    )
    run_pipeline(passes, model, context)
    infer_shapes(model)
    return model, context


def corrected(case: Case, feeds: Sequence[Feeds], options: str = "") -> tuple[ir.Model, Context]:
    model, context = prepared(case, feeds)
    run_pipeline(f"{PASS}{{{options}}}" if options else PASS, model, context)
    infer_shapes(model)
    return model, context


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def u8(scale: float, zero_point: int) -> QParams:
    return QParams(QTYPES["uint8"], np.array(scale, np.float32), np.array(zero_point, np.int32))


def as_codes(feeds: Feeds, names: str) -> list[Array]:
    """Return what the codes of some inputs stand for, float64."""
    return [u8(*SCALES[n]).fake_quantize(feeds[n]).astype(np.float64) for n in names]


def ideal(case: Case, feeds: Feeds) -> tuple[Array, Array]:
    """Return the result for the codes of q, k and v in float64, and which rows see something."""
    q, k, v = as_codes(feeds, "qkv")
    scores = q @ k * (0.7 if "Mul(s" in case.nodes else 1)
    kept: Array = np.ones(scores.shape, bool)
    if "keys" in case.nodes:
        kept &= np.tril(np.ones(scores.shape[-2:], bool))
    for name, flip in (("keep", False), ("hide", True), ("pad", False)):
        if name in feeds:
            kept &= feeds[name] ^ flip
    if "bias" in feeds:
        kept &= feeds["bias"] > -1e4
        scores = scores + np.where(feeds["bias"] > -1e4, feeds["bias"], 0)
    return softmax(scores, kept) @ v, np.any(kept, -1)


def sqnr(case: Case, model: ir.Model, feeds: Sequence[Feeds]) -> float:
    """Return the SQNR of the result over rows that see something."""
    simulator, signal, noise = Simulator(model), 0.0, 0.0
    for feed in feeds:
        wanted, seen = ideal(case, feed)
        (found,) = simulator.run(feed).values()
        error = (found - wanted)[seen]
        signal, noise = signal + float((wanted[seen] ** 2).sum()), noise + float((error**2).sum())
    return 10 * float(np.log10(signal / noise))
