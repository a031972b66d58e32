"""Diffusion models: calibrate and compare along the trajectories on which they work.

    feeds = trajectory_feeds("unet.onnx", "scheduler_config.json", steps=50)
    bundle = edgeq.compile("unet.onnx", calibration=feeds, input_ranges={"timestep": (0, 999)}, ...)
    found = compare_trajectories("unet.onnx", bundle, "scheduler_config.json", samples=64)
    add_to_report(bundle, found)

Needs `pip install edgeq[diffusers]`.
"""

from edgeq.diffusion.calibration import trajectory_feeds as trajectory_feeds
from edgeq.diffusion.comparison import add_to_report as add_to_report
from edgeq.diffusion.comparison import compare_trajectories as compare_trajectories
from edgeq.diffusion.schedulers import load_scheduler as load_scheduler
from edgeq.trajectory import TrajectoryComparison as TrajectoryComparison
