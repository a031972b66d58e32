"""Windows of a text: whole, in order, and each token's label counts once."""

import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeq
from edgeq.data import InputSpec, open_samples
from edgeq.errors import DataError
from edgeq.language import save_windows, token_windows
from edgeq.metrics import IGNORED
from tests.test_scores import token_model

IDS = InputSpec("ids", np.dtype(np.int64), (None, None))


@given(
    count=st.integers(2, 60),
    length=st.integers(1, 20),
    stride=st.none() | st.integers(1, 20),
    batch=st.integers(1, 7),
)
def test_windows_cover_the_text(count, length, stride, batch):
    tokens = np.random.default_rng(count).integers(0, 99, count, np.uint16)
    length = min(length, count - 1)
    feeds = list(token_windows(tokens, length, stride, batch=batch))
    ids, label = (np.concatenate([feed[name] for feed in feeds]) for name in ("ids", "label"))
    assert ids.shape == label.shape == (len(ids), length) and ids.dtype == label.dtype == np.int64
    assert [len(feed["ids"]) for feed in feeds[:-1]] == [batch] * (len(feeds) - 1)
    step = length if stride is None else stride
    starts = [min(i * step, count - 1 - length) for i in range(len(ids))]
    assert len(set(starts)) == len(starts) and starts[-1] == count - 1 - length
    counted = np.zeros(count, int)
    for start, window, right in zip(starts, ids, label, strict=True):
        assert window.tolist() == tokens[start : start + length].tolist()
        counts = right != IGNORED
        assert right[counts].tolist() == tokens[start + 1 : start + 1 + length][counts].tolist()
        counted[start + 1 : start + 1 + length] += counts
    assert counted[0] == 0 and counted.max() == 1
    if step <= length:
        assert counted[1:].all()


def test_known_windows():
    (feed,) = token_windows(range(10, 20), 4, 3, batch=9, name="tokens")
    assert feed["tokens"].tolist() == [[10, 11, 12, 13], [13, 14, 15, 16], [15, 16, 17, 18]]
    assert feed["label"].tolist() == [[11, 12, 13, 14], [-100, 15, 16, 17], [-100, -100, 18, 19]]


@pytest.mark.parametrize(
    ("tokens", "changes", "complaint"),
    [
        (range(4), {}, "4 tokens make no window of 4 and the token behind it"),
        (np.zeros((2, 9), int), {}, r"tokens are int64 \[2, 9\]; give integers on one axis"),
        (np.zeros(9), {}, "tokens are float64"),
        ("text", {}, "tokens are <U4"),
        (range(9), {"length": 0}, "length 0, stride 0, batch 1: each must be at least 1"),
        (range(9), {"stride": -1}, "stride -1"),
        (range(9), {"batch": 0}, "batch 0"),
        (range(9), {"name": "label"}, "an input named 'label'"),
    ],
)
def test_what_makes_no_windows(tokens, changes, complaint):
    with pytest.raises(DataError, match=complaint):
        token_windows(tokens, **({"length": 4} | changes))


def test_files_hold_the_same(tmp_path):
    tokens = np.arange(50)
    save_windows(tmp_path / "text", tokens, 8, 5)
    (tmp_path / "text").rename(tmp_path / "text.npz")
    samples = open_samples(tmp_path / "text.npz", inputs=[IDS], batch=3)
    for (ids, label), feed in zip(
        samples.labelled(), token_windows(tokens, 8, 5, batch=3), strict=True
    ):
        assert ids["ids"].tobytes() == feed["ids"].tobytes()
        assert label is not None and label.tobytes() == feed["label"].tobytes()


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    np.save(tmp_path / "tokens.npy", np.arange(40, dtype=np.uint16))
    (tmp_path / "my_text.py").write_text(
        "import numpy as np\n"
        "from edgeq.language import token_windows\n"
        "def windows():\n"
        "    tokens = np.load('tokens.npy', mmap_mode='r')\n"
        "    for length in (16, 5):\n"
        "        yield from token_windows(tokens, length)\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = open_samples("my_text:windows", inputs=[IDS])
    shapes = [feed["ids"].shape for feed in samples]
    sys.modules.pop("my_text", None)
    assert shapes == [(1, 16)] * 3 + [(1, 5)] * 8


def test_lengths_may_change_within_calibration_and_evaluation(tmp_path):
    """From samples to the bundle: whatever looks at several feeds at once."""
    generator = np.random.default_rng(0)
    feeds = []
    for batch, length in ((1, 3), (2, 9), (1, 1), (4, 5), (1, 17)):
        x = generator.normal(size=(batch, length, 6)).astype(np.float32)
        feeds.append({"x": x, "label": generator.integers(0, 4, (batch, length))})
    onnx.save(token_model(), tmp_path / "model.onnx")
    bundle = edgeq.compile(
        tmp_path / "model.onnx", target="ort-cpu", calibration=feeds, evaluation=feeds,
        metric="perplexity", output=tmp_path / "bundle",
    )  # fmt: skip
    edgeq.check(bundle, taps=True).raise_for_mismatch()
