"""Run models where edgeq is not: with numpy and onnxruntime alone, on an emulated CPU.

    python run_on_cpu.py FOLDER...

Each folder holds `model.onnx` and `feeds.npz`; every output goes to `CPU.npz`, named by the
environment variable CPU. Session options are ONNX Runtime's defaults.
"""

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime

for name in sys.argv[1:]:
    folder = Path(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    with np.load(folder / "feeds.npz") as feeds:
        found = session.run(names, {key: feeds[key] for key in feeds.files})
    np.savez(folder / f"{os.environ['CPU']}.npz", **dict(zip(names, found, strict=True)))
