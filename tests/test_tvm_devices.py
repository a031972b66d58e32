"""Bundles for TVM's devices, built and run there or under emulation: all bits are compared."""

import gc
import re
import shutil
import subprocess
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import BundleError, EdgeqError, UnknownNameError
from edgeq.tvm.c_text import bytes_literal, float_literal
from edgeq.tvm.devices import DEVICES, Device, find_device
from edgeq.tvm.toolchain import CheckResult, missing_tools, read_result, run_check

pytest.importorskip("tvm", reason="needs TVM: pip install edgeq[tvm]")

from edgeq.tvm import codegen
from edgeq.tvm.dot import ISAS
from edgeq.tvm.model_source import C_TYPES
from edgeq.tvm.native_runner import NativeRunner
from edgeq.tvm.program import DTYPES
from edgeq.tvm.sources import make_sources
from tests import tvm_programs

pytestmark = pytest.mark.tvm
NATIVE = [device for device in DEVICES.values() if device.is_native]
EMULATED = [device for device in DEVICES.values() if not device.is_native]
PORTABLE = DEVICES["tvm-c"]
ELEMENTS = 4 * 2 * 5 * 6 * 7  # runs, outputs (or taps), and the shape of one


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def checked(files: Mapping[str, bytes], device: Device, folder: Path, **options) -> CheckResult:
    missing = missing_tools(device)
    if missing:
        pytest.skip(f"needs {'; '.join(missing)}")
    into = folder / "build"
    into.mkdir()
    return run_check(write(files, folder / "bundle"), device, into, **options)


def names(device: Device) -> str:
    return device.name


@pytest.mark.parametrize("device", NATIVE, ids=names)
def test_all_bits_are_equal_on_this_machine(device, tmp_path):
    result = checked(tvm_programs.sources(device).files, device, tmp_path, taps=True)
    assert result.passed and result.first == "", result.output
    assert (result.runs, result.compared) == (4, 2 * ELEMENTS)


@pytest.mark.emulated
@pytest.mark.parametrize("device", EMULATED, ids=names)
def test_all_bits_are_equal_on_the_emulated_device(device, tmp_path):
    result = checked(tvm_programs.sources(device).files, device, tmp_path, taps=True)
    assert result.passed and result.first == "", result.output
    assert (result.runs, result.compared) == (4, 2 * ELEMENTS)


def test_the_page_lists_every_device():
    text = (Path(__file__).parent.parent / "docs" / "devices.md").read_text()
    assert re.findall(r"^\| `(tvm-[a-z0-9-]+)` \|", text, re.MULTILINE) == list(DEVICES)


def test_every_device_multiplies_in_a_known_way():
    assert {device.isa for device in DEVICES.values()} <= set(ISAS)


def test_every_type_that_is_lowered_has_a_name_in_c():
    assert set(C_TYPES) == DTYPES


def test_without_taps_only_outputs_are_compared(tmp_path):
    result = checked(tvm_programs.sources(PORTABLE).files, PORTABLE, tmp_path)
    assert result.passed and result.compared == ELEMENTS
    assert result.microseconds is None or result.microseconds > 0


def test_a_changed_weight_is_found_and_its_kernel_named(tmp_path):
    faulty = tvm_programs.altered_weight(tvm_programs.sources(PORTABLE).files)
    result = checked(faulty, PORTABLE, tmp_path, taps=True)
    assert not result.passed
    assert result.first == "tap 'acc' int32[1, 5, 6, 7], feed 0, written by conv (Conv 'conv')"


def test_a_difference_names_the_tensor_the_index_and_both_values(tmp_path):
    faulty = tvm_programs.altered_weight(tvm_programs.sources(PORTABLE).files)
    result = checked(faulty, PORTABLE, tmp_path)
    place = r"output 'codes' uint8\[1, 5, 6, 7\], feed 0, index \[0, \d, \d, \d\]"
    found = re.fullmatch(place + r": expected (\d+), found (\d+)", result.first)
    assert not result.passed and found is not None and found[1] != found[2]


