"""What tests spread over workers: at the top level of a module, so that those find it."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def product(task: Mapping[str, Array]) -> dict[str, Array]:
    """A product whose last bits depend on the number of threads; leaves a trace in a folder."""
    x = np.random.default_rng(int(task["seed"])).standard_normal((400, 700))
    if "folder" in task:
        Path(str(task["folder"]), f"{int(task['seed'])}-{time.monotonic_ns()}").touch()
    if int(task["seed"]) == int(task.get("fails", -1)):
        raise KeyboardInterrupt
    time.sleep(float(task.get("seconds", 0)))
    return {"sum": (x @ x.T).sum(0), "text": np.array("done")}


def broken(task: Mapping[str, Array]) -> dict[str, Array]:
    """Fails."""
    raise ValueError(f"task {int(task['seed'])}")


def dying(task: Mapping[str, Array]) -> dict[str, Array]:
    """Takes its process with it, once, as the operating system does when memory is short."""
    mark = Path(str(task["folder"]), "died")
    if int(task["seed"]) == 2 and not mark.exists():
        mark.touch()
        os._exit(9)
    return {"seed": np.array(task["seed"])}
