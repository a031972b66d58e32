"""learn-rounding: less error, on the grid, the same bytes each time and after an interrupt."""

import re
import sys

import numpy as np
import pytest

from edgeq.checkpoint import Checkpoint
from edgeq.errors import DataError, RecipeError
from edgeq.graph import to_bytes
from edgeq.passing import run_pipeline
from edgeq.qdq import REAL_NAME, linear_group, quantize_node
from edgeq.simulate import Simulator
from tests.quantizing import float_model, quantize, samples
from tests.test_learning_executor import compare, stacked

torch = pytest.importorskip("torch", reason="needs edgeq[torch]")
pytestmark = pytest.mark.torch
from edgeq.learning.batches import Batches  # noqa: E402  # behind the check for torch
from edgeq.learning.blocks import find_blocks  # noqa: E402

PASS = "learn-rounding"
SHORT = f"{PASS}{{iterations=30,batch=8}}"
NARROW = {"weight.limit": "3"}  # 7 codes: much to learn
REST = "unit-scales, tabulate, exact-normalization, exact-softmax, widen-products, prove-fused"


def prepared(name="network", **options):
    model = float_model(name)
    options = {"settings": NARROW, "until": "quantize-embeddings"} | options
    return model, quantize(model, samples(name, 32), **options)


def codes_of(group):
    assert group.w.array is not None
    return group.w.array


def made_by(node):
    result = quantize_node(node)
    assert result is not None
    return result


def error(model, context, seed=9):
    """Return the error of the output on other samples, relative to the float model's power."""
    feeds = stacked(samples("network" if model.graph.name == "network" else "block", 32, seed))
    wanted = Simulator(context.reference).run(feeds)["y"].astype(np.float64)
    got = Simulator(model).run(feeds)["y"]
    return np.sum((got - wanted) ** 2) / np.sum(wanted**2)


@pytest.mark.parametrize("name", ["network", "block"])
def test_the_error_falls_and_the_bits_are_the_simulators(name):
    model, context = prepared(name)
    before = error(model, context)
    assert run_pipeline(SHORT, model, context)[0].rewrites > 10
    assert error(model, context) < 0.8 * before
    assert any(subject == PASS and "learned" in text for subject, text in context.notes)
    run_pipeline(REST, model, context)
    compared, _ = compare(model, stacked(samples(name)))
    assert compared > 5000


def test_what_is_learned_fits_together():
    model, context = prepared()
    groups = [g for node in model.graph if (g := linear_group(node)) is not None]
    old = {
        str(g.node.name): (g.bias is None, codes_of(g).copy(), g.w.qparams.scale.copy())
        for g in groups
    }
    run_pipeline(SHORT, model, context)
    moved = 0
    for node in model.graph:
        group = linear_group(node)
        if group is None:
            continue
        unbiased, codes, scale = old.pop(str(node.name))
        assert (group.bias is None) == unbiased, "the scale of the bias is sx * sw"
        assert np.abs(codes_of(group)).max() <= 3
        assert group.w.qparams.scale.tobytes() != scale.tobytes()
        moved += int(np.sum(codes_of(group) != codes))
    assert not old and moved > 5
    made = [(n, made_by(n)) for n in model.graph if n.op_type == "QuantizeLinear"]
    for node, result in made:
        decided = context.qparams[node.outputs[0].metadata_props[REAL_NAME]]
        assert decided.same_as(result.qparams), node.name


def test_the_same_bytes_each_time():
    results = []
    for _ in range(2):
        model, context = prepared()
        run_pipeline(SHORT, model, context)
        results.append(to_bytes(model))
    assert results[0] == results[1]
    model, context = prepared()
    context.seed = 1
    run_pipeline(SHORT, model, context)
    assert to_bytes(model) != results[0]


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path):
    whole, context = prepared()
    run_pipeline(SHORT, whole, context)
    told = []

    def stop(stage, done, total):
        told.append(done)
        if done == 17:
            raise KeyboardInterrupt

    model, context = prepared()
    context.checkpoint, context.progress = Checkpoint(tmp_path / "kept"), stop
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(SHORT, model, context)
    model, context = prepared()
    told.clear()
    context.checkpoint = Checkpoint(tmp_path / "kept")
    context.progress = lambda stage, done, total: told.append(done)
    run_pipeline(SHORT, model, context)
    assert told[0] > 10 and told[-1] == 30, "it went on, and did not begin again"
    assert to_bytes(model) == to_bytes(whole)