@pytest.mark.parametrize("rounded", [tvm_programs.half_up, tvm_programs.zero_point_first])
def test_another_rounding_is_found(rounded, tmp_path):
    faulty = tvm_programs.sources(PORTABLE, rounded=rounded).files
    result = checked(faulty, PORTABLE, tmp_path, taps=True)
    assert not result.passed
    assert result.first.startswith("tap 'conv'")


def test_contracted_multiply_add_is_found(tmp_path):
    device = DEVICES["tvm-x86-64"]
    if missing_tools(device):
        pytest.skip("needs an x86-64 CPU with fused multiply-add")
    fused = ("-ffp-contract=fast", "-mfma")
    result = checked(tvm_programs.sources(PORTABLE).files, PORTABLE, tmp_path, cflags=fused)
    assert not result.passed
    found = re.fullmatch(
        r"output 'reals' float32\[1, 5, 6, 7\], feed 0, index .*:"
        r" expected (\S+) \(0x([0-9a-f]{8})\), found (\S+) \(0x([0-9a-f]{8})\)",
        result.first,
    )
    assert found is not None
    for text, bits in ((found[1], found[2]), (found[3], found[4])):
        value = np.array([int(bits, 16)], np.uint32).view(np.float32)[0]
        assert float(text) == pytest.approx(float(value), rel=1e-7)


@pytest.mark.parametrize("name", ["tvm-x86-64", "tvm-aarch64"])
def test_without_fences_a_compiled_kernel_contracts_and_is_found(name, monkeypatch, tmp_path):
    monkeypatch.setattr(codegen, "_fenced", lambda body: body)
    result = checked(tvm_programs.sources(DEVICES[name]).files, DEVICES[name], tmp_path, taps=True)
    assert not result.passed
    assert result.first.startswith("output 'reals' float32[1, 5, 6, 7]")


@pytest.mark.emulated
@pytest.mark.parametrize("name", ["tvm-x86-64", "tvm-armv7", "tvm-wasm32"])
def test_vectors_keep_denormals(name, tmp_path):
    device = DEVICES[name]  # NEON of Armv7 flushes them: LLVM must not use it for floats
    program, golden = tvm_programs.denormals()
    kernels = codegen.compile_kernels(program.kernels, device.target)
    files = make_sources(program, device, kernels, golden, {}).files
    result = checked(files, device, tmp_path)
    assert result.passed and result.compared == 32


def test_nothing_compared_is_no_success(tmp_path):
    files = dict(tvm_programs.sources(PORTABLE).files)
    files["golden.c"] = files["golden.c"].replace(b"golden_runs = 4", b"golden_runs = 0")
    result = checked(files, PORTABLE, tmp_path)
    assert "Nothing was compared" in result.output
    assert result.errors == 0 and not result.passed


SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def test_sanitizers_find_nothing(tmp_path):
    result = checked(tvm_programs.sources(PORTABLE).files, PORTABLE, tmp_path, cflags=SANITIZERS)
    assert result.passed and result.compared == ELEMENTS


@pytest.mark.parametrize(
    ("device", "cflags", "complaint"),
    [
        (PORTABLE, SANITIZERS, "heap-buffer-overflow"),
        (PORTABLE, (), "ended by signal 11"),
        (DEVICES["tvm-x86-64"], (), "ended by signal 11"),
    ],
)
def test_a_workspace_that_is_too_small_is_found(device, cflags, complaint, tmp_path):
    if missing_tools(device):
        pytest.skip("needs an x86-64 CPU")
    sources = tvm_programs.sources(device)
    size = sources.memory.size
    old, new = (f"WORKSPACE_SIZE {n}".encode() for n in (size, size - 4 * 64))
    files = dict(sources.files)
    files["edgeq_model.h"] = files["edgeq_model.h"].replace(old, new)
    with pytest.raises(BundleError, match=complaint):
        checked(files, device, tmp_path, cflags=cflags)


