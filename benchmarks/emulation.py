"""Python with stock onnxruntime on emulated CPUs: what it needs, and the command that runs it.

    python -m benchmarks.emulation [--cache FOLDER]
    python -m benchmarks.emulation --cpu aarch64 BUNDLE/check.py --taps

The first installs into a cache folder, without root: qemu-user, a Debian root for 64-bit Arm with
Python, and the stock aarch64 wheels of onnxruntime and numpy, in the versions of `constraints.txt`.
x86 CPUs run this very interpreter. Nothing of edgeq is on the emulated machine. The second runs a
script on a CPU, and installs what is missing for that.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from edgeq.cpus import CPUS, Cpu
from edgeq.numerics.ort_kernels import SSE

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("EDGEQ_CPUS", ROOT / "build" / "cpus"))
PYTHON = "3.11"  # Debian 12's, for which there are wheels
PACKAGES = (
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libc6",
    "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5",
    "libgomp1",
)  # fmt: skip
WHEELS = ("onnxruntime", "numpy", "flatbuffers", "packaging", "protobuf")

# What onnxruntime reads of an Arm: qemu passes on the host's file, which is no Arm's.
CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid{features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 1

"""
PARTS = {
    "cortex-a72": ("0xd08", ""),
    "neoverse-n1": ("0xd0c", " atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
    "max": ("0xd40", " atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp sve i8mm svei8mm bf16"),
}


class MissingError(Exception):
    """Something that is needed is not installed; the message says how to get it."""


def install(cache: Path = CACHE) -> None:
    """Fetch what is not there yet: about 120 MB.

    Raises:
        MissingError: A command is missing, or a download failed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "qemu.done").exists():
        _debs(cache / "debs", [], ["qemu-user-static"], cache)
        (cache / "qemu.done").touch()
    if not (cache / "arm.done").exists():
        state = cache / "apt"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "state" / "status").touch()
        options = {
            "APT::Architecture": "arm64", "APT::Architectures": "arm64",
            "Dir::State": state / "state", "Dir::Cache": state / "cache",
            "Dir::State::status": state / "state" / "status", "APT::Sandbox::User": "root",
        }  # fmt: skip
        apt = [f"-o{key}={value}" for key, value in options.items()]
        _run(["apt-get", *apt, "-qq", "update"])
        _debs(cache / "debs-arm", apt, PACKAGES, cache / "arm")
        _wheels(cache / "wheels", cache / "arm" / "site")
        (cache / "arm.done").touch()
    for name in PARTS:
        _prefix(cache, name)


def _debs(folder: Path, apt: list[str], names: tuple[str, ...] | list[str], into: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", *apt, "-qq", "-oAPT::Sandbox::User=root", "download", *names], folder)
    for deb in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", str(deb), str(into)])
    shutil.rmtree(folder)


def _wheels(folder: Path, into: Path) -> None:
    pins = ["-c", str(ROOT / "constraints.txt")]
    platforms = [f"--platform=manylinux{p}_aarch64" for p in ("_2_28", "_2_27", "_2_17", "2014")]
    where = [f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:", *platforms]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    _run([*pip, "--no-deps", *pins, *where, "-d", str(folder), *WHEELS])
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    shutil.rmtree(folder)


def _prefix(cache: Path, name: str) -> None:
    """Make a root whose /proc/cpuinfo is that of the CPU; the rest are links."""
    prefix = cache / "roots" / name
    (prefix / "proc").mkdir(parents=True, exist_ok=True)
    part, features = PARTS[name]
    text = "".join(CPUINFO.format(number=n, part=part, features=features) for n in range(2))
    (prefix / "proc" / "cpuinfo").write_text(text)
    for folder in (cache / "arm").iterdir():
        link = prefix / folder.name
        if not link.exists():
            link.symlink_to(folder.resolve())


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise MissingError(f"{command[0]} is needed: this installs Debian packages") from None
    except subprocess.CalledProcessError as error:
        raise MissingError(f"failed: {' '.join(command)}") from error


def installed(cache: Path = CACHE) -> bool:
    """Whether the cache holds all that `install` fetches."""
    return (cache / "qemu.done").exists() and (cache / "arm.done").exists()


def python_on(cpu: Cpu, cache: Path = CACHE) -> list[str]:
    """Return the command that runs Python with onnxruntime on `cpu`; this machine's for none."""
    if not cpu.emulated:
        return [sys.executable]
    emulator = cache / "usr" / "bin" / f"qemu-{'aarch64' if cpu.arm else 'x86_64'}-static"
    if not cpu.arm:
        return [str(emulator), "-cpu", cpu.emulated, sys.executable]
    root = cache / "roots" / cpu.emulated
    library = f"{root}/usr/lib/python{PYTHON}"
    paths = {
        "PYTHONHOME": f"{root}/usr",
        "PYTHONPATH": f"{library}:{library}/lib-dynload:{root}/site",
        "LD_LIBRARY_PATH": f"{root}/usr/lib/aarch64-linux-gnu:{root}/lib/aarch64-linux-gnu",
    }
    settings = [part for key, value in paths.items() for part in ("-E", f"{key}={value}")]
    start = [str(emulator), "-cpu", cpu.emulated, "-L", str(root), *settings]
    return [*start, f"{root}/usr/bin/python{PYTHON}"]


def run_python(
    cpu: Cpu, arguments: list[str], cache: Path = CACHE, timeout: float = 1800
) -> subprocess.CompletedProcess[str]:
    """Run a script on `cpu`; its exit status and output, without the emulator's own warnings."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if cpu.kernels == SSE:  # numpy's OpenBLAS takes the emulated CPU for a later one
        environment["OPENBLAS_CORETYPE"] = "Nehalem"
    found = subprocess.run(
        [*python_on(cpu, cache), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    found.stderr = re.sub(r"(?m)^.*TCG doesn't support.*\n", "", found.stderr)
    return found


def main() -> int:
    """Install, and show that onnxruntime runs on every CPU; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--cpu", choices=[*CPUS], help="run SCRIPT there")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a script and its arguments")
    given = parser.parse_args()
    cache = given.cache.absolute()
    try:
        install(cache)
    except MissingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.cpu is not None:
        found = run_python(CPUS[given.cpu], given.script, cache)
        print(found.stdout, end="")
        print(found.stderr, end="", file=sys.stderr)
        return found.returncode
    for cpu in CPUS.values():
        found = run_python(cpu, ["-c", "import onnxruntime; print(onnxruntime.__version__)"], cache)
        print(f"{cpu.name}: onnxruntime {found.stdout.strip() or found.stderr[-300:]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
