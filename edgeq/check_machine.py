"""Whether a bundle's bits can hold on this machine: known before anything is computed.

ONNX Runtime's kernels were compared on 64-bit x86 and Arm. Of another machine nothing is known; and
an x86 CPU that saturates sums of products needs a session option for the right bits.

Part of a bundle's `check.py`: numpy, onnxruntime and standard library.
"""

import platform
import sys
from collections.abc import Mapping
from typing import Any

from edgeq.check_folder import CheckError
from edgeq.check_saturation import PRECISION, saturates

X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")


def machine_notes(manifest: Mapping[str, Any], any_cpu: bool) -> list[str]:
    """Return notes on why bits may differ on this machine, or on another one of its kind.

    Raises:
        CheckError: They may differ on this one, and `any_cpu` is not set.
    """
    machine = platform.machine().lower()
    doubt = ""
    if machine not in X86 + ARM or sys.maxsize < 2**32:
        bits = 32 if sys.maxsize < 2**32 else 64
        doubt = (
            f"nothing is known of this bundle's bits on {machine or 'this machine'} ({bits}-bit):"
            " ONNX Runtime's kernels were compared on 64-bit x86 and Arm alone"
        )
    elif machine in X86 and manifest["session_options"].get(PRECISION) != "1":
        if not saturates():
            return [
                f"the manifest does not set the session option {PRECISION}=1: x86 CPUs without"
                " VNNI saturate sums of uint8 * int8 products, so the bits may differ there"
            ]
        doubt = (
            "this CPU saturates sums of uint8 * int8 products unless the session option"
            f" {PRECISION}=1 is set, and the manifest does not set it"
        )
    if doubt and not any_cpu:
        raise CheckError(f"{doubt}: check on another CPU, or say --any-cpu to compare all the same")
    return [doubt] if doubt else []
