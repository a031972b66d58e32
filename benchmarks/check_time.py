"""How long does a check take, from process start? `python BUNDLE/check.py`, and `edgeq check`.

    python -m benchmarks.check_time [CASE] [--recipe NAME] [--bundles FOLDER] [--repeat N]

Both are started in turn, warm files, one thread. Prints the least and the median of the wall time,
and the least processor time, of each. Exit status 1 if the least wall time is not below the limit.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cases import ZOO
from benchmarks.cpus import make_bundle

LIMIT = 1.5  # seconds


@dataclass
class Times:
    """Seconds of the runs of a command: on the clock, and of the processor."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self, command: list[str]) -> None:
        """Run the command once more.

        Raises:
            CalledProcessError: It failed.
        """
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main() -> int:
    """Print the table; return 1 if a check takes too long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("case", nargs="?", default="kws-dscnn")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--bundles", type=Path, help="FOLDER/CASE/RECIPE; kept there if given")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--zoo", type=Path, default=ZOO)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.bundles or Path(scratch)
        bundle = str(make_bundle(given.case, given.recipe, given.zoo, folder))
        commands = {
            "python BUNDLE/check.py": [sys.executable, f"{bundle}/check.py"],
            "edgeq check BUNDLE": [sys.executable, "-m", "edgeq", "check", bundle],
        }
        found = {name: Times() for name in commands}
        for _ in range(given.repeat):
            for name, command in commands.items():
                found[name].run(command)
    print("| command | least (s) | median (s) | processor (s) | required |\n|---|---|---|---|---|")
    for name, times in found.items():
        print(
            f"| {given.case}: `{name}` | **{min(times.wall):.2f}** |"
            f" {statistics.median(times.wall):.2f} | {min(times.cpu):.2f} | {LIMIT} |"
        )
    return int(any(min(times.wall) >= LIMIT for times in found.values()))


if __name__ == "__main__":
    sys.exit(main())
