"""Check a bundle, or any QDQ model, as a named CPU would compute it: predicted, without the CPU.

A bundle is held against its golden vectors; another model against what ONNX Runtime makes of the
same inputs on this machine. Every quantized tensor is predicted and compared. Where a tensor cannot
be predicted the check does not pass, and the nodes that are the reason are named.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from edgeq.bundle import open_bundle
from edgeq.check_bits import difference, digest
from edgeq.check_folder import CheckError, altered_files, golden, inside, read_arrays, read_manifest
from edgeq.cpus import CPUS, find_cpu
from edgeq.data import input_specs, open_samples
from edgeq.errors import BundleError, DataError
from edgeq.graph import constant
from edgeq.opening import open_model
from edgeq.predict import Arrays, Prediction
from edgeq.runtime import make_session, run
from edgeq.targets.ort_cpu import tap

HERE = "this machine's"
SHOWN = 10  # tensors and nodes in the text; the JSON has all


@dataclass
class PredictedCheck:
    """What a predicted check found.

    Attributes:
        source: The bundle's folder, or the model's file.
        cpu: The CPU, as `edgeq.cpus` names it.
        against: What the prediction was compared with, in words.
        compared: Elements compared.
        differing: Elements that differ, by tensor; of a tensor known by its digest, one per run.
        first: The first difference, in words.
        unknown: Tensors that could not be predicted.
        reasons: Why not, by node.
    """

    source: str
    cpu: str
    against: str
    compared: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    first: str | None = None
    unknown: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def mismatches(self) -> int:
        """Elements that differ, in all tensors."""
        return sum(self.differing.values())

    @property
    def exit_status(self) -> int:
        """0 when every tensor was predicted, and none differs."""
        return int(bool(self.mismatches or self.unknown or not self.compared))

    def to_json(self) -> dict[str, object]:
        """Return the object that `--json` prints."""
        return {**vars(self), "mismatches": self.mismatches, "unknown": list(self.unknown)}

    def lines(self) -> list[str]:
        """Return the result as lines for people."""
        text = [
            f"predicted for {self.cpu} ({CPUS[self.cpu].summary}): {self.mismatches} of"
            f" {self.compared} elements differ from {self.against}"
        ]
        worst = sorted(self.differing.items(), key=lambda item: -item[1])
        text += [f"  {name}: {count}" for name, count in worst[:SHOWN]]
        if self.first is not None:
            text.append(f"first difference: {self.first}")
        if self.unknown:
            text.append(f"{len(self.unknown)} tensors cannot be predicted, because of")
            text += [f"  {node}: {reason}" for node, reason in list(self.reasons.items())[:SHOWN]]
            hidden = len(self.reasons) - SHOWN
            text += [f"  and {hidden} nodes more"] if hidden > 0 else []
            if self.against == HERE:
                text.append(f"edgeq lint {self.source} --fix -o FIXED.onnx writes many of them so")
                text[-1] += " that every CPU makes the same bits"
        verdict = "FAILED" if self.mismatches else "not known: something is not predicted"
        text.append(verdict if self.exit_status else "ok: the same bits there")
        return text

    def count(self, name: str, size: int, differing: int, text: str) -> None:
        """Add what was found of one tensor in one run."""
        self.compared += size
        if differing:
            self.differing[name] = self.differing.get(name, 0) + differing
            self.first = self.first or text


def predict_check(
    source: str | os.PathLike[str],
    cpu: str,
    *,
    inputs: str | os.PathLike[str] | None = None,
    runs: int | None = None,
) -> PredictedCheck:
    """Predict what `cpu` computes, and compare.

    Args:
        source: A bundle of `ort-cpu`, or an `.onnx` file.
        cpu: A name of `edgeq.cpus`, or qemu's for such a CPU.
        inputs: For a model: `.npz` with its inputs, sample axis first.
        runs: How many golden inputs or samples, the first ones; None: all.

    Raises:
        EdgeqError: Something cannot be read, or there is no such CPU.
    """
    chosen = find_cpu(cpu)
    path = Path(source)
    if path.is_dir():
        try:
            return _bundle(path, chosen.name, runs)
        except CheckError as error:
            raise BundleError(str(error)) from error
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            # The manifest is not trusted, and these are what a wrong one leads to.
            text = f"{path}: the manifest does not fit the bundle: {error!r}"
            raise BundleError(text) from error
    if inputs is None:
        raise DataError("--as on a model needs --inputs X.npz; a bundle has golden inputs")
    model = as_deployed(path)
    tapped = tap(model, code_names(model))
    result = PredictedCheck(str(source), chosen.name, HERE)
    prediction, session = Prediction(tapped, chosen), make_session(tapped)
    for number, feeds in enumerate(
        open_samples(inputs, inputs=input_specs(model), limit=runs or None)
    ):
        expected = run(session, feeds)
        predicted = prediction.run(feeds)
        for name, array in predicted.items():
            result.count(name, array.size, *difference(name, number, expected[name], array))
        result.unknown = tuple(name for name in expected if name not in predicted)
    result.reasons = prediction.unpredicted
    return result


def as_deployed(path: Path) -> ir.Model:
    """Return a model as its file has it: what ONNX Runtime fuses depends on the spelling.

    Raises:
        ModelError: It cannot be read.
    """
    open_model(path)  # refuses, in words, what cannot be read
    return ir.load(path)


def code_names(model: ir.Model) -> list[str]:
    """Return the names of what QuantizeLinear nodes make at run time, and give it its type."""
    names = []
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or constant(node.inputs[0]) is not None:
            continue
        codes, zero = node.outputs[0], constant(node.inputs[2]) if len(node.inputs) > 2 else None
        codes.dtype = ir.DataType.UINT8 if zero is None else ir.DataType.from_numpy(zero.dtype)
        names.append(str(codes.name))
    return names


def _bundle(folder: Path, cpu: str, runs: int | None) -> PredictedCheck:
    manifest = read_manifest(folder)
    if manifest["target"] != "ort-cpu":
        raise CheckError(f"--as is for ort-cpu; this bundle is {manifest['target']}")
    altered = altered_files(folder, manifest)
    if altered:
        raise CheckError(f"{folder}: altered or missing: {', '.join(altered)}")
    bundle = open_bundle(folder)
    taps = [item["name"] for item in manifest.get("taps", [])]
    model = tap(ir.load(inside(folder, manifest["artifact"])), taps)
    prediction = Prediction(model, CPUS[cpu], bundle.manifest.session_options)
    stored = read_arrays(inside(folder, "golden/taps.npz"))["digests"]
    result = PredictedCheck(str(folder), cpu, "the golden vectors")
    unknown: dict[str, None] = {}
    for number, (feeds, outputs) in enumerate(_golden(folder, manifest, runs)):
        found = prediction.run(feeds)
        unknown |= dict.fromkeys(n for n in (*outputs, *taps) if n not in found)
        for name, expected in outputs.items():
            if name in found:
                made = difference(name, number, expected, found[name])
                result.count(name, expected.size, *made)
        for place, name in enumerate(taps):
            if name in found:
                same = digest(found[name]) == stored[place, number].tobytes()
                text = f"tap {name!r}, feed {number}"
                result.count(name, found[name].size, int(not same), text)
    result.unknown, result.reasons = tuple(unknown), prediction.unpredicted
    return result


def _golden(
    folder: Path, manifest: Mapping[str, object], runs: int | None
) -> Iterator[tuple[Arrays, Arrays]]:
    feeds = golden(folder, manifest, "inputs")
    outputs = golden(folder, manifest, "outputs")
    yield from zip(feeds[:runs], outputs[:runs], strict=True)
