"""One bundle gives the same bits on every CPU, or is refused there: checked on emulated CPUs."""

import shutil
from pathlib import Path

import pytest

import edgeq
from benchmarks.cpus import check_on, make_bundle
from benchmarks.emulation import installed, python_on
from edgeq.cpus import CPUS
from edgeq.predicted_check import predict_check
from tests.manifests import rewrite_manifest

EMULATED = [cpu.name for cpu in CPUS.values() if cpu.emulated]
RUNS = 12  # golden inputs: emulation is a hundred times slower

emulated = pytest.mark.skipif(not installed(), reason="python -m benchmarks.emulation installs it")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle("digits", "int8", Path(), tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def kws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.cases import ZOO

    return make_bundle("kws-dscnn", "int8", ZOO, tmp_path_factory.mktemp("bundles"))


@pytest.mark.emulated
@emulated
@pytest.mark.parametrize("name", EMULATED)
def test_digits_on_an_emulated_cpu(digits: Path, name: str) -> None:
    cell = check_on(CPUS[name], digits, RUNS)
    assert cell.same and cell.compared > 50_000, cell


@pytest.mark.emulated
@pytest.mark.zoo
@emulated
@pytest.mark.parametrize("name", EMULATED)
def test_kws_on_an_emulated_cpu(kws: Path, name: str) -> None:
    cell = check_on(CPUS[name], kws, RUNS)
    assert cell.same and cell.compared > 500_000, cell


@pytest.mark.emulated
@emulated
def test_the_command_checks_on_an_emulated_cpu(digits: Path) -> None:
    runner = "python3 -m benchmarks.emulation --cpu aarch64 {}"
    found = edgeq.check(digits, runner=runner, runs=2, repeat=1, taps=True)
    found.raise_for_mismatch()
    assert found.host["machine"] == "aarch64" and found.tensors == 11
    assert "part 0xd08" in str(found.host["cpu"])


@pytest.mark.emulated
@emulated
def test_what_cannot_hold_there_is_refused(digits: Path, tmp_path: Path) -> None:
    """The planted fault: without the precision option, products saturate on AVX2 alone."""
    copy = tmp_path / "bundle"
    shutil.copytree(digits, copy)
    rewrite_manifest(copy, session_options={})
    refused = check_on(CPUS["x86-64-avx2"], copy, RUNS)
    assert not refused.compared and "session.x64quantprecision=1" in refused.message
    there = check_on(CPUS["x86-64-avx2"], copy, RUNS, any_cpu=True)
    predicted = predict_check(copy, "x86-64-avx2", runs=RUNS)
    assert there.differing > 0 and predicted.mismatches > 0
    assert check_on(CPUS["aarch64"], copy, RUNS).same
    assert predict_check(copy, "aarch64", runs=RUNS).exit_status == 0


@pytest.mark.parametrize("name", CPUS)
def test_every_cpu_is_predicted_to_give_the_golden_bits(digits: Path, name: str) -> None:
    found = predict_check(digits, name, runs=RUNS)
    assert found.exit_status == 0 and found.unknown == () and found.compared > 50_000
    assert found.lines()[-1] == "ok: the same bits there"


def test_a_prediction_needs_inputs_and_a_known_cpu(digits: Path) -> None:
    model = digits / "model.onnx"
    with pytest.raises(edgeq.EdgeqError, match="needs --inputs"):
        predict_check(model, "aarch64")
    with pytest.raises(edgeq.EdgeqError, match="no CPU 'pentium'"):
        predict_check(digits, "pentium")


def test_python_of_another_cpu() -> None:
    command = python_on(CPUS["aarch64-dotprod"])
    assert command[0].endswith("qemu-aarch64-static") and "neoverse-n1" in command
    assert "-L" not in python_on(CPUS["x86-64-sse4"])
