"""Time and peak memory of each stage on models of real size, with random weights.

    python -m benchmarks.real_size                     # OPT-125M and Stable Diffusion 1.5's U-Net
    python -m benchmarks.real_size opt-125m --share 6  # a sixth of its layers or channels

The models are built from the configuration classes of transformers and diffusers; nothing is
downloaded. Each stage has a process of its own, which reads what the one before has written: its
peak is what Linux kept as `ru_maxrss`, libraries and the model included. `plan` is
`edgeq compile --dry-run` with two samples; `--stage compile` goes all the way. Needs
edgeq[torch,transformers,diffusers], and 12 GB of memory for the U-Net.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import ROOT

THREADS = 2
SAMPLES = 2
LENGTH = 64  # tokens of a sample; OPT-125M takes up to 2048
MB = 10**6
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Size:
    """A model of real size.

    Attributes:
        factory: Returns what `edgeq export` takes, for a share of the model: 1 is all of it.
        samples: Returns calibration data, sample first.
        options: What `edgeq compile` needs to be told.
    """

    factory: Callable[[int], tuple[Any, Any, Any]]
    samples: Callable[[], Arrays]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """What a stage took."""

    name: str
    seconds: float
    megabytes: float
    nodes: int


def opt(share: int) -> tuple[Any, Any, Any]:
    """Return OPT-125M: 12 layers, 768 wide, 12 heads, 50272 tokens, 2048 positions."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    class Logits(torch.nn.Module):  # type: ignore[misc] # not followed
        """The logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = OPTForCausalLM(OPTConfig(num_hidden_layers=max(1, 12 // share)))

        def forward(self, ids: Any) -> Any:  # noqa: ANN401 # torch is not followed
            """Return the logits of `ids`."""
            return self.model(ids, use_cache=False).logits

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=2048)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    return Logits().eval(), (ids,), {"ids": {0: batch, 1: length}}


def sentences() -> Arrays:
    """Return random tokens."""
    rng = np.random.default_rng(0)
    return {"ids": rng.integers(0, 50272, (SAMPLES, LENGTH))}


def unet(share: int) -> tuple[Any, Any, Any]:
    """Return the U-Net of Stable Diffusion 1.5 for pictures of 512x512."""
    import torch
    from diffusers import UNet2DConditionModel

    class Noise(torch.nn.Module):  # type: ignore[misc] # not followed
        """The noise alone."""

        def __init__(self) -> None:
            super().__init__()
            widths = tuple(width // share for width in (320, 640, 1280, 1280))
            self.unet = UNet2DConditionModel(
                sample_size=64, block_out_channels=widths, cross_attention_dim=768
            )

        def forward(self, sample: Any, timestep: Any, text: Any) -> Any:  # noqa: ANN401
            """Return the noise in `sample`."""
            return self.unet(sample, timestep, text).sample

    batch = torch.export.Dim("batch")
    examples = (torch.randn(2, 4, 64, 64), torch.tensor([10, 700]), torch.randn(2, 77, 768))
    return Noise().eval(), examples, {n: {0: batch} for n in ("sample", "timestep", "text")}


def pictures() -> Arrays:
    """Return random latent pictures, timesteps and texts."""
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((SAMPLES, 4, 64, 64), np.float32),
        "timestep": rng.integers(0, 1000, SAMPLES),
        "text": rng.standard_normal((SAMPLES, 77, 768), np.float32),
    }


SIZES = {
    "opt-125m": Size(opt, sentences, {}),
    "sd15-unet": Size(unet, pictures, {"input_ranges": {"timestep": (0, 999)}}),
}


def export(size: Size, share: int, folder: Path) -> int:
    """Build the module, export it and write it, as `edgeq export` does; return its nodes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    import edgeq
    from edgeq.golden import npz_bytes
    from edgeq.model_file import write_model

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    module, examples, shapes = size.factory(share)
    with torch.no_grad():
        for parameter in module.parameters():  # no bias is 0 and no factor 1, as after training
            limit = 1 / max(1, parameter[0].numel()) ** 0.5
            parameter.add_(torch.empty_like(parameter).uniform_(-limit, limit), alpha=0.1)
    model = edgeq.export(module, examples, shapes)
    write_model(folder / "model.onnx", model)
    (folder / "samples.npz").write_bytes(npz_bytes(size.samples()))
    return sum(1 for _ in model.graph)


