"""Decoding as an iteration: windows move on, and a language model learns where its choices lead."""

import numpy as np
import pytest

from edgeq.passing import run_pipeline
from tests.quantizing import parse, quantize

torch = pytest.importorskip("torch", reason="needs edgeq[torch]")
pytestmark = pytest.mark.torch
from edgeq.learning.decoding import UNIT, Decoding  # noqa: E402  # behind the check for torch
from edgeq.learning.rollout import Rollout  # noqa: E402

HERE = "tests.test_learning_decoding"
LENGTH, CLASSES, WIDTH = 4, 12, 16
TEXT = f"""<ir_version: 10, opset_import: ["" : 21]>
language (int64[N,{LENGTH}] tokens) => (float[N,{LENGTH},{CLASSES}] logits) {{
  e = Gather (table, tokens)
  p = Add (e, places)
  h = MatMul (p, w1)  r = Relu (h)
  m = CumSum (r, along)
  g = MatMul (m, w2)  u = Relu (g)
  logits = MatMul (u, w3)
}}"""
SIZES = {
    "table": (CLASSES, WIDTH), "places": (1, LENGTH, WIDTH),
    "w1": (WIDTH, WIDTH), "w2": (WIDTH, WIDTH), "w3": (WIDTH, CLASSES),
}  # fmt: skip


def prompts(count=32):
    rng = np.random.default_rng(2)
    return rng.integers(0, CLASSES, (count, LENGTH))


def decoding(inputs):
    assert [spec.name for spec in inputs] == ["tokens"]
    windows = torch.from_numpy(prompts())
    return Decoding("tokens", "logits", windows, classes=CLASSES, runs=6)


def test_windows_move_on_by_the_likeliest_token():
    walk = Decoding("tokens", "logits", torch.tensor([[7, 8, 9]]), classes=3, runs=2)
    state = walk.start(2, seed=0)
    assert state.shape == (2, 3 + 2 * 3)
    assert walk.feeds(state, 0)["tokens"].tolist() == [[7, 8, 9]] * 2
    logits = torch.zeros(2, 3, 3)
    logits[0, -1] = torch.tensor([0.0, 5.0, 1.0])
    logits[1, -1] = torch.tensor([0.0, 1.0, 5.0])
    state = walk.advance(state, {"logits": logits}, 0)
    assert walk.feeds(state, 1)["tokens"].tolist() == [[8, 9, 1], [8, 9, 2]]
    said = torch.log_softmax(logits[:, -1], 1)
    assert torch.equal(state[:, 3:6], said) and not state[:, 6:].any()
    state = walk.advance(state, {"logits": -logits}, 1)
    assert walk.feeds(state, 2)["tokens"].tolist() == [[9, 1, 0], [9, 2, 0]]
    assert torch.equal(state[:, 3:6], said) and state[:, 6:].any()


def test_every_token_of_a_large_vocabulary_is_held_exactly():
    tokens = torch.tensor([[0, 1, 50_271, 256_000, 2**24 - 1]])
    walk = Decoding("tokens", "logits", tokens, classes=2, runs=1)
    assert torch.equal(walk.feeds(walk.start(1, 0), 0)["tokens"], tokens)
    assert UNIT * 2**24 == 16


def test_log_probabilities_reach_their_run_and_choices_do_not():
    walk = Decoding("tokens", "logits", torch.tensor([[0, 1]]), classes=3, runs=1)
    logits = torch.randn(1, 2, 3, requires_grad=True)
    end = walk.advance(walk.start(1, 0), {"logits": logits}, 0)
    (of_tokens,) = torch.autograd.grad(end[:, :2].sum(), logits, retain_graph=True)
    (of_said,) = torch.autograd.grad(end[:, 2:].square().sum(), logits)
    assert not of_tokens.any() and of_said[:, -1].any() and not of_said[:, 0].any()


def test_a_language_model_learns_where_its_choices_lead():
    rng = np.random.default_rng(4)
    constants = {name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in SIZES.items()}
    model = parse(TEXT, {**constants, "along": np.array(1)})
    feeds = [{"tokens": row[None]} for row in prompts()]
    context = quantize(model, feeds, settings={"weight.limit": "3"}, until="quantize-embeddings")

    def end_error():
        walk = decoding([type("Input", (), {"name": "tokens"})])
        found = Rollout(model, context.reference, walk, "cpu")
        return found.end_error([walk.start(64, 77)], {})

    before = end_error()
    text = f"learn-trajectory{{iteration={HERE}:decoding,iterations=40,batch=8,states=16,group=3}}"
    assert run_pipeline(text, model, context)[0].rewrites > 5
    assert end_error() < 0.9 * before
