"""Every pass, by the files in tests/passes: `PASS.BEHAVIOUR.txt` holds a graph before and after.

A file is ONNX text, a line `---`, and ONNX text; lines starting with `#` in front say more:

    # options: iterations=2           options of the pass
    # input-type: x=uint8             context.input_types
    # input-range: t=0:9              context.input_ranges
    # max-dim: 3                       context.max_dim
    # qparams: x=uint8,0.5,3          context.qparams: type, scale, zero point
    # fused: Add,Mul                  op types that the target fuses
    # channel-multiple: 4              channels that the target's kernels move at a time
    # recipe: int8-power-of-two       the recipe, `int8` when absent
    # set: weight.limit=64            a setting of the recipe
    # output-type: y=uint8            context.output_types
    # keep-float: head/*              nodes that the recipe leaves in float
    # channel-scale: m                context.channel_scales
    # note: text                      a text that context.notes must hold

Graphs are compared by structure: what every node is, does and reads, the bits of every weight, the
names of inputs and outputs. Names inside the graph do not count. Where nothing is to change, both
halves are the same, and the pass must say that it made no rewrites.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgeq.certify import certify
from edgeq.graph import check, to_bytes, to_text
from edgeq.longest import MAX_DIM
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import FORMATS
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, Step, format_steps, pass_names, run_pipeline
from edgeq.qdq import quantized_tensors
from edgeq.recipe import Rule, load_recipe
from edgeq.simulate import Simulator
from edgeq.targeting import Capabilities, find_target
from edgeq.verify import verify

FOLDER = Path(__file__).parent / "passes"
FILES = sorted(FOLDER.glob("*.txt"))

# Float to float: what they leave must compute the same, up to the rounding of folded weights.
FLOAT_PASSES = (
    "cleanup", "conv-transpose", "fold-affine", "fold-batchnorm", "fold-input",
    "flatten-rows", "fold-normalization", "fold-pad",
    "linear-form", "pad-channels", "scale-scores", "select-early", "tabulate-index",
)  # fmt: skip
# What they leave is the same function, bit by bit.
EXACT_PASSES = (
    "conv-transpose", "dequantize-late", "fold-clip", "lower-prelu", "store-codes",
    "tabulate-requantization", "unsigned-codes", "zero-points",
)  # fmt: skip
# They decide by samples, or by the decisions of others: tables of texts show nothing.
TESTED_BY_SAMPLES = {
    "align-scales": "test_equalize.py",
    "choose-qparams": "test_decisions.py",
    "choose-ranges": "test_choose_ranges.py",
    "correct-bias": "test_correct_bias.py",
    "equalize": "test_equalize.py",
    "fold-softmax-bias": "test_fold_softmax_bias.py",
    "learn-rounding": "test_learning_rounding.py",
    "learn-scaling": "test_learn_scaling.py",
    "learn-trajectory": "test_learning_trajectory.py",
    "plan-bits": "test_plan_bits.py",
    "quantize-float8": "test_quantize_float8.py",
    "relate-scales": "test_decisions.py",
    "round-weights": "test_round_weights.py",
    "shift-channels": "test_shift_channels.py",
    "split-concat": "test_split_concat.py",
    "split-input": "test_split_input.py",
}
TOLERANCE = 2.0**-18  # of the largest magnitude: sums of up to 64 products, each off by 2**-24


class Case:
    """One file: the graphs, and what its `#` lines say."""

    def __init__(self, path: Path) -> None:
        self.pass_name = path.name.partition(".")[0]
        lines = path.read_text(encoding="utf-8").splitlines()
        head = [line for line in lines if line.startswith("#")]
        body = "\n".join(line for line in lines if not line.startswith("#"))
        before, separator, after = body.partition("\n---\n")
        assert separator, f"{path.name}: no line '---'"
        self.before, self.after = before, after
        self.settings: list[tuple[str, str]] = []
        for line in head:
            key, colon, value = line.removeprefix("#").partition(":")
            if colon and key.strip() in KNOWN:
                self.settings.append((key.strip(), value.strip()))

    def all(self, key: str) -> list[str]:
        return [value for k, value in self.settings if k == key]

    def context(self) -> Context:
        settings = dict(text.split("=") for text in self.all("set"))
        recipe = load_recipe(next(iter(self.all("recipe")), "int8"), settings)
        recipe = recipe.with_rules([Rule(name=g, keep_float=True) for g in self.all("keep-float")])
        fused = frozenset(name for text in self.all("fused") for name in text.split(","))
        qparams = {}
        for text in self.all("qparams"):
            name, _, numbers = text.partition("=")
            qtype, scale, zero_point = numbers.split(",")
            qparams[name] = QParams(
                FORMATS[qtype], np.array(scale, np.float32), np.array(zero_point, np.int32)
            )
        return Context(
            recipe=recipe,
            capabilities=Capabilities(
                fused=fused, channel_multiple=int(next(iter(self.all("channel-multiple")), 1))
            ),
            samples=NO_SAMPLES,
            qparams=qparams,
            channel_scales=set(self.all("channel-scale")),
            input_types=dict(text.split("=") for text in self.all("input-type")),
            output_types=dict(text.split("=") for text in self.all("output-type")),
            input_ranges=self.ranges(),
            max_dim=int(next(iter(self.all("max-dim")), MAX_DIM)),
        )

    def ranges(self) -> dict[str, tuple[int, int]]:
        spans = {}
        for text in self.all("input-range"):
            name, _, numbers = text.partition("=")
            low, _, high = numbers.partition(":")
            spans[name] = int(low), int(high)
        return spans

    def run(self) -> tuple[ir.Model, int, Context]:
        model, context = parse(self.before), self.context()
        options = dict(o.split("=") for text in self.all("options") for o in text.split(","))
        steps = format_steps([Step(self.pass_name, options)])
        (record,) = run_pipeline(steps, model, context)
        return model, record.rewrites, context


KNOWN = (
    "options", "input-type", "input-range", "output-type", "qparams", "fused", "channel-multiple",
    "recipe", "set", "keep-float", "max-dim", "note", "channel-scale",
)  # fmt: skip
NO_SAMPLES: Any = ()  # passes that stream samples have tests of their own


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


def structure(model: ir.Model) -> list[str]:
    """Return what the graph is, names inside it replaced by where they come from."""
    names = {value: f"input {value.name}" for value in model.graph.inputs}
    lines = [f"{v.name}: {v.dtype}" for v in (*model.graph.inputs, *model.graph.outputs)]

    def name(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value in names:
            return names[value]
        assert value.const_value is not None, value.name
        array = value.const_value.numpy()
        # -0.0 and 0.0 are one weight; everything else is compared by its bits
        text = np.array2string(array + 0 if array.dtype.kind == "f" else array, threshold=64)
        return f"{array.dtype}{list(array.shape)} {text} {zlib.crc32((array + 0).tobytes()):08x}"

    for index, node in enumerate(model.graph):
        attributes = sorted(str(a) for a in node.attributes.values() if not is_default(node, a))
        lines.append(f"{node.domain}{node.op_type} {attributes} {[name(v) for v in node.inputs]}")
        names |= {out: f"node {index} output {out.index()}" for out in node.outputs}
    return lines + [f"{v.name} is {names[v]}" for v in model.graph.outputs]


def is_default(node: ir.Node, attribute: ir.Attr) -> bool:
    schema = onnx.defs.get_schema(node.op_type, 21, node.domain).attributes[attribute.name]
    default = schema.default_value
    return bool(default.type) and onnx.helper.get_attribute_value(default) == attribute.value


def feeds(model: ir.Model, spans: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return one batch of inputs within `spans`; unknown dimensions are 3."""
    rng = np.random.default_rng(7)
    result = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else 3 for d in value.shape or ()]
        rows = value.dtype == ir.DataType.INT64  # of an embedding that has three
        low, high = spans.get(str(value.name), (0, 2 if rows else 255))
        numbers = rng.integers(low, high, shape, endpoint=True)
        result[str(value.name)] = numbers.astype(value.dtype.numpy() if value.dtype else None)
    return result


