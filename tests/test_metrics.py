"""Metrics equal their formulas over all data at once, however the data come in pieces."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cases import ZOO, load_zoo
from edgeq.errors import DataError, UnknownNameError
from edgeq.metrics import IGNORED, Metric, find_metric, metric_names

N = 12
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(N, 5)).astype(np.float32)
CLASSES = RNG.integers(0, 5, N)
TOKENS = RNG.normal(size=(N, 4, 7)).astype(np.float32) * 30
NEXT = RNG.integers(0, 7, (N, 4))
IMAGES = RNG.normal(0.5, 0.4, (N, 1, 6, 6)).astype(np.float32)  # some outside [0, 1]
TRUTH = RNG.random((N, 1, 6, 6)).astype(np.float32)


def top1(y, label):
    return 100 * float(np.mean(y.argmax(-1) == label))


def nll(y, label):
    y = y.astype(np.float64)
    p = np.exp(y - y.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return float(np.mean(-np.log(np.take_along_axis(p, label[..., None].astype(int), -1))))


def perplexity(y, label):
    return float(np.exp(nll(y, label)))


def mse(y, label):
    return float(np.mean((y.astype(np.float64) - label) ** 2))


def psnr(y, label):
    values = []
    for image, truth in zip(y.astype(np.float64), label, strict=True):
        values.append(10 * np.log10(1 / np.mean((image.clip(0, 1) - truth) ** 2)))
    return float(np.mean(values))


CASES = [
    ("top1", top1, LOGITS, CLASSES),
    ("top1", top1, TOKENS, NEXT),
    ("top1", top1, LOGITS, CLASSES.astype(np.uint8)),
    ("nll", nll, LOGITS, CLASSES),
    ("nll", nll, TOKENS, NEXT.astype(np.uint8)),
    ("perplexity", perplexity, LOGITS, CLASSES),
    ("perplexity", perplexity, TOKENS / 30, NEXT),
    ("mse", mse, IMAGES, TRUTH),
    ("mse", mse, IMAGES.astype(np.float64), TRUTH > 0.5),
    ("psnr", psnr, IMAGES, TRUTH),
]


def run(metric: Metric, outputs, label, cuts=(), reference=None) -> float:
    """Feed the metric in pieces."""
    edges = [0, *sorted(cuts), len(outputs)]
    for low, high in pairwise(edges):
        if low < high:
            part = outputs[low:high]
            real = part if reference is None else reference[low:high]
            # A second output, of another kind: only the first one counts.
            more = np.full((high - low, 2), np.nan)
            metric.update(
                {"y": part, "z": more}, {"y": real}, None if label is None else label[low:high]
            )
    return metric.value()


@pytest.mark.parametrize(("name", "formula", "outputs", "label"), CASES)
@given(cuts=st.sets(st.integers(1, N - 1)))
def test_metrics_are_their_formulas(name, formula, outputs, label, cuts):
    found = run(find_metric(name), outputs, label, cuts)
    assert isinstance(found, float)
    # Pieces are summed in another order: some ulps of float64.
    assert abs(found - formula(outputs, label)) <= 1e-12 * max(1, abs(found))


@pytest.mark.parametrize("name", ["top1", "nll", "perplexity"])
@given(cuts=st.sets(st.integers(1, N - 1)), kept=st.integers(1, 4))
def test_labels_that_do_not_count(name, cuts, kept):
    """Windows filled up to four tokens are worth what they are worth unfilled."""
    filled = NEXT.copy()
    filled[:, kept:] = IGNORED
    found = run(find_metric(name), TOKENS, filled, cuts)
    alone = run(find_metric(name), TOKENS[:, :kept], NEXT[:, :kept])
    assert abs(found - alone) <= 1e-12 * max(1, abs(found))


def test_windows_may_differ_in_length():
    metric = find_metric("nll")
    for rows, length in ((slice(0, 5), 4), (slice(5, 6), 1), (slice(6, N), 3)):
        y = TOKENS[rows, :length]
        metric.update({"y": y}, {"y": y}, NEXT[rows, :length])
    filled = NEXT.copy()
    filled[5, 1:] = filled[6:, 3:] = IGNORED
    assert abs(metric.value() - run(find_metric("nll"), TOKENS, filled)) < 1e-12


def test_nothing_that_counts_has_no_value():
    with pytest.raises(DataError, match="metric nll: there were no samples"):
        run(find_metric("nll"), TOKENS, np.full_like(NEXT, IGNORED))


@given(cuts=st.sets(st.integers(1, N - 1)))
def test_sqnr_is_over_all_outputs(cuts):
    metric, edges = find_metric("sqnr"), [0, *sorted(cuts), N]
    noisy = IMAGES + np.float32(0.01)
    for low, high in pairwise(edges):
        real = {"a": LOGITS[low:high], "b": IMAGES[low:high]}
        metric.update({"a": LOGITS[low:high], "b": noisy[low:high]}, real, None)
    signal = (LOGITS.astype(np.float64) ** 2).sum() + (IMAGES.astype(np.float64) ** 2).sum()
    noise = ((noisy.astype(np.float64) - IMAGES) ** 2).sum()
    assert abs(metric.value() - 10 * np.log10(signal / noise)) < 1e-10


@pytest.mark.zoo
@pytest.mark.parametrize(("name", "outputs", "label"), [
    ("top1", LOGITS, CLASSES), ("nll", TOKENS, NEXT), ("psnr", IMAGES, TRUTH),
    ("mse", IMAGES, TRUTH), ("sqnr", IMAGES, None),
])  # fmt: skip
def test_the_zoo_computes_the_same(name, outputs, label, tmp_path):
    """A case of the zoo's form whose model is the identity."""
    if not (ZOO / "zoo.py").is_file():
        pytest.skip(f"{ZOO} is absent")
    noisy = outputs + np.float32(0.01)
    arrays = {"eval_x": noisy} | ({} if label is None else {"label": label})
    (tmp_path / "case").mkdir()
    np.savez(tmp_path / "case" / "data.npz", **arrays)
    case = {"name": "case", "metric": name, "inputs": {"x": None}}
    (tmp_path / "case" / "case.json").write_text(json.dumps(case))
    value = (
        load_zoo(ZOO)
        .load("case", tmp_path)
        .evaluate(
            lambda feeds: [feeds["x"]], lambda feeds: [feeds["x"] - np.float32(0.01)], batch=5
        )
    )
    found = run(find_metric(name), noisy, label, [5, 10], reference=noisy - np.float32(0.01))
    # One mean over the images there, sums of pieces here: some ulps of float64.
    assert abs(found - value) <= 1e-14 * abs(value)


