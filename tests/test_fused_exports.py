"""torch's exports of opset 23 hold fused operators: they load, and compute what torch computes."""

import contextlib
import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.attention import find_attentions
from edgeq.graph import to_bytes
from edgeq.load import normalize
from edgeq.normalization import normalization
from tests.fused_operators.row import run

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def module() -> Any:
    functional = torch.nn.functional

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined] # not followed
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.after = torch.nn.RMSNorm(16), torch.nn.LayerNorm(16)
            self.q, self.kv = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

        def forward(self, x: Any, mask: Any) -> Any:
            y = self.norm(x)
            q = self.q(y).unflatten(-1, (4, 4)).transpose(1, 2)
            k, v = self.kv(y).unflatten(-1, (2, 2, 4)).unbind(2)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            attend = functional.scaled_dot_product_attention
            one = attend(q, k, v, is_causal=True, enable_gqa=True)
            two = attend(q, k, v, attn_mask=mask, enable_gqa=True)
            x = x + (one + two).transpose(1, 2).flatten(2)
            return functional.silu(self.after(x))

    torch.manual_seed(0)
    return Block().eval()


def test_opset_23():
    block = module()
    x, mask = torch.randn(2, 5, 16), torch.rand(2, 1, 5, 5) < 0.7
    mask[..., 0] = True
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=64)
    shapes = ({0: batch, 1: length}, {0: batch, 2: length, 3: length})
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.onnx.export(
            block, (x, mask), dynamo=True, opset_version=23, dynamic_shapes=shapes,
            input_names=["x", "mask"], output_names=["y"],
        )  # fmt: skip
    fused = Counter(node.op_type for node in program.model.graph)
    assert fused["Attention"] == 2 and fused["RMSNormalization"] == 1
    model = normalize(ir.from_proto(program.model_proto), "model").model
    (found,) = run(to_bytes(model), {"x": x.numpy(), "mask": mask.numpy()})
    assert np.abs(found - block(x, mask).detach().numpy()).max() < 2.0**-18
    assert len(find_attentions(model)) == 2
    assert sum(normalization(node) is not None for node in model.graph) == 2
