"""What `check` says of the machine that it runs on: refusals, up front, and memory."""

import json
import platform
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import edgeq
from edgeq import check_bits, check_machine, check_memory
from edgeq.check_folder import CheckError
from edgeq.check_machine import machine_notes
from edgeq.check_memory import MemoryMeter
from edgeq.check_session import cpu_name
from edgeq.cli import app
from tests.manifests import rewrite_manifest

PRECISE = {"session_options": {"session.x64quantprecision": "1"}}
PLAIN: dict[str, dict[str, str]] = {"session_options": {}}


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64", "ARM64"])
def test_measured_machines_pass(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert machine_notes(PRECISE, False) == []


@pytest.mark.parametrize(
    "machine", ["riscv64", "ppc64le", "s390x", "armv7l", "aarch64_be", "loongarch64", "i686", ""]
)
def test_other_machines_are_refused_unless_allowed(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(CheckError, match="nothing is known of this bundle's bits") as refused:
        machine_notes(PRECISE, False)
    assert f" on {machine or 'this machine'} (64-bit)" in str(refused.value)
    assert "--any-cpu" in str(refused.value) and refused.value.exit_status == 2
    (note,) = machine_notes(PRECISE, True)
    assert note in str(refused.value)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_32_bit_python_has_other_kernels(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(CheckError, match=rf"on {machine} \(32-bit\)"):
        machine_notes(PRECISE, False)


@pytest.mark.parametrize(
    ("rule", "machine", "saturates", "options", "refused", "notes"),
    [
        ("the option is set", "x86_64", True, PRECISE, False, 0),
        ("the option is missing", "x86_64", True, PLAIN, True, 1),
        ("missing, but nothing saturates", "x86_64", False, PLAIN, False, 1),
        ("Arm has no such option", "aarch64", False, PLAIN, False, 0),
        ("off", "x86_64", True, {"session_options": {"session.x64quantprecision": "0"}}, True, 1),
    ],
)
def test_saturation(monkeypatch, rule, machine, saturates, options, refused, notes):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(check_machine, "saturates", lambda: saturates)
    if refused:
        with pytest.raises(CheckError, match=r"session\.x64quantprecision=1 is set"):
            machine_notes(options, False)
    assert len(machine_notes(options, True)) == notes


def test_check_refuses_before_it_computes(monkeypatch, bundle):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    found = CliRunner().invoke(app, ["check", str(bundle.path)])
    assert found.exit_code == 2 and found.stdout == ""
    assert "on riscv64 (64-bit)" in found.stderr and "--any-cpu" in found.stderr
    found = CliRunner().invoke(app, ["check", str(bundle.path), "--any-cpu", "--json"])
    assert found.exit_code == 0 and "riscv64" in json.loads(found.stdout)["notes"][0]
    with pytest.raises(edgeq.EdgeqError, match="riscv64"):
        edgeq.check(bundle)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="an option of x86 CPUs")
def test_the_option_is_named_where_bits_differ(monkeypatch, bundle):
    monkeypatch.setattr(check_machine, "saturates", lambda: True)
    monkeypatch.setattr(check_bits, "difference", lambda name, *rest: (1, f"tensor {name!r}"))
    rewrite_manifest(bundle.path, session_options={})
    found = CliRunner().invoke(app, ["check", str(bundle.path)])
    assert found.exit_code == 2 and "session.x64quantprecision=1" in found.stderr
    found = CliRunner().invoke(app, ["check", str(bundle.path), "--any-cpu"])
    assert found.exit_code == 1 and "elements differ" in found.stderr
    assert "session.x64quantprecision=1" in found.stderr


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nmodel name\t: b\n", "AMD EPYC"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", "Arm implementer 0x41, part 0xd08"),
        (
            "CPU part\t: 0xd0b\n\nHardware\t: BCM\nModel\t\t: Raspberry Pi 5\n",
            "Raspberry Pi 5, Arm implementer unknown, part 0xd0b",
        ),
        ("", ""),
        ("no colon", ""),
    ],
)
def test_the_name_of_a_cpu(info, name):
    assert cpu_name(info) == name


def test_memory_of_a_check(bundle):
    found = edgeq.check(bundle, repeat=1)
    assert set(found.memory_mib) == {"peak", "session"}
    assert found.memory_mib["peak"] > 20
    assert found.memory_mib["peak"] > found.memory_mib["session"] >= 0


def test_a_session_that_takes_memory_shows_it():
    meter = MemoryMeter()
    held = np.ones(2**26, np.uint8)
    meter.session_ran()
    del held
    found = meter.mib()
    assert 60 < found["session"] < 80 and found["peak"] > 80


def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource", reason="not on Windows")
    monkeypatch.setattr(check_memory, "Path", lambda path: tmp_path / "none")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert MemoryMeter().mib()["peak"] == pytest.approx(peak, rel=0.1)
    monkeypatch.setattr(sys, "platform", "darwin")  # whose figure is in bytes
    assert MemoryMeter().mib()["peak"] == pytest.approx(peak / 1024, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert MemoryMeter().mib() == {}