def test_known_values():
    one = np.eye(4, dtype=np.float32)
    assert run(find_metric("top1"), one, np.array([0, 1, 2, 0])) == 75.0
    assert abs(run(find_metric("nll"), np.zeros((3, 8)), np.arange(3)) - np.log(8)) < 1e-15
    assert abs(run(find_metric("perplexity"), np.zeros((3, 8)), np.arange(3)) - 8) < 1e-14
    assert run(find_metric("mse"), one, one + 2) == 4.0
    off = np.full((2, 1, 3, 3), 0.1)
    assert abs(run(find_metric("psnr"), off, np.zeros_like(off)) - 20) < 1e-12
    assert run(find_metric("psnr"), off + 7, np.ones_like(off)) == 300.0  # clipped: no error
    halved = run(find_metric("sqnr"), one / 2, None, reference=one)
    assert abs(halved - 20 * np.log10(2)) < 1e-12
    assert np.isfinite(run(find_metric("sqnr"), one, None, reference=one))


def test_large_logits_do_not_overflow():
    assert run(find_metric("nll"), np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0])) == 5e3
    assert run(find_metric("perplexity"), np.array([[1e4, 0.0]]), np.array([1])) == np.inf


def test_what_is_better():
    better = {name: find_metric(name).higher_is_better for name in metric_names()}
    assert [name for name in better if not better[name]] == ["nll", "perplexity", "mse"]
    needed = [name for name in metric_names() if find_metric(name).needs_label]
    assert needed == ["top1", "nll", "perplexity", "psnr", "mse"]


def test_metrics_do_not_share_their_state():
    first = find_metric("top1")
    run(first, LOGITS, CLASSES)
    with pytest.raises(DataError, match="metric top1: there were no samples"):
        find_metric("top1").value()