def run(model: ir.Model, inputs: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(to_bytes(model), options)
    return list(session.run(None, inputs))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pass(path):
    case = Case(path)
    model, rewrites, context = case.run()
    check(model)
    assert structure(model) == structure(parse(case.after)), to_text(model)
    unchanged = structure(parse(case.before)) == structure(parse(case.after))
    if not context.qparams:  # deciding is a rewrite too
        assert (rewrites == 0) == unchanged
    notes = [text for _, text in context.notes]
    for wanted in case.all("note"):
        assert any(wanted in note for note in notes), notes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_same_bytes_twice(path):
    case = Case(path)
    assert to_bytes(case.run()[0]) == to_bytes(case.run()[0])


FLOAT_FILES = [path for path in FILES if path.name.partition(".")[0] in FLOAT_PASSES]


@pytest.mark.parametrize("path", FLOAT_FILES, ids=lambda path: path.stem)
def test_float_pass_computes_the_same(path):
    case = Case(path)
    before, after = parse(case.before), case.run()[0]
    inputs = feeds(before, case.ranges())
    compared = 0
    expected = run(before, inputs)
    for value in after.graph.inputs:
        assert value.dtype is not None
        inputs[str(value.name)] = inputs[str(value.name)].astype(value.dtype.numpy())
    for a, b in zip(expected, run(after, inputs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max(initial=0) <= TOLERANCE * max(np.abs(a).max(initial=0), 1)
        compared += a.size
    assert compared > 0


@pytest.mark.parametrize("path", FLOAT_FILES, ids=lambda path: path.stem)
def test_float_pass_is_idempotent(path):
    case = Case(path)
    model, _, context = case.run()
    once = to_bytes(model)
    (record,) = run_pipeline(case.pass_name, model, context)
    assert to_bytes(model) == once
    if case.pass_name != "fold-input":
        assert record.rewrites == 0


# What these leave is quantized: the simulator's bits must be those of ONNX Runtime.
QUANTIZED_FILES = [path for path in FILES if path.name.partition(".")[0] not in FLOAT_PASSES]


def quantized_feeds(model: ir.Model) -> dict[str, Any]:
    """Return random codes, or reals of both signs with many ties; unknown dimensions are 37."""
    rng = np.random.default_rng(11)
    result = {}
    for value in model.graph.inputs:
        assert value.dtype is not None
        shape = [d if isinstance(d, int) else 37 for d in value.shape or ()]
        kind = value.dtype.numpy()
        if kind == np.float32:
            result[str(value.name)] = np.asarray(rng.integers(-600, 600, shape) / 16, kind)
        elif kind == np.bool_:
            result[str(value.name)] = rng.integers(0, 2, shape).astype(kind)
        else:
            limits = np.iinfo(kind)
            result[str(value.name)] = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
    return result


@pytest.mark.parametrize("path", QUANTIZED_FILES, ids=lambda path: path.stem)
def test_simulates_to_the_bits_of_onnx_runtime(path):
    model = Case(path).run()[0]
    target = find_target("ort-cpu")
    unproven = certify(model, target.capabilities).unproven
    if unproven:  # nothing could be done about it: the file says so
        assert ".not-" in path.stem, [(p.op_type, p.detail) for p in unproven]
        return
    taps = quantized_tensors(model)
    simulator, runner = Simulator(model), target.load(model, taps=taps)
    verdict = verify(
        lambda inputs: simulator.run(inputs, taps), runner.run, [quantized_feeds(model)]
    )
    assert verdict.same, verdict.first
    assert verdict.compared >= 2


EXACT_FILES = [path for path in FILES if path.name.partition(".")[0] in EXACT_PASSES]


@pytest.mark.parametrize("path", EXACT_FILES, ids=lambda path: path.stem)
def test_exact_pass_keeps_every_bit(path):
    case = Case(path)
    before, after = parse(case.before), case.run()[0]
    inputs = quantized_feeds(before)
    expected, found = Simulator(before).run(inputs), Simulator(after).run(inputs)
    for name, array in expected.items():
        # Of the two zeros either.
        same = (found[name] + 0).tobytes() == (array + 0).tobytes()
        assert same and array.size >= 2, name


def test_every_pass_has_a_file():
    covered = {path.name.partition(".")[0] for path in FILES}
    for name, file in TESTED_BY_SAMPLES.items():
        assert f'"{name}' in (FOLDER.parent / file).read_text(encoding="utf-8"), file
        covered.add(name)
    assert covered - set(pass_names()) == set(), "files of no pass"
    assert set(pass_names()) - covered == set(), "passes without a file"


def test_a_wrong_weight_is_seen():
    path = FOLDER / "fold-batchnorm.after-conv.txt"
    model = Case(path).run()[0]
    conv = next(node for node in model.graph if node.op_type == "Conv")
    weight = conv.inputs[1]
    assert weight is not None and weight.const_value is not None
    wrong = np.nextafter(weight.const_value.numpy(), np.float32(9))
    weight.const_value = ir.tensor(wrong)
    assert structure(model) != structure(parse(Case(path).after))
