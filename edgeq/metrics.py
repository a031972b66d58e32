"""What a model is worth, in one number over an evaluation set; O(1) memory.

The first output is compared with `label`, or, for `sqnr`, all outputs with the float model's.
`value` sums in float64 over everything seen, in the order it came. Labels of classes that are
`IGNORED` do not count: so a window of tokens can be filled up to a length.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError, UnknownNameError, suggest
from edgeq.user_code import find_function

Array = NDArray[Any]
Arrays = Mapping[str, Array]
IGNORED = -100  # the same number as torch.nn.CrossEntropyLoss's
_LEAST = 1e-30  # an error of zero counts as this, so that decibels stay finite


class Metric(ABC):
    """A figure of merit that is accumulated feed by feed.

    Attributes:
        name: As users write it.
        higher_is_better: Whether more is better.
        needs_label: Whether the data need an array `label`.
    """

    name: ClassVar[str]
    higher_is_better: bool = True
    needs_label: bool = True

    @abstractmethod
    def update(self, outputs: Arrays, reference: Arrays, label: Array | None) -> None:
        """Take one feed's results in.

        Args:
            outputs: Of the model in question, as reals, by name, with the batch axis.
            reference: The same of the float model.
            label: What the data say; None where they say nothing.

        Raises:
            DataError: The label is missing, or does not fit the outputs.
        """

    @abstractmethod
    def value(self) -> float:
        """Return the metric over all feeds so far.

        Raises:
            DataError: There were none.
        """


class _LabelMean(Metric):
    """The mean of a number per label, or per image."""

    factor: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def update(self, outputs: Arrays, reference: Arrays, label: Array | None) -> None:
        """Take one feed's results in; see `Metric.update`."""
        if label is None:
            raise DataError(f"metric {self.name}: the evaluation data have no array 'label'")
        name, output = next(iter(outputs.items()))
        expected = self.label_shape(output)
        if label.shape != expected:
            raise DataError(
                f"metric {self.name}: label has shape {list(label.shape)}, the output {name!r}"
                f" takes {list(expected)}"
            )
        total, count = self.sum_and_count(output.astype(np.float64), label)
        self._total, self._count = self._total + total, self._count + count

    def value(self) -> float:
        """Return the mean."""
        if self._count == 0:
            raise DataError(f"metric {self.name}: there were no samples")
        return self.factor * self._total / self._count

    def label_shape(self, output: Array) -> tuple[int, ...]:
        """Return the shape that the label of `output` has."""
        return output.shape

    @abstractmethod
    def sum_and_count(self, output: Array, label: Array) -> tuple[float, int]:
        """Return the sum over the labels of one feed, and their number."""


class _Classes(_LabelMean):
    """The label is the number of a class, counted along the output's last axis."""

    def label_shape(self, output: Array) -> tuple[int, ...]:
        """Return the shape without the axis of classes."""
        return output.shape[:-1]

    def sum_and_count(self, output: Array, label: Array) -> tuple[float, int]:
        """Return the sum of `score`, and the number of labels."""
        classes, counts = output.shape[-1], label != IGNORED
        output, label = output[counts], label[counts]
        if label.dtype.kind not in "iu" or (label < 0).any():
            raise DataError(
                f"metric {self.name}: label must be class numbers, integers from 0"
                f" ({IGNORED}: does not count)"
            )
        if label.size and label.max() >= classes:
            raise DataError(
                f"metric {self.name}: label {label.max()}, but the output has {classes} classes"
            )
        return self.score(output, label.astype(np.int64)), label.size

    @abstractmethod
    def score(self, output: Array, label: Array) -> float:
        """Return the sum over the labels of one feed."""


class Top1(_Classes):
    """Labels whose class has the largest output, in percent; of equal ones the first counts."""

    name = "top1"
    factor = 100.0

    def score(self, output: Array, label: Array) -> float:
        """Return how many are right."""
        return float((output.argmax(-1) == label).sum())