@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize("name", ["tvm-x86-64", "tvm-c"])
def test_every_type_goes_in_and_out(name, shape, tmp_path):
    device = DEVICES[name]
    program, golden = tvm_programs.copies(list(C_TYPES), shape)
    kernels = codegen.compile_kernels(program.kernels, device.target)
    files = make_sources(program, device, kernels, golden, {}).files
    result = checked(files, device, tmp_path)
    assert result.passed and result.compared == len(C_TYPES) * int(np.prod(shape))
    runner = NativeRunner(tmp_path / "bundle", device, program, tmp_path)
    arrays = zip(program.inputs, golden[0].inputs, strict=True)
    found = runner.run({tensor.name: array for tensor, array in arrays})
    for tensor, array in zip(program.outputs, golden[0].outputs, strict=True):
        assert found[tensor.name].dtype == array.dtype and found[tensor.name].shape == shape
        assert found[tensor.name].tobytes() == array.tobytes(), tensor.name


def test_bound_code_holds_its_memory(tmp_path):
    device = PORTABLE
    folder = write(tvm_programs.sources(device).files, tmp_path / "bundle")
    program = tvm_programs.program(tvm_programs.constants())
    runner = NativeRunner(folder, device, program, tmp_path)
    workspace = weakref.ref(runner._workspace)
    run = runner.bound({"image": np.zeros(tvm_programs.SHAPE_X, np.uint8)})
    del runner
    gc.collect()
    assert workspace() is not None
    run()
    del run
    gc.collect()
    assert workspace() is None


def test_the_library_gives_outputs_and_taps(tmp_path):
    device = DEVICES["tvm-x86-64"]
    if missing_tools(device):
        device = PORTABLE
    held = tvm_programs.constants()
    program = tvm_programs.program(held)
    folder = write(tvm_programs.sources(device).files, tmp_path / "bundle")
    runner = NativeRunner(folder, device, program, tmp_path)
    random = np.random.default_rng(5)
    for _ in range(20):
        image = random.integers(0, 256, tvm_programs.SHAPE_X).astype(np.uint8)
        expected = tvm_programs.expected(held, image)
        found = runner.run({"image": image}, taps=("conv", "acc"))
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes(), name
    assert set(runner.run({"image": image})) == {"codes", "reals"}
    with pytest.raises(EdgeqError, match="'image' is missing"):
        runner.run({})
    with pytest.raises(EdgeqError, match="int8"):
        runner.run({"image": image.astype(np.int8)})


