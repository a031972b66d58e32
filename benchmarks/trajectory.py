"""How near are a bundle's images to the float model's, with and without softmax bias correction?

    python -m benchmarks.trajectory [--steps 50] [--images 64] [--samples 50]

The zoo's DDPM U-Net, its scheduler as DDIM; calibrated along its own trajectories, compiled with
`int8` and each form of the correction, and compared image by image from the same noise. Exit
status 1 if the images are worse than `REQUIRED` dB; compiling itself fails if a bit differs. Needs
the extra `diffusers`.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgeq
from benchmarks.cases import ZOO
from edgeq.diffusion import compare_trajectories, trajectory_feeds

CASE = "ddpm-attn-mnist32"
REQUIRED = 34.0  # dB, of the images of the recipe as it is
FORMS: Mapping[str, Mapping[str, str]] = {
    "none": {"passes.fold-softmax-bias.form": "none"},
    "auto (int8)": {},
    "row+beta, everywhere": {
        "passes.fold-softmax-bias.form": "row+beta",
        "passes.fold-softmax-bias.gain": "-100.0",
    },
}


def scheduler() -> Any:  # noqa: ANN401  # diffusers has no stubs
    """Return the scheduler that the model was trained with, as DDIM."""
    from diffusers import DDIMScheduler, DDPMScheduler

    return DDIMScheduler.from_config(DDPMScheduler(num_train_timesteps=1000).config)


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--samples", type=int, default=50)
    options = parser.parse_args()
    model = options.zoo / CASE / "model.onnx"
    feeds = list(trajectory_feeds(model, scheduler(), samples=options.samples, steps=options.steps))
    worst = float("inf")
    print("| softmax bias correction | PSNR at the end (dB) | worst image (dB) |")
    print("|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (form, settings) in enumerate(FORMS.items()):
            bundle = edgeq.compile(
                model,
                calibration=feeds,
                settings=settings,
                input_ranges={"timestep": (0, 999)},
                output=Path(folder) / str(number),
            )
            found = compare_trajectories(
                model, bundle, scheduler(), steps=options.steps, samples=options.images
            )
            end = found.end
            print(f"| {form} | {end.psnr_db:.2f} | {end.worst_db:.2f} |", flush=True)
            if form.startswith("auto"):
                worst = end.psnr_db
    return int(worst < REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
