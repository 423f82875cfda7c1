"""Speed of convolutions on smaller CPUs than this one, next to what their instructions allow.

    python -m benchmarks.targets

Each target is forced in a process of its own: code is compiled for it and runs here. Limits come
from loops over registers alone, interleaved with the layers. On a Cascade Lake at 2.4 GHz, AVX2
loops with memory reached 62 (pairs) and 90 to 93 GMAC/s (chains), 0.81 of what the ports allow.
"""

import argparse

from benchmarks import common
from benchmarks.common import Row

TARGETS = {
    "haswell": "AVX2",
    "skylake-avx512": "AVX-512",
    "cascadelake": "VNNI",
    "x86-64": "no AVX2",
}
"""Name that LLVM knows a CPU by, and what it stands for."""
LAYERS = {"56x56x64": (56, 64), "28x28x128": (28, 128)}
"""3x3 layers: size and channels."""
LEVELS = {
    "8 bit, any weights": {"weights": 128},
    "8 bit, normal weights": {"sigma": 36},
    "8 bit, |w| <= 64": {"weights": 64},
    "W4A8": {"weights": 8},
    "W8A4": {"most": 15, "weights": 128},
    "W4A4": {"most": 15, "weights": 8},
}
TARGET = 0.8
"""Of the limit, for layers whose products need no split."""


def measure(name: str, rounds: int) -> Row:
    """GMAC/s of all layers and levels on one target, and its limits."""
    common.progress(f"{name}: compiling and measuring")
    return common.run_job(
        "convolutions", cpu=name, layers=LAYERS, levels=LEVELS, rounds=rounds
    ).answer


def table(name: str, row: Row) -> list[Row]:
    """Lines of what one target did."""
    lines: list[Row] = []
    for key, found in row["layers"].items():
        way = {0: "", 1: "pairs"}.get(found["chain"], "chained")
        limit = row["limits"].get(way)
        share = found["gmacs"] / limit if limit else None
        lines.append({"target": name, "layer": key, **found, "limit": limit, "share": share})
    return lines


def parts(options: argparse.Namespace) -> Row:
    """What each target did."""
    names = options.only or TARGETS
    return common.each({name: lambda n=name: measure(n, options.rounds) for name in names})


def main() -> int:
    """Measure all targets."""
    parser = common.parser(__doc__, "targets")
    parser.add_argument("--only", action="append", choices=TARGETS, help="a target; repeatable")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each layer")
    options = parser.parse_args()
    results = parts(options)
    lines = [line for name, row in results.items() for line in table(name, row)]
    common.show("GMAC/s, one thread", lines)
    common.write_results("targets", {"target": TARGET, **results}, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