@pytest.mark.emulated
def test_flash_and_ram_are_measured(tmp_path):
    device = DEVICES["tvm-cortex-m4"]
    if missing := missing_tools(device, run=False):
        pytest.skip(f"needs {'; '.join(missing)}")
    sources = tvm_programs.sources(device)
    folder = write(sources.files, tmp_path / "bundle")
    command = ["make", "-s", "-C", str(folder), "size"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    text, data, bss = map(int, made.stdout.splitlines()[-1].split()[:3])
    assert 1000 < text - sources.weights < 10000
    assert data == bss == 0


def test_the_same_program_gives_the_same_bytes():
    first, second = (tvm_programs.sources(PORTABLE).files for _ in range(2))
    assert first == second


def test_literals_hold_every_pair_of_bytes(tmp_path):
    data = bytes(v for pair in range(65536) for v in (pair >> 8, pair & 255))
    source = tmp_path / "data.c"
    source.write_text(f"const unsigned char data[] =\n{bytes_literal(data)};\n")
    compiled = tmp_path / "data.o"
    subprocess.run(["gcc", "-Wall", "-Werror", "-c", source, "-o", compiled], check=True)
    assert data in compiled.read_bytes()


def test_float_literals_read_back():
    bits = np.random.default_rng(2).integers(0, 0x7F800000, 2000).astype(np.uint32)
    values = np.append(bits.view(np.float32), np.array([1.0, 0.1, 3e38, 1e-45], np.float32))
    for value in values:
        text = float_literal(float(value))
        assert text.endswith("f") and ("." in text or "e" in text)
        assert np.float32(text[:-1]) == value


def test_the_header_is_cpp_too(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++ (Debian: apt-get install g++)")
    folder = write(tvm_programs.sources(PORTABLE).files, tmp_path / "bundle")
    (folder / "use.cpp").write_text(
        '#include "edgeq_model.h"\n'
        "static int shape[EDGEQ_MODEL_INPUT_0_RANK] = EDGEQ_MODEL_INPUT_0_SHAPE;\n"
        "static const float scale = EDGEQ_MODEL_OUTPUT_0_SCALE;\n"
        "int main() { return shape[0] == 1 && scale > 0 ? 0 : EDGEQ_MODEL_OUTPUT_0_ZERO_POINT; }\n"
    )
    command = ["g++", "-std=c++98", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "use.cpp"]
    subprocess.run([w for w in command if w != "-std=c++98"], cwd=folder, check=True)


USE = """\
cmake_minimum_required(VERSION 3.13)
project(application C)
add_subdirectory(bundle)
add_executable(application application.c)
target_link_libraries(application edgeq_model)
"""
APPLICATION = """\
#include <stdio.h>
#include "edgeq_model.h"

static _Alignas(EDGEQ_MODEL_WORKSPACE_ALIGNMENT) unsigned char arena[EDGEQ_MODEL_WORKSPACE_SIZE];
static EDGEQ_MODEL_INPUT_0_TYPE image[EDGEQ_MODEL_INPUT_0_ELEMENTS];
static EDGEQ_MODEL_OUTPUT_0_TYPE codes[EDGEQ_MODEL_OUTPUT_0_ELEMENTS];
static EDGEQ_MODEL_OUTPUT_1_TYPE reals[EDGEQ_MODEL_OUTPUT_1_ELEMENTS];

int main(void) {
  const void *inputs[EDGEQ_MODEL_INPUTS] = {image};
  void *outputs[EDGEQ_MODEL_OUTPUTS] = {codes, reals};
  for (int i = 0; i < EDGEQ_MODEL_INPUT_0_ELEMENTS; ++i) image[i] = EDGEQ_MODEL_INPUT_0_ZERO_POINT;
  if (edgeq_model_run(inputs, outputs, arena + 1) != EDGEQ_MODEL_MISALIGNED) return 2;
  int status = edgeq_model_run(inputs, outputs, arena);
  for (int i = 0; i < EDGEQ_MODEL_OUTPUT_0_ELEMENTS; ++i) printf("%d ", codes[i]);
  return status;
}
"""


@pytest.mark.parametrize("name", ["tvm-x86-64", "tvm-c"])
def test_an_application_uses_the_model_through_cmake(name, tmp_path):
    device = DEVICES[name]
    if shutil.which("cmake") is None:
        pytest.skip("needs CMake (Debian: apt-get install cmake)")
    if missing := missing_tools(device):
        pytest.skip(f"needs {'; '.join(missing)}")
    write(tvm_programs.sources(device).files, tmp_path / "bundle")
    (tmp_path / "CMakeLists.txt").write_text(USE)
    (tmp_path / "application.c").write_text(APPLICATION)
    for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"]):
        made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    run = subprocess.run([tmp_path / "build" / "application"], capture_output=True, text=True)
    expected = tvm_programs.expected_of_zero()["codes"].ravel()
    assert run.returncode == 0
    assert run.stdout.split() == [str(code) for code in expected]


def test_a_missing_tool_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(EdgeqError, match="apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64"):
        run_check(tmp_path, DEVICES["tvm-aarch64"], tmp_path)


def test_a_missing_device_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'tvm-cortex-m"):
        find_device("tvm-cortex-m3")


def test_a_runner_without_a_place_for_the_program_is_refused(tmp_path):
    files = tvm_programs.sources(PORTABLE).files
    with pytest.raises(EdgeqError, match="has no"):
        checked(files, PORTABLE, tmp_path, runner="ssh board")


def test_a_program_that_contradicts_itself_is_refused():
    with pytest.raises(BundleError, match="status 1 after"):
        read_result("Errors: 0 out of 5 elements, in 1 runs\n", "", 1)
    with pytest.raises(BundleError, match="ended with status 0"):
        read_result("All is well\n", "", 0)
