"""A session of a bundle's artifact as the manifest wants it; versions and host facts.

Part of a bundle's `check.py`: numpy, onnxruntime and standard library.
"""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeq.check_folder import Arrays, CheckError, inside
from edgeq.check_saturation import needed_options


class Session(Protocol):
    """What is needed of an `onnxruntime.InferenceSession`, which has no types."""

    def run(self, names: Sequence[str] | None, feeds: Arrays) -> list[NDArray[Any]]:
        """Return the named outputs; all of them for None."""


# onnx.TensorProto.DataType of the values that can be tapped.
ELEMENT_TYPES = {
    **{"float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7},
    **{"bool": 9, "float16": 10, "float64": 11, "uint4": 21, "int4": 22},
    "float8_e4m3fn": 17,  # onnxruntime gives its bytes, as uint8
}


def runtime() -> Any:  # noqa: ANN401  # onnxruntime has no types
    """Return onnxruntime, imported so that it reports no usage, as its wheels for Linux would.

    Raises:
        CheckError: It cannot be imported here.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckError(f"onnxruntime cannot be imported here: {error}") from error

    return onnxruntime


def version_notes(manifest: Mapping[str, Any], found: str, any_version: bool) -> list[str]:
    """Return notes about the version of onnxruntime.

    Raises:
        CheckError: It lies outside the tested range and `any_version` is not set, or there is none.
    """
    low, high = str(manifest["runtime"]["at_least"]), str(manifest["runtime"]["below"])
    if not _version(low) or not _version(high):
        raise CheckError(f"the manifest names no versions of onnxruntime: {low!r} to {high!r}")
    if _version(low) <= _version(found) < _version(high):
        return []
    text = f"onnxruntime {found} was not tested; this bundle holds for >= {low}, < {high}"
    if not any_version:
        raise CheckError(f"{text}: install a tested one, or say --any-version")
    return [text]


def _version(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split("."):
        digits = "".join(c for c in part if c.isdecimal())[:9]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def host_facts() -> dict[str, str | int]:
    """Return what this machine is: CPU, system and versions."""
    onnxruntime = runtime()
    info = Path("/proc/cpuinfo")
    cpu = cpu_name(info.read_text(errors="replace")) if info.is_file() else ""
    return {
        "machine": platform.machine(),
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": str(onnxruntime.__version__),
    }


def cpu_name(info: str) -> str:
    """Return what the text of `/proc/cpuinfo` calls the CPU; of an Arm, its board and numbers."""
    pairs = [line.partition(":") for line in reversed(info.splitlines())]
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    if "CPU part" in facts:
        core = (
            f"Arm implementer {facts.get('CPU implementer', 'unknown')}, part {facts['CPU part']}"
        )
        return f"{facts['Model']}, {core}" if "Model" in facts else core
    return facts.get("model name", "")


def open_session(
    folder: Path, manifest: Mapping[str, Any], *, threads: int = 1, taps: bool = False
) -> Session:
    """Return a session of the artifact with those of the manifest's options that matter here.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        threads: Of the session.
        taps: Make every quantized tensor a further output. Two serialized protobuf messages, one
            behind the other, parse as their union, so the outputs are appended as bytes.

    Raises:
        CheckError: onnxruntime does not load the model.
    """
    onnxruntime = runtime()
    artifact = inside(folder, manifest["artifact"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    settings = needed_options(manifest["session_options"])
    model: str | bytes = str(artifact)
    if taps:
        model = artifact.read_bytes() + extra_outputs(manifest.get("taps", []))
        settings |= {"session.model_external_initializers_file_folder_path": str(artifact.parent)}
    try:
        for key, value in settings.items():
            options.add_session_config_entry(key, str(value))
        session: Session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        return session
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise CheckError(f"{artifact}: onnxruntime cannot load it: {error}") from error


def extra_outputs(taps: Sequence[Mapping[str, str]]) -> bytes:
    """Return a serialized `ModelProto` that holds nothing but further graph outputs."""

    def varint(number: int) -> bytes:
        low, rest = number & 127, number >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    def message(tag: int, payload: bytes) -> bytes:
        return varint(tag << 3 | 2) + varint(len(payload)) + payload

    outputs = b""
    for tap in taps:
        if tap["dtype"] not in ELEMENT_TYPES:
            raise CheckError(f"tap {tap['name']!r}: dtype {tap['dtype']!r} cannot be compared")
        tensor = b"\x08" + varint(ELEMENT_TYPES[tap["dtype"]])  # TypeProto.Tensor.elem_type
        value = message(1, tap["name"].encode()) + message(2, message(1, tensor))
        outputs += message(12, value)  # GraphProto.output
    return message(7, outputs)  # ModelProto.graph


def run_model(session: Session, names: Sequence[str], feeds: Arrays) -> list[NDArray[Any]]:
    """Return the named outputs, or all.

    Raises:
        CheckError: The session refuses the feeds.
    """
    try:
        return [np.asarray(value) for value in session.run(list(names) or None, feeds)]
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise CheckError(f"onnxruntime cannot run the model: {error}") from error


def measure(session: Session, feeds: Arrays, repeat: int | None) -> dict[str, float]:
    """Return `first`, `median` and `p95` of the time of one run, in milliseconds.

    Raises:
        CheckError: The session refuses the feeds.
    """
    times: list[float] = []
    deadline = time.perf_counter() + (0.5 if repeat is None else float("inf"))
    while len(times) < 2 or (len(times) <= (repeat or 50) and time.perf_counter() < deadline):
        before = time.perf_counter()
        run_model(session, (), feeds)
        times.append((time.perf_counter() - before) * 1e3)
    first, rest = times[0], np.array(times[1:])
    return {
        "median": float(np.median(rest)),
        "p95": float(np.percentile(rest, 95)),
        "first": first,
    }
