"""What does each method below 8 bits do for a diffusion model?

    python -m benchmarks.ablation [--recipe w4a8] [--recipe w4a6] [--variant NAME]... [--images 64]

The zoo's DDPM U-Net, compiled for `ort-cpu` with the recipe's formats, the methods added one after
the other, same data and seed: learned equivalent scaling, power-of-two scaling of skips, rounding
by what layers make of their weights, and learning along trajectories. Prints, for each, the error
of the predicted noise, its SQNR, and the PSNR of images at the end of 50 DDIM steps, against the
float model's from the same noise; on standard error what each method says of itself. Compiling
fails if a bit differs. Needs the extras `torch` and `diffusers`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import edgeq
from benchmarks.accuracy import evaluate
from benchmarks.cases import ZOO, export_case, load_zoo, make_session, open_bundle
from edgeq.diffusion import compare_trajectories
from edgeq.read_report import read_report
from edgeq.recipe import load_recipe
from edgeq.steps import format_steps, parse_steps

CASE = "ddpm-attn-mnist32"
SCHEDULER = "DDIMScheduler"
LEARNED = ("learn-scaling", "shift-channels", "round-weights", "learn-rounding", "learn-trajectory")
# Codes that round-weights chose stay, and all else moves slowly: ten times as fast, held-out
# trajectories end farther away than before.
TRAJECTORY = (
    "learn-trajectory{iteration=edgeq.diffusion.iteration:ddim,iterations=60,rate=0,"
    "scale_rate=0.0001,activation_rate=0.0002,bias_rate=0.0005}"
)


@dataclass(frozen=True)
class Variant:
    """Methods that are added to a recipe without any.

    Attributes:
        prepare: Passes at the end of the float ones.
        learned: Passes behind `quantize-embeddings`; without any, biases are corrected at the end.
    """

    prepare: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()


SCALING, SHIFTS, ROUNDING = "learn-scaling", "shift-channels", "round-weights"
VARIANTS: Mapping[str, Variant] = {
    "none": Variant(),
    "+ scaling": Variant((SCALING,)),
    "+ shifts": Variant((SCALING, SHIFTS)),
    "+ rounding": Variant((SCALING, SHIFTS), (ROUNDING,)),
    "+ trajectories": Variant((SCALING, SHIFTS), (ROUNDING, TRAJECTORY)),
    "rounding alone": Variant((), (ROUNDING,)),
    "rounding, trajectories": Variant((), (ROUNDING, TRAJECTORY)),
}


def pipeline(recipe: str, variant: Variant) -> dict[str, str]:
    """Return the settings that put the passes of a variant into a recipe's pipeline."""
    made = load_recipe(recipe)
    prepare = [s for s in parse_steps(made.prepare) if s.name not in LEARNED]
    added = (*LEARNED, "fold-channel-scales", "correct-bias")
    quantize = [s for s in parse_steps(made.quantize) if s.name not in added]
    prepare += parse_steps(", ".join(variant.prepare)) if variant.prepare else []
    places = [step.name for step in quantize]
    # From the end on, so that places stay what they are.
    if not variant.learned:
        place = places.index("prove-fused") + 1
        quantize[place:place] = parse_steps("correct-bias{cause=weights}")
    if variant.prepare:
        place = places.index("prove-fused")
        quantize[place:place] = parse_steps("fold-channel-scales")
    if variant.learned:
        place = places.index("quantize-embeddings") + 1
        quantize[place:place] = parse_steps(", ".join(variant.learned))
    return {
        "pipeline.prepare": f'"{format_steps(prepare)}"',
        "pipeline.quantize": f'"{format_steps(quantize)}"',
    }


def learning_notes(bundle: Path) -> list[str]:
    """Return what the report says of the methods: what they found, and whether it was kept."""
    notes = read_report(bundle / "report.json").notes
    return [f"{subject}: {text}" for subject, text in notes if subject in LEARNED]


def main() -> int:
    """Print the table; return 1 where a variant has no bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", action="append", help="default: w4a8 w4a6")
    parser.add_argument("--variant", action="append", choices=[*VARIANTS])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    given = parser.parse_args()
    failed = 0
    print("| recipe | methods | mse of noise | SQNR (dB) | PSNR of images (dB) | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        case = export_case(load_zoo(given.zoo), CASE, Path(folder))
        for recipe in given.recipe or ("w4a8", "w4a6"):
            for name in given.variant or VARIANTS:
                start = time.perf_counter()
                output = Path(folder) / recipe / name.strip("+ ")
                try:
                    edgeq.compile(
                        case.model,
                        calibration=case.calibration,
                        recipe=recipe,
                        settings=pipeline(recipe, VARIANTS[name]),
                        input_ranges={"timestep": (0, 999)},
                        output=output,
                    )
                except edgeq.EdgeqError as error:
                    failed += 1
                    print(f"| {recipe} | {name} | {error} | | | |", flush=True)
                    continue
                seconds = time.perf_counter() - start
                bundle = open_bundle(output)
                session = make_session(bundle.artifact, bundle.session_options, threads=2)
                figure, _ = evaluate(case, session)
                images = compare_trajectories(
                    case.model, output, SCHEDULER, steps=given.steps, samples=given.images
                )
                print(
                    f"| {recipe} | {name} | {figure.metric:.5f} | {figure.sqnr_db:.2f} |"
                    f" {images.end.psnr_db:.2f} | {seconds:.0f} |",
                    flush=True,
                )
                for note in learning_notes(output):
                    print(f"    {note}", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
