"""The stages of `benchmarks.real_size`, on a model of no size at all."""

from typing import Any

import numpy as np
import pytest

from benchmarks import real_size
from benchmarks.real_size import STAGES, STRUCTURE, Size, main, run

pytestmark = pytest.mark.torch


def small(share: int) -> tuple[Any, Any, Any]:
    """Return a linear layer that `share` divides."""
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(8, 12 // share), torch.nn.ReLU())
    return module, (torch.randn(2, 8),), ({0: torch.export.Dim("batch")},)


def test_stages(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="pip install edgeq[torch]")
    samples = np.random.default_rng(0).standard_normal((2, 8), np.float32)
    size = Size(small, lambda: {"input": samples}, {})
    monkeypatch.setitem(real_size.SIZES, "small", size)
    monkeypatch.setattr(real_size, "in_a_process", run)
    every = [word for stage in STAGES for word in ("--stage", stage)]
    assert main(["small", "--share", "3", "--folder", str(tmp_path), *every]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "small, share 1/3"
    rows = [line.split() for line in lines if not line.startswith("  ")]
    assert [row[0] for row in rows] == list(STAGES)
    assert all(float(row[3]) > 0 for row in rows), rows
    assert all(row[-2:] == ["2", "nodes"] for row in rows if row[0] in STRUCTURE), rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "samples.npz"]
    assert "  cleanup: 0 rewrites" in "\n".join(lines)
