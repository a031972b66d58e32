"""Transformers and diffusion models as users export them: dynamic sizes kept, torch's results."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.export import export
from edgeq.graph import clone
from edgeq.load import load_model
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.runtime import make_session, run
from edgeq.targeting import find_target

ZOO = Path(__file__).parent.parent.parent / "shared" / "zoo"
TOLERANCE = 2e-5  # of the largest magnitude: sums in another order
LANGUAGE_SIZES = ((1, 2), (1, 33), (3, 9), (5, 32))  # batch, length
IMAGE_SIZES = (1, 2, 5)

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="pip install edgeq[torch]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def opt(attention: str) -> tuple[Any, Any, Any]:
    """Return a small causal language model as a factory does: module, examples, dynamic shapes."""
    transformers = pytest.importorskip("transformers", reason="pip install edgeq[transformers]")
    import torch

    class Logits(torch.nn.Module):  # type: ignore[misc] # not followed
        def __init__(self) -> None:
            super().__init__()
            config = transformers.OPTConfig(
                vocab_size=29, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2,
                num_attention_heads=2, ffn_dim=32, max_position_embeddings=40,
            )  # fmt: skip
            self.model = transformers.OPTForCausalLM._from_config(
                config, attn_implementation=attention
            )

        def forward(self, ids: Any) -> Any:
            return self.model(ids, use_cache=False).logits

    torch.manual_seed(0)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=40)
    ids = torch.zeros(2, 8, dtype=torch.int64)
    return Logits().eval(), (ids,), {"ids": {0: batch, 1: length}}


def unet() -> tuple[Any, Any, Any]:
    """Return a small noise predictor with attention over a picture."""
    diffusers = pytest.importorskip("diffusers", reason="pip install edgeq[diffusers]")
    import torch

    class Noise(torch.nn.Module):  # type: ignore[misc] # not followed
        def __init__(self) -> None:
            super().__init__()
            self.unet = diffusers.UNet2DModel(
                sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
                block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )  # fmt: skip

        def forward(self, sample: Any, timestep: Any) -> Any:
            return self.unet(sample, timestep).sample

    torch.manual_seed(0)
    batch = torch.export.Dim("batch", max=64)
    examples = (torch.randn(2, 1, 8, 8), torch.tensor([3, 700]))
    return Noise().eval(), examples, {"sample": {0: batch}, "timestep": {0: batch}}


def zoo(name: str, *arguments: str) -> tuple[Any, Any, Any]:
    """Return what the factory of a trained model returns."""
    path = ZOO / name / "model.py"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    pytest.importorskip("transformers" if name.startswith("opt") else "diffusers")
    spec = importlib.util.spec_from_file_location(f"zoo_{name.replace('-', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result: tuple[Any, Any, Any] = module.factory(*arguments)
    return result


def sentences(vocabulary: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for batch, length in LANGUAGE_SIZES:
        yield {"ids": rng.integers(0, vocabulary, (batch, length))}


def images(size: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for batch in IMAGE_SIZES:
        sample = rng.standard_normal((batch, 1, size, size), np.float32)
        yield {"sample": sample, "timestep": rng.integers(0, 1000, batch)}


SLOW = [pytest.mark.zoo, pytest.mark.slow]
CASES = [
    pytest.param(lambda: opt("eager"), lambda: sentences(29), id="opt-eager"),
    pytest.param(lambda: opt("sdpa"), lambda: sentences(29), id="opt-sdpa"),
    pytest.param(unet, lambda: images(8), id="unet"),
    pytest.param(
        lambda: zoo("opt-shakespeare"), lambda: sentences(65), id="zoo-opt-eager", marks=SLOW
    ),
    pytest.param(
        lambda: zoo("opt-shakespeare", "sdpa"), lambda: sentences(65), id="zoo-opt-sdpa", marks=SLOW
    ),
    pytest.param(
        lambda: zoo("ddpm-attn-mnist32"), lambda: images(32), id="zoo-ddpm", marks=SLOW
    ),
]  # fmt: skip


@pytest.mark.parametrize(("factory", "feeds"), CASES)
def test_export(
    factory: Callable[[], tuple[Any, Any, Any]], feeds: Callable[[], Iterator[dict[str, Any]]]
) -> None:
    module, examples, shapes = factory()
    model = export(module, examples, shapes)
    assert all(
        value.shape is not None and value.shape[0] == "batch" for value in model.graph.inputs
    )
    expected = [torch_output(module, feed) for feed in feeds()]
    compare(model, feeds(), expected)
    prepare(model, list(feeds())[:2])
    compare(model, feeds(), expected)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["vit-mnist", "opt-shakespeare", "ddpm-attn-mnist32"])
def test_prepared_zoo(name: str) -> None:
    path = ZOO / name / "model.onnx"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    model = load_model(path).model
    before = make_session(clone(model))
    feeds = {
        "vit-mnist": [{"input": image} for image in np.random.default_rng(0).random(
            (2, 3, 1, 28, 28), np.float32)],
        "opt-shakespeare": list(sentences(65)),
        "ddpm-attn-mnist32": list(images(32)),
    }[name]  # fmt: skip
    expected = [next(iter(run(before, feed).values())) for feed in feeds]
    prepare(model, feeds[:2])
    compare(model, feeds, expected)


def torch_output(module: Any, feed: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        result = module(*(torch.from_numpy(array) for array in feed.values()))
    return result.numpy()


def compare(model: ir.Model, feeds: Any, expected: list[Any]) -> None:
    session = make_session(model)
    for feed, wanted in zip(feeds, expected, strict=True):
        (found,) = run(session, feed).values()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def prepare(model: ir.Model, samples: list[dict[str, Any]]) -> None:
    """Run the float passes of the default recipe, the first of them with a closer look."""
    recipe = load_recipe("int8")
    assert "equalize" in recipe.prepare
    context = Context(
        recipe=recipe,
        capabilities=find_target("ort-cpu").capabilities,
        samples=samples,  # type: ignore[arg-type]
        input_ranges={"timestep": (0, 999)},
    )
    run_pipeline("cleanup", model, context)
    assert context.notes == []
    assert_simple(model)
    run_pipeline(recipe.prepare, model, context)


def assert_simple(model: ir.Model) -> None:
    """Nothing is left of how shapes and positions are computed; every dimension has a name."""
    kinds = {node.op_type for node in model.graph}
    assert not kinds & {"CumSum", "ConstantOfShape"}
    for node in model.graph:
        if node.op_type == "Shape":
            (source,) = node.inputs
            assert source is not None and source.is_graph_input(), node
        for value in node.outputs:
            assert value.shape is not None
            names = [d if isinstance(d, int) else d.value for d in value.shape]
            assert None not in names, f"{node.op_type} {value}"