@pytest.mark.parametrize("name", metric_names())
def test_nothing_has_no_value(name):
    with pytest.raises(DataError, match=f"metric {name}: there were no samples"):
        find_metric(name).value()


BAD = [
    ("no label", "top1", LOGITS, None, "data have no array 'label'"),
    ("no label", "psnr", IMAGES, None, "data have no array 'label'"),
    ("shape", "top1", LOGITS, CLASSES[:, None], r"label has shape \[12, 1\].*'y' takes \[12\]"),
    ("one hot", "nll", LOGITS, np.eye(12)[:, :5], r"label has shape \[12, 5\]"),
    ("shape", "mse", IMAGES, TRUTH[:, 0], r"label has shape \[12, 6, 6\].*\[12, 1, 6, 6\]"),
    ("shape", "psnr", IMAGES, TRUTH[:, :, :1], "label has shape"),
    ("floats", "top1", LOGITS, CLASSES.astype(float), "class numbers, integers from 0"),
    ("negative", "nll", LOGITS, CLASSES - 5, r"class numbers.*\(-100: does not count\)"),
    ("negative", "top1", LOGITS, np.full_like(CLASSES, IGNORED + 1), "class numbers"),
    ("wraps", "nll", LOGITS, np.full(N, 2**64 + IGNORED, np.uint64), "has 5 classes"),
    ("too large", "nll", LOGITS, CLASSES + 5, "but the output has 5 classes"),
    ("too large", "top1", LOGITS, CLASSES + 5, "but the output has 5 classes"),
    ("bytes", "psnr", IMAGES, (TRUTH * 255).astype(np.uint8), r"images in \[0, 1\] as float"),
]


@pytest.mark.parametrize(("name", "outputs", "label", "complaint"), [b[1:] for b in BAD],
                         ids=[f"{b[1]}: {b[0]}" for b in BAD])  # fmt: skip
def test_labels_that_do_not_fit(name, outputs, label, complaint):
    with pytest.raises(DataError, match=f"metric {name}: .*{complaint}"):
        run(find_metric(name), outputs, label)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("top", r"no metric 'top' \(did you mean 'top1'\?\); known metrics: top1, nll, perplex"),
        ("accuracy-of-my-own", "or MODULE:FUNCTION"),
        ("", "no metric ''"),
    ],
)
def test_unknown_metrics(name, complaint):
    with pytest.raises(UnknownNameError, match=complaint):
        find_metric(name)


@pytest.fixture
def user(tmp_path, monkeypatch):
    name = f"user_metric_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\n"
        "def error(outputs, reference, label):\n"
        "    return np.abs(outputs['y'] - reference['y']).mean(1)\n"
        "error.higher_is_better = False\n"
        "def labels(outputs, reference, label):\n    return float(label.sum())\n"
        "def broken(outputs, reference, label):\n    return outputs['no such']\n"
        "def nan(outputs, reference, label):\n    return float('nan')\n"
        "def text(outputs, reference, label):\n    return 'good'\n"
        "def none(outputs, reference, label):\n    return []\n"
    )
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_metric_of_the_users_own(user):
    metric = find_metric(f"{user}:error")
    found = run(metric, LOGITS, None, cuts=[5], reference=LOGITS + np.float32(0.5))
    assert not metric.higher_is_better and abs(found - 0.5) < 1e-6
    metric = find_metric(f"{user}:labels")
    assert run(metric, LOGITS, CLASSES, cuts=[5]) == CLASSES.sum() / 2 and metric.higher_is_better


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("broken", "failed: KeyError: 'no such'"),
        ("nan", "returned nan; return finite numbers"),
        ("text", "failed: ValueError"),
        ("none", r"returned \[\]; return finite"),
    ],
)
def test_bad_metrics_of_the_users_own(user, function, complaint):
    with pytest.raises(DataError, match=f"metric {user}:{function} {complaint}"):
        run(find_metric(f"{user}:{function}"), LOGITS, CLASSES)


def test_no_such_function(user):
    with pytest.raises(DataError, match=r"has no function 'eror' \(did you mean 'error'\?\)"):
        find_metric(f"{user}:eror")
    with pytest.raises(DataError, match=r"metric .*:labels: there were no samples"):
        find_metric(f"{user}:labels").value()