def test_nothing_is_kept_that_is_no_better():
    model, context = prepared()
    before = to_bytes(model)
    records = run_pipeline(f"{PASS}{{iterations=1,rate=50,scale_rate=2}}", model, context)
    assert records[0].rewrites == 0
    assert to_bytes(model) == before
    assert any("not kept" in text for _, text in context.notes)


def test_powers_of_two_stay():
    model, context = prepared(recipe="int8-power-of-two")
    run_pipeline(SHORT, model, context)
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            mantissa, _ = np.frexp(made_by(node).qparams.scale)
            assert np.all(mantissa == 0.5)


@pytest.mark.parametrize("qtype", ["float4e2m1", "int4", "int2"])
def test_codes_stay_on_their_grid(qtype):
    model, context = prepared(settings={"weight.qtype": f'"{qtype}"'})
    run_pipeline(SHORT, model, context)
    assert context.float_weights
    for name, source in context.float_weights.items():
        codes = model.graph.initializers[name].const_value.numpy()
        low, high = source.qtype.within(source.limit)
        allowed = source.qtype.values or range(low, high + 1)
        assert np.isin(codes, allowed).all() and codes.max() <= high


def test_learning_begins_at_the_codes_that_are_there():
    model, context = prepared()
    names = list(context.float_weights)
    codes = {n: model.graph.initializers[n].const_value.numpy().copy() for n in names}
    rng = np.random.default_rng(0)
    changed = {n: np.clip(c + rng.integers(-1, 2, c.shape), -3, 3) for n, c in codes.items()}
    for name, array in changed.items():
        value = model.graph.initializers[name]
        value.const_value = type(value.const_value)(array.astype(np.int8), name=name)
    run_pipeline(f"{PASS}{{iterations=2,rate=1e-7}}", model, context)
    for name, array in changed.items():
        assert np.array_equal(model.graph.initializers[name].const_value.numpy(), array)


def test_without_torch_the_message_says_what_to_install(monkeypatch):
    model, context = prepared()
    monkeypatch.setitem(sys.modules, "edgeq.learning.rounding", None)
    with pytest.raises(RecipeError, match=r"pip install edgeq\[torch\]"):
        run_pipeline(PASS, model, context)


def test_batches_cover_a_stream_in_windows():
    feeds = [{"x": np.full((1, 100), i, np.float32)} for i in range(50)]
    (value,) = float_model("network").graph.inputs
    batches = Batches(feeds, [value], size=4, seed=0, window_bytes=12 * 400)
    held = {int(v) for batch in batches.held for v in batch["x"][:, 0]}
    assert held == {7, 15, 23, 31, 39, 47}
    seen = [batches.batch(i)[0]["x"][:, 0].int().tolist() for i in range(40)]
    assert {v for batch in seen for v in batch} == set(range(50)) - held
    assert len(batches._window[1]) <= 12, "one window in memory"
    assert seen[0] == batches.batch(0)[0]["x"][:, 0].int().tolist()
    with pytest.raises(DataError, match="no"):
        Batches([], [value], size=4, seed=0)


def test_block_by_block():
    model, context = prepared()
    blocks = find_blocks(model.graph)
    ends = {blocks[n]: str(n.name).split("_")[0] for n in blocks if n.op_type == "QuantizeLinear"}
    assert list(ends.values()) == ["u", "g"], "the residual block ends behind its Add"
    before, told = error(model, context), []
    context.progress = lambda stage, done, total: told.append((done, total))
    run_pipeline(f"{PASS}{{scope=block,iterations=20,batch=8}}", model, context)
    assert error(model, context) < 0.8 * before
    assert told[-1] == (40, 40)
    with pytest.raises(RecipeError, match="write model or block"):
        run_pipeline(f"{PASS}{{scope=layer}}", model, context)


def test_what_is_committed_is_what_was_learned():
    model, context = prepared()
    run_pipeline(SHORT, model, context)
    still = "iterations=1,rate=1e-9,scale_rate=0,activation_rate=0,bias_rate=0"
    run_pipeline(f"{PASS}{{{still},batch=8}}", model, context)
    first, second = (text for subject, text in context.notes if subject == PASS)
    learned, before = (re.findall(r"\d+\.\d+", text) for text in (first, second))
    assert learned[1] == before[0]
