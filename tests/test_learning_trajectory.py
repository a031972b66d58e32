"""learn-trajectory: where runs of an iterated graph end, in memory for one run."""

import numpy as np
import pytest

from edgeq.checkpoint import Checkpoint
from edgeq.errors import DataError
from edgeq.graph import to_bytes
from edgeq.passing import run_pipeline
from tests.quantizing import float_model, quantize, samples

torch = pytest.importorskip("torch", reason="needs edgeq[torch]")
pytestmark = pytest.mark.torch
from edgeq.learning.iteration import Feedback  # noqa: E402  # behind the check for torch
from edgeq.learning.learnable import find_weights  # noqa: E402
from edgeq.learning.parameters import Parameters, Rates  # noqa: E402
from edgeq.learning.rollout import Rollout, surrogate  # noqa: E402

PASS = "learn-trajectory"
HERE = "tests.test_learning_trajectory"
NARROW = {"weight.limit": "3"}


class Mixing:
    """The next state is a mixture of the state and of what the graph made of it."""

    runs = 6

    def start(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((count, 5, 8), generator=generator)

    def feeds(self, state, number):
        return {"x": state}

    def advance(self, state, outputs, number):
        return 0.7 * state + 0.2 * outputs["y"]


def mixing(inputs):
    assert [spec.name for spec in inputs] == ["x"]
    return Mixing()


class Slower(Mixing):
    """Another way on, of as many runs."""

    def advance(self, state, outputs, number):
        return 0.9 * state + 0.1 * outputs["y"]


def slower(inputs):
    return Slower()


def nothing(inputs):
    return len(inputs)


def failing(inputs):
    raise ValueError("no scheduler today")


def prepared(**settings):
    model = float_model("block")
    feeds = samples("block", 32)
    return model, quantize(model, feeds, settings=NARROW | settings, until="quantize-embeddings")


def learned_step(iteration=f"{HERE}:mixing", **options):
    options = {"iterations": 30, "batch": 8, "states": 16, "group": 3, **options}
    text = ",".join(f"{name}={value}" for name, value in options.items())
    return f"{PASS}{{iteration={iteration},{text}}}"


def parameters(model, context):
    weights = find_weights(model.graph, context.float_weights)
    return Parameters(weights, [], [], Rates(0.01, 0, 0, 0), torch.device("cpu"))


def rollout(model, context, *, carried, iteration=None):
    return Rollout(model, context.reference, iteration or Mixing(), "cpu", carried=carried)


def end_error(model, context, count=64):
    found = rollout(model, context, carried=True)
    return found.end_error([Mixing().start(count, 77)], {})


@pytest.mark.parametrize("group", [1, 3])
def test_whole_iterations_end_nearer(group):
    model, context = prepared()
    before = end_error(model, context)
    assert run_pipeline(learned_step(group=group), model, context)[0].rewrites > 10
    assert end_error(model, context) < 0.9 * before
    note = next(text for subject, text in context.notes if subject == PASS)
    assert "held-out" in note and "not kept" not in note


def test_of_one_run_the_gradient_is_that_of_the_loss():
    model, context = prepared()
    leaves, walk = parameters(model, context), rollout(model, context, carried=True)
    state = Mixing().start(4, 3)
    made = leaves.tensors()
    loss, gradients = walk.gradients(state, 0, 1, made)
    surrogate(made, gradients).backward()
    found = {name: leaf.grad.clone() for name, leaf in leaves.leaves.items()}
    for leaf in leaves.leaves.values():
        leaf.grad = None
    wanted = walk.walk(state, 0, 1)[-1]
    whole = walk._step(state, 0, leaves.tensors())
    direct = torch.sum(torch.square(whole - wanted)) / torch.sum(torch.square(wanted))
    direct.backward()
    assert loss == pytest.approx(direct.item())
    assert len(found) > 5
    for name, leaf in leaves.leaves.items():
        torch.testing.assert_close(found[name], leaf.grad)


@pytest.mark.parametrize(("carried", "factors"), [(True, [0.49, 0.7, 1]), (False, [1, 1, 1])])
def test_what_reaches_each_run(carried, factors):
    """By hand: the sum over runs of the gradient of each, weighted by what reaches its state."""
    model, context = prepared()
    leaves, walk = parameters(model, context), rollout(model, context, carried=carried)
    state, made = Mixing().start(4, 3), leaves.tensors()
    _, gradients = walk.gradients(state, 0, 3, made)
    held = {name: tensor.detach().requires_grad_() for name, tensor in made.items()}
    end, states = walk.walk(state, 0, 3)[-1], walk.walk(state, 0, 3, held)
    reaching = 2 * (states[-1] - end) / torch.sum(torch.square(end))
    terms = [
        factor * torch.sum(reaching * walk._step(before.detach(), 0, held))
        for factor, before in zip(factors, states[:-1], strict=True)
    ]
    wanted = torch.autograd.grad(sum(terms), list(held.values()), allow_unused=True)
    compared = 0
    for name, gradient in zip(held, wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradients[name], gradient)
            compared += gradient.numel()
    assert compared > 300


def test_memory_is_for_one_run():
    """What autograd keeps, at its most, does not depend on the length of a group."""
    model, context = prepared()
    leaves = parameters(model, context)
    most = {}
    for length in (1, 2, 6):
        alive = peak = 0

        class Kept:
            def __init__(self, tensor):
                nonlocal alive, peak
                self.tensor, self.size = tensor, tensor.nbytes
                alive += self.size
                peak = max(peak, alive)

            def __del__(self):
                nonlocal alive
                alive -= self.size

        walk = rollout(model, context, carried=True)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            walk.gradients(Mixing().start(16, 0), 0, length, leaves.tensors())
        most[length] = peak
    assert most[1] > 10_000
    assert most[6] <= 1.05 * most[1]
    assert most[2] <= 1.05 * most[1]


def test_the_same_bytes_each_time():
    results = []
    for _ in range(2):
        model, context = prepared()
        run_pipeline(learned_step(iterations=5), model, context)
        results.append(to_bytes(model))
    assert results[0] == results[1]


def test_kept_work_is_that_of_the_same_iteration(tmp_path):
    results = {}
    for name, kept in (("mixing", True), ("slower", True), ("slower", False)):
        model, context = prepared()
        context.checkpoint = Checkpoint(tmp_path / "kept") if kept else None
        run_pipeline(learned_step(f"{HERE}:{name}", iterations=5), model, context)
        results[name, kept] = to_bytes(model)
    assert results["slower", True] == results["slower", False] != results["mixing", True]


def test_nothing_is_kept_that_is_no_better():
    model, context = prepared()
    before = to_bytes(model)
    text = learned_step(iterations=1, rate=50, scale_rate=2)
    assert run_pipeline(text, model, context)[0].rewrites == 0
    assert to_bytes(model) == before
    assert any("not kept" in text for _, text in context.notes)


def test_a_recurrent_graph_is_fed_its_own_output():
    inputs = torch.arange(6.0).reshape(3, 2)
    chain = Feedback("h", "y", torch.eye(4), runs=3, inputs={"u": inputs, "k": torch.arange(3)})
    state = chain.start(8, 0)
    assert state.shape == (8, 4) and torch.equal(state, chain.start(8, 0))
    fed = chain.feeds(state, 2)
    assert torch.equal(fed["u"], torch.tensor([[4.0, 5.0]]).expand(8, 2))
    assert int(fed["k"]) == 2 and fed["h"] is state
    assert chain.advance(state, {"y": -state}, 0).equal(-state)


def test_without_an_iteration_nothing_is_learned():
    model, context = prepared()
    before = to_bytes(model)
    assert run_pipeline(PASS, model, context)[0].rewrites == 0
    assert to_bytes(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iteration": "nosuchmodule:f"}, "cannot import nosuchmodule"),
        ({"iteration": f"{HERE}:nothing"}, "returned int: an iteration has runs, start"),
        ({"iteration": f"{HERE}:failing"}, "failed: ValueError: no scheduler today"),
        ({"group": 7}, "groups of 7 runs: the iteration has 6"),
        ({"group": 0}, "groups of 0 runs"),
    ],
)
def test_what_is_no_iteration_is_refused(options, message):
    model, context = prepared()
    before = to_bytes(model)
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        run_pipeline(learned_step(**options), model, context)
    assert to_bytes(model) == before
    assert np.isfinite(end_error(model, context))
