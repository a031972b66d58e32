"""The line that a report draws of a trajectory: PSNR from noise to images."""

from dataclasses import dataclass

from edgeq.trajectory import TrajectoryComparison

WIDTH, HEIGHT = 600, 120
LEAST_SPAN = 10.0  # dB from bottom to top: a flat line shall look flat


@dataclass(frozen=True)
class Chart:
    """A polyline of SVG.

    Attributes:
        points: `x,y` pairs within `width` and `height`; y grows downwards.
        low: Decibels at the bottom.
        high: Decibels at the top.
        width: Of the drawing, in units of its own.
        height: Likewise.
    """

    points: str
    low: int
    high: int
    width: int = WIDTH
    height: int = HEIGHT


def draw_chart(trajectory: TrajectoryComparison) -> Chart:
    """Return the line through the PSNR behind each evaluation."""
    values = [step.fidelity.psnr_db for step in trajectory.path]
    low = int(min(values) // 1)
    high = int(-(-max(max(values), low + LEAST_SPAN) // 1))
    across = WIDTH / max(1, len(values) - 1)
    points = [
        f"{i * across:.1f},{(high - value) / (high - low) * HEIGHT:.1f}"
        for i, value in enumerate(values)
    ]
    return Chart(" ".join(points), low, high)
