"""Time every row of KERNELS and write the table of kernels/README.md.

python benchmarks/kernels.py            prints the table
python benchmarks/kernels.py --write    also puts it into kernels/README.md
"""

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxptq.kernels import KERNELS, Kernel

README = Path(__file__).parents[1] / "kernels" / "README.md"
MARK = "<!-- times: written by benchmarks/kernels.py --write -->"
SECONDS = 0.5


def best_seconds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Least CPU time of one call, which other processes on the machine disturb least."""
    function(*arguments)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begun = time.thread_time()
        function(*arguments)
        best = min(best, time.thread_time() - begun)
    return best


def row(name: str, kernel: Kernel) -> str:
    """One line of the table."""
    arguments = kernel.work(np.random.default_rng(0))
    fast = best_seconds(kernel.function, arguments) / kernel.elements * 1e9
    naive = best_seconds(kernel.naive, arguments) / kernel.elements * 1e9
    return f"| `{name}` | {kernel.elements} | {fast:.3g} | {naive:.3g} |"


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    lines = [
        f"One thread of {processor()}, numpy {np.__version__}, {time.strftime('%Y-%m-%d')}.",
        "",
        "| kernel | elements | ns an element | plain twin, ns |",
        "|---|---|---|---|",
        *(row(name, kernel) for name, kernel in KERNELS.items()),
    ]
    table = "\n".join(lines)
    print(table)
    if "--write" in sys.argv:
        text = README.read_text(encoding="utf-8")
        README.write_text(f"{text.split(MARK)[0]}{MARK}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
