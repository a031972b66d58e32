"""Train the digits classifier that `make demo` compiles, and write its model and samples.

    python samples/digits/train.py            # about ten seconds; needs edgeq[torch,test]

A small network with what larger ones are made of: Conv, depthwise Conv, BatchNormalization, Relu,
MaxPool, a residual Add, a global average and a Gemm. The data are scikit-learn's bundled 8 x 8
handwritten digits, so nothing is downloaded. The seed is fixed and one thread is used: the same
versions on the same kind of machine write the same files.

Writes beside itself: `digits.onnx` (float32, dynamic batch), `calibration.npz` (array `image`),
`evaluation.npz` (`image` and `label`, none of it seen in training).
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import edgeq

FOLDER = Path(__file__).parent
SEED = 7
EPOCHS = 25
CALIBRATION_SAMPLES = 128


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(x + second(first(x)))`."""
        return torch.relu(x + self.second(self.first(x)))


class Digits(nn.Module):
    """1 x 8 x 8 images with values from 0 to 1 -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 16)
        self.depthwise = convolution(16, 16, groups=16)
        self.pointwise = convolution(16, 32, size=1)
        self.pool = nn.MaxPool2d(2)
        self.residual = Residual(32)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of `image`."""
        x = self.pointwise(self.depthwise(self.stem(image)))
        x = self.residual(self.pool(x))
        return self.classify(self.average(x).flatten(1))


def convolution(inputs: int, outputs: int, *, size: int = 3, groups: int = 1) -> nn.Sequential:
    """Return Conv, BatchNormalization and Relu; the image keeps its size."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def load_split() -> tuple[NDArray[np.float32], ...]:
    """Return training images, evaluation images, training labels, evaluation labels."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    return tuple(
        train_test_split(images, labels, test_size=360, random_state=SEED, stratify=labels)
    )


def train(images: Tensor, labels: Tensor) -> Digits:
    """Return the network trained on `images`, each shifted by up to one pixel."""
    network = Digits()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    batches = -(-len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=EPOCHS * batches
    )
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(images)).chunk(batches):
            down, right = torch.randint(-1, 2, (2,)).tolist()
            x = torch.roll(images[rows], (down, right), (2, 3))
            loss = nn.functional.cross_entropy(network(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1:2d} of {EPOCHS}: loss {total / len(images):.4f}")
    network.eval()
    return network


def main() -> None:
    """Train, export, and write the samples."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, held_out, labels, held_out_labels = load_split()
    network = train(torch.from_numpy(images), torch.from_numpy(labels))
    with torch.no_grad():
        answers = network(torch.from_numpy(held_out)).argmax(1).numpy()
    print(
        f"float accuracy on {len(held_out)} held-out digits: "
        f"{100 * np.mean(answers == held_out_labels):.2f} %"
    )

    example = (torch.from_numpy(images[:2]),)
    batch = torch.export.Dim("batch")
    model = edgeq.export(network, example, dynamic_shapes={"image": {0: batch}})
    ir.save(model, FOLDER / "digits.onnx")
    np.savez(FOLDER / "calibration.npz", image=images[:CALIBRATION_SAMPLES])
    np.savez(FOLDER / "evaluation.npz", image=held_out, label=held_out_labels)
    for name in ("digits.onnx", "calibration.npz", "evaluation.npz"):
        print(f"{name}: {(FOLDER / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
