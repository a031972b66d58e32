"""Train a small diffusion model, compile it, and draw digits with it before and after.

    python samples/diffusion/train.py       # three minutes; needs edgeq[torch,diffusers,test]

A U-Net of `diffusers` with an attention block learns scikit-learn's 8 x 8 digits; nothing is
downloaded. It is calibrated along its own sampling trajectories. Then the float and the quantized
model draw digits from the same noise. Writes `unet.onnx`, the bundle, with the drawings in its
report, and `digits.png`: above, the float model's. The seed is fixed.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from torch import Tensor, nn

import edgeq
from edgeq.diffusion import add_to_report, compare_trajectories, trajectory_feeds

TIMESTEPS = 1000


class Noise(nn.Module):
    """Noisy images [batch, 1, 8, 8] and timesteps [batch] -> the noise in the images."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=(32, 64), norm_num_groups=8, attention_head_dim=16,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),  # attention is between them
        )  # fmt: skip

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the noise."""
        return self.unet(sample, timestep).sample


def train(images: Tensor, steps: int) -> Noise:
    """Return a model trained to find the noise that was added to `images`."""
    torch.manual_seed(0)
    model, scheduler = Noise(), DDPMScheduler(num_train_timesteps=TIMESTEPS)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for step in range(steps):
        clean = images[torch.randint(len(images), (64,))]
        noise, timestep = torch.randn_like(clean), torch.randint(TIMESTEPS, (64,))
        noisy = scheduler.add_noise(clean, noise, timestep)
        loss = nn.functional.mse_loss(model(noisy, timestep), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.4f}")
    model.eval()
    return model


def main() -> None:
    """Train, export, compile, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--draw-steps", type=int, default=50, help="from noise to an image")
    parser.add_argument("--images", type=int, default=64, help="to draw with both models")
    parser.add_argument("--output", type=Path, default=Path("build/diffusion"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # as fast as two at this size
    digits = (load_digits().images[:, None] / 8 - 1).astype(np.float32)
    model = train(torch.from_numpy(digits), given.steps)
    batch = torch.export.Dim("batch", max=64)
    example = torch.zeros(2, 1, 8, 8), torch.tensor([3, 700])
    unet = edgeq.export(model, example, {"sample": {0: batch}, "timestep": {0: batch}})
    given.output.mkdir(parents=True, exist_ok=True)
    ir.save(unet, given.output / "unet.onnx")
    ddim = DDIMScheduler(num_train_timesteps=TIMESTEPS)
    bundle = edgeq.compile(
        given.output / "unet.onnx",
        calibration=trajectory_feeds(unet, ddim, steps=given.draw_steps),
        input_ranges={"timestep": (0, TIMESTEPS - 1)},
        output=given.output / "bundle",
        force=True,
    )
    drawn = compare_trajectories(unet, bundle, ddim, steps=given.draw_steps, samples=given.images)
    add_to_report(bundle, drawn)
    (given.output / "digits.png").write_bytes(drawn.png)
    edgeq.check(bundle, taps=True).raise_for_mismatch()
    found = bundle.manifest.bitwise
    print(f"{found.mismatches} of {found.compared} elements differ, in {found.tensors} tensors")
    print(f"images: PSNR {drawn.end.psnr_db:.2f} dB, the worst {drawn.end.worst_db:.2f} dB")


if __name__ == "__main__":
    main()
