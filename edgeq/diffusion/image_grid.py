"""Images side by side, as a PNG. The only module that imports Pillow."""

import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError

GAP = 2  # white pixels between images
HEIGHT = 64  # smaller images are enlarged by a whole factor, up to this


def is_drawable(images: NDArray[Any]) -> bool:
    """Whether `images` are `(images, channels, height, width)`, grey or in colours."""
    return images.ndim == 4 and images.shape[1] in (1, 3)


def image_grid(rows: Sequence[NDArray[Any]]) -> bytes:
    """Return a PNG of rows of images; the same images give the same bytes.

    Args:
        rows: Each `(images, channels, height, width)` of one shape; one channel or three, values
            in [-1, 1], clipped to that.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        image = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise DataError(f"{error}; image grids need `pip install edgeq[diffusers]`") from error
    table = np.stack(rows)
    levels = np.rint((np.clip(table, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    factor = max(1, HEIGHT // table.shape[-2])
    large = levels.repeat(factor, axis=-2).repeat(factor, axis=-1)
    padding = ((0, 0), (0, 0), (0, 0), (0, GAP), (0, GAP))
    framed = np.pad(large, padding, constant_values=255)
    count, length, channels, height, width = framed.shape
    page = framed.transpose(0, 3, 1, 4, 2).reshape(count * height, length * width, channels)
    page = page[:-GAP, :-GAP, 0] if channels == 1 else page[:-GAP, :-GAP]
    file = io.BytesIO()
    image.fromarray(np.ascontiguousarray(page)).save(file, "PNG")
    return file.getvalue()