class Nll(_Classes):
    """Negative log likelihood of the label under the softmax of the output, in nats per label."""

    name = "nll"
    higher_is_better = False

    def score(self, output: Array, label: Array) -> float:
        """Return the sum of `-log softmax(output)[label]`."""
        logits = output - output.max(-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -float(np.take_along_axis(logp, label[..., None], -1).sum())


class Perplexity(Nll):
    """How many classes a model hesitates between: `exp(nll)`, over all labels."""

    name = "perplexity"

    def value(self) -> float:
        """Return it; infinite where float64 ends."""
        with np.errstate(over="ignore"):
            return float(np.exp(super().value()))


class Mse(_LabelMean):
    """Mean squared error, per element."""

    name = "mse"
    higher_is_better = False

    def sum_and_count(self, output: Array, label: Array) -> tuple[float, int]:
        """Return the squared errors and the number of elements."""
        return float(((output - label) ** 2).sum()), label.size


class Psnr(_LabelMean):
    """Peak signal to noise ratio of images in [0, 1], in dB; the mean over the images."""

    name = "psnr"

    def sum_and_count(self, output: Array, label: Array) -> tuple[float, int]:
        """Return the decibels of each image, summed, and the number of images."""
        if label.dtype.kind != "f":
            raise DataError(f"metric psnr: label is {label.dtype}; give images in [0, 1] as float")
        error = (np.clip(output, 0, 1) - label) ** 2
        means = np.maximum(error.reshape(len(error), -1).mean(1), _LEAST)
        return float((10 * np.log10(1 / means)).sum()), len(error)


class Sqnr(Metric):
    """Power of the float model's outputs over that of the difference to them, in dB."""

    name = "sqnr"
    needs_label = False

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._count = 0

    def update(self, outputs: Arrays, reference: Arrays, label: Array | None) -> None:
        """Take one feed's results in; see `Metric.update`."""
        for name, real in reference.items():
            wide = real.astype(np.float64)
            self._signal += float((wide**2).sum())
            self._noise += float(((outputs[name].astype(np.float64) - wide) ** 2).sum())
            self._count += real.size

    def value(self) -> float:
        """Return the decibels; without a difference those of a noise power of 1e-30."""
        if self._count == 0:
            raise DataError("metric sqnr: there were no samples")
        return float(10 * np.log10(max(self._signal, _LEAST) / max(self._noise, _LEAST)))


class UserMetric(Metric):
    """The mean of what a user's function returns: `FUNCTION(outputs, reference, label)`.

    It returns a number per feed, or an array of one per sample. An attribute `higher_is_better` of
    the function is taken over.
    """

    needs_label = False

    def __init__(self, text: str) -> None:
        """Import `MODULE:FUNCTION`.

        Raises:
            DataError: There is no such function.
        """
        self._text = text
        self._function: Callable[..., object] = find_function(text)
        self.higher_is_better = bool(getattr(self._function, "higher_is_better", True))
        self._total, self._count = 0.0, 0

    def update(self, outputs: Arrays, reference: Arrays, label: Array | None) -> None:
        """Take one feed's results in; see `Metric.update`."""
        try:
            found = self._function(dict(outputs), dict(reference), label)
            values = np.asarray(found, np.float64)
        except Exception as error:  # the user's code can raise anything
            raise DataError(
                f"metric {self._text} failed: {type(error).__name__}: {error}"
            ) from error
        if values.size == 0 or not np.isfinite(values).all():
            raise DataError(f"metric {self._text} returned {found!r}; return finite numbers")
        self._total += float(values.sum())
        self._count += values.size

    def value(self) -> float:
        """Return the mean."""
        if self._count == 0:
            raise DataError(f"metric {self._text}: there were no samples")
        return self._total / self._count


_METRICS: tuple[type[Metric], ...] = (Top1, Nll, Perplexity, Psnr, Mse, Sqnr)


def metric_names() -> list[str]:
    """Return the names of the metrics that come with edgeq."""
    return [cls.name for cls in _METRICS]


def find_metric(name: str) -> Metric:
    """Return a new metric: one of `metric_names()`, or `MODULE:FUNCTION`.

    Raises:
        UnknownNameError: There is no such metric.
        DataError: There is no such function.
    """
    for cls in _METRICS:
        if cls.name == name:
            return cls()
    if ":" in name:
        return UserMetric(name)
    raise UnknownNameError(
        f"no metric {name!r}{suggest(name, metric_names())}; known metrics:"
        f" {', '.join(metric_names())}, or MODULE:FUNCTION"
    )
