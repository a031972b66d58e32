"""The device that learned passes compute on: torch's `cpu` or `cuda`."""

from edgeq.errors import DataError

DEVICES = ("cpu", "cuda")


def check_device(name: str) -> None:
    """Refuse a device that is not there, before any work.

    Raises:
        DataError: There is no such device, torch is missing, or it sees no GPU.
    """
    if name not in DEVICES:
        raise DataError(f"--device {name}: choose from {', '.join(DEVICES)}")
    if name == "cpu":
        return
    try:
        import torch
    except ImportError as error:
        raise DataError(
            f"--device {name} needs torch ({error}): pip install edgeq[torch]"
        ) from None
    if not torch.cuda.is_available():
        raise DataError(
            f"--device {name}: torch {torch.__version__} sees no GPU here; install a build of torch"
            " for CUDA and the driver, or use --device cpu"
        )