def load(size: Size, share: int, folder: Path) -> int:
    """Read the file; return its nodes."""
    from edgeq.load import load_model

    return sum(1 for _ in load_model(folder / "model.onnx").model.graph)


def cleanup(size: Size, share: int, folder: Path) -> int:
    """Load and clean up; return the nodes that are left."""
    return _pipeline(size, folder, "cleanup")


def prepare(size: Size, share: int, folder: Path) -> int:
    """Load and run all float passes; return the nodes that are left."""
    from edgeq.recipe import load_recipe

    return _pipeline(size, folder, load_recipe("int8").prepare)


def _pipeline(size: Size, folder: Path, text: str) -> int:
    from edgeq.data import input_specs, open_samples
    from edgeq.load import load_model
    from edgeq.passing import Context, run_pipeline
    from edgeq.recipe import load_recipe
    from edgeq.targeting import find_target

    model = load_model(folder / "model.onnx").model
    context = Context(
        recipe=load_recipe("int8"),
        capabilities=find_target("ort-cpu").capabilities,
        samples=open_samples(folder / "samples.npz", inputs=input_specs(model)),
        **size.options,
    )
    for record in run_pipeline(text, model, context):
        print(f"  {record.name}: {record.rewrites} rewrites, {record.seconds:.1f} s", flush=True)
    for subject, note in context.notes:
        print(f"  {subject}: {note}", flush=True)
    return sum(1 for _ in model.graph)


def plan(size: Size, share: int, folder: Path) -> int:
    """Plan a compile; return the nodes that it decides about."""
    from edgeq.compile import compile_model
    from edgeq.request import CompileRequest

    outcome = compile_model(
        CompileRequest(
            model=folder / "model.onnx",
            target="ort-cpu",
            calibration=folder / "samples.npz",
            dry_run=True,
            **size.options,
        )
    )
    return sum(line.endswith(": quantize") for line in outcome.plan)


def compiled(size: Size, share: int, folder: Path) -> int:
    """Compile, and remove the bundle; return the nodes of the quantized model."""
    import edgeq
    from edgeq.opening import open_model

    with tempfile.TemporaryDirectory(prefix="edgeq-", dir=folder) as output:
        bundle = edgeq.compile(
            folder / "model.onnx",
            calibration=folder / "samples.npz",
            output=Path(output) / "bundle",
            **size.options,
        )
        return sum(1 for _ in open_model(bundle.path).graph)


STRUCTURE = {"export": export, "load": load, "cleanup": cleanup, "prepare": prepare, "plan": plan}
STAGES = {**STRUCTURE, "compile": compiled}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each model; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(SIZES)}")
    parser.add_argument("--share", type=int, default=1, help="divide layers or channels by this")
    parser.add_argument("--folder", type=Path, help="keep the exported model there")
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: all but compile")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(SIZES):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SIZES)}")
    if options.run:
        took = run(options.run, options.names[0], options.share, options.folder)
        print(f"{took.seconds} {took.megabytes} {took.nodes}")
        return 0
    for name in options.names or SIZES:
        with tempfile.TemporaryDirectory(prefix="edgeq-") as temporary:
            folder = options.folder or Path(temporary)
            print(f"{name}, share 1/{options.share}")
            for stage in options.stage or STRUCTURE:
                took = in_a_process(stage, name, options.share, folder)
                print(
                    f"{took.name:<9}{took.seconds:>8.1f} s{took.megabytes:>8.0f} MB"
                    f"{took.nodes:>7} nodes",
                    flush=True,
                )
    return 0


def in_a_process(stage: str, name: str, share: int, folder: Path) -> Stage:
    """Run one stage in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.real_size", name, "--run", stage]
    command += ["--share", str(share), "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    *said, figures = done.stdout.splitlines()
    print(*said, sep="\n", end="\n" if said else "")
    seconds, megabytes, nodes = figures.split()
    return Stage(stage, float(seconds), float(megabytes), int(nodes))


def run(stage: str, name: str, share: int, folder: Path) -> Stage:
    """Run one stage in this process."""
    start = time.perf_counter()
    nodes = STAGES[stage](SIZES[name], share, folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    return Stage(stage, seconds, peak, nodes)


if __name__ == "__main__":
    sys.exit(main())
