"""Read `report.json` back into the `Report` that was written."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.errors import BundleError
from edgeq.report import SCHEMA_VERSION, Report


def read_report(path: Path) -> Report:
    """Read a report; figures that JSON cannot hold come back as NaN.

    Raises:
        BundleError: The file is no report that this edgeq reads.
    """
    try:
        entry = json.loads(path.read_text("utf-8"))
        if entry.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema_version is not {SCHEMA_VERSION}")
        report: Report = _restore(Report, entry)
        return report
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path}: not a report that this edgeq reads: {error}") from error


def _restore(kind: Any, value: Any) -> Any:  # noqa: ANN401  # any annotation of a report's
    """Return what JSON made `value` of; `kind` is the annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        return None if value is None else _restore(arguments[0], value)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_restore(k, item) for k, item in zip(kinds, value, strict=True))
    if origin is Mapping:
        return {str(key): _restore(arguments[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        restored = {name: _restore(hints[name], item) for name, item in value.items()}
        return typing.cast(Any, kind)(**restored)
    if kind is float:
        return math.nan if value is None else float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
