"""Run the simulator, the device and the float model side by side, and keep what they show.

One sweep over the samples compares every quantized tensor bit for bit, measures each against the
float model, and collects the golden vectors. Nothing grows with the number of samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.fidelity import Fidelity, FidelityMeter
from edgeq.golden import GoldenVectors
from edgeq.graph import weight_bytes
from edgeq.numerics.affine import QParams
from edgeq.qdq import REAL_NAME, quantized_tensors
from edgeq.request import Progress, silent
from edgeq.simulate import Simulator
from edgeq.spool import Spool
from edgeq.targeting import Runner, Target
from edgeq.verify import Comparison, Verdict

Arrays = dict[str, NDArray[Any]]
_FEED, _OUTPUT = "feed ", "output "


HELD = 2**26  # bytes of weights; sessions on larger models are not all kept open at once


class Device:
    """The lowered model on its target: with taps, and as users run it.

    Attributes:
        held: Whether every session, once opened, stays open; each packs the weights for itself.
    """

    def __init__(self, target: Target, model: ir.Model, taps: Iterable[str]) -> None:
        """Prepare to load `model`; nothing is loaded yet."""
        self.held = weight_bytes(model) <= HELD
        self._open: tuple[Callable[[], Runner], ...] = (
            partial(target.load, model, taps=tuple(taps)),
            partial(target.load, model, threads=1),
            partial(target.load, model, threads=2),
            partial(target.load, model, threads=1, all_options=True),
        )
        self._kept: dict[int, Runner] = {}

    def tapped(self) -> Runner:
        """Return the model with every quantized tensor as an output."""
        return self._runner(0)

    def plain(self) -> Iterator[Runner]:
        """Yield the model as users run it: 1 thread, 2, and all session options of the bundle."""
        return (self._runner(form) for form in range(1, len(self._open)))

    def deployed(self) -> Runner:
        """Return the model as users run it, with 2 threads."""
        return self._runner(2)

    def _runner(self, form: int) -> Runner:
        if not self.held:
            return self._open[form]()
        if form not in self._kept:
            self._kept[form] = self._open[form]()
        return self._kept[form]


class Sweep:
    """Everything that one run over feeds tells about a quantized model."""

    def __init__(
        self,
        model: ir.Model,
        device: Device,
        qparams: Mapping[str, QParams],
        tolerances: Mapping[str, float] | None = None,
        taps: Iterable[str] | None = None,
    ) -> None:
        """Prepare.

        Args:
            model: The quantized model.
            device: It, lowered and loaded.
            qparams: The parameters of the float model's values that became codes.
            tolerances: Of values that need not be the same bit for bit.
            taps: The quantized tensors to compare; all by default.
        """
        self.simulator = Simulator(model)
        self.device = device
        self.taps = tuple(quantized_tensors(model) if taps is None else taps)
        self.outputs = tuple(str(v.name) for v in model.graph.outputs)
        self.tolerances = tolerances or {}
        self.golden = GoldenVectors([name for name in self.taps if name not in self.tolerances])
        found = _real_names(model, qparams)
        self.real_names = {codes: real for codes, real in found.items() if codes in self.taps}
        self._meters = {
            codes: FidelityMeter(real, qparams[real]) for codes, real in self.real_names.items()
        }
        for name in self.outputs:
            self._meters.setdefault(name, FidelityMeter(name))

    @property
    def fidelities(self) -> tuple[Fidelity, ...]:
        """How far every tensor is from the float model, in graph order."""
        return tuple(meter.result() for meter in self._meters.values())

    @property
    def codes(self) -> dict[str, NDArray[np.int64]]:
        """How often the codes of each quantized tensor were seen, by its name in the float model.

        In parts of their range: `edgeq.fidelity.count_codes`.
        """
        found = {meter.name: meter.codes for meter in self._meters.values()}
        return {name: counts for name, counts in found.items() if counts is not None}

    def verify(
        self,
        feeds: Iterable[Arrays],
        float_runner: Runner | None = None,
        progress: Progress = silent,
        stage: str = "verify",
        total: int | None = None,
    ) -> tuple[Verdict, int]:
        """Compare simulator and device on `feeds`; return the verdict and the number of feeds.

        Args:
            feeds: Consumed one at a time.
            float_runner: Runs the float model with the values of `real_names` as further outputs;
                None for feeds that are no samples (they measure nothing).
            progress: Told after every feed.
            stage: What it is told.
            total: Number of feeds, if known.
        """
        comparison = Comparison(self.tolerances)
        count, later = 0, None
        tapped = self.device.tapped()
        for feed in feeds:
            expected = self.simulator.run(feed, self.taps)
            comparison.add(expected, tapped.run(feed), feed, count)
            plain = {name: expected[name] for name in self.outputs}
            if self.device.held:
                for runner in self.device.plain():
                    comparison.add(plain, runner.run(feed), feed, count)
            else:
                later = _keep(later, feed, plain)
            if float_runner is not None:
                self._measure(feed, expected, float_runner)
            self.golden.add(feed, plain, expected, share=1.0 if float_runner is None else 0.5)
            count += 1
            progress(stage, count, total)
        del tapped
        if later is not None:
            self._compare_plain(comparison, later)
        return comparison.verdict(), count

    def _compare_plain(self, comparison: Comparison, runs: Spool) -> None:
        """Compare the plain forms one after the other, so that only one of them is open."""
        for runner in self.device.plain():
            for count, (arrays, _) in enumerate(runs):
                feed = {n[len(_FEED) :]: a for n, a in arrays.items() if n.startswith(_FEED)}
                expected = {name: arrays[_OUTPUT + name] for name in self.outputs}
                comparison.add(expected, runner.run(feed), feed, count)
            del runner  # before the next one is opened

    def _measure(self, feed: Arrays, expected: Arrays, float_runner: Runner) -> None:
        real_feed = {k: v.astype(np.float32) if v.dtype == np.uint8 else v for k, v in feed.items()}
        real = float_runner.run(real_feed)
        for name, meter in self._meters.items():
            meter.add(real[self.real_names.get(name, name)], expected[name])


def _keep(spool: Spool | None, feed: Arrays, outputs: Arrays) -> Spool:
    """Put a run on disk."""
    arrays = {_FEED + name: array for name, array in feed.items()}
    arrays |= {_OUTPUT + name: array for name, array in outputs.items()}
    spool = Spool(list(arrays)) if spool is None else spool
    spool.add(arrays, None)
    return spool


def _real_names(model: ir.Model, qparams: Mapping[str, QParams]) -> dict[str, str]:
    """Return, for codes that stand for a computed value of the float model, that value's name."""
    inputs = {str(value.name) for value in model.graph.inputs}
    names: dict[str, str] = {}
    for node in model.graph:
        for value in node.outputs:
            real = value.metadata_props.get(REAL_NAME)
            if real in qparams and real not in inputs:
                names[str(value.name)] = str(real)
    return names
