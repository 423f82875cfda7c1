"""Any number of random networks through quantize and verify: counts, and the first that fails.

python -m benchmarks.random_networks --count 1000 --seed 7 [--json counts.json]
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from tests.networks import Net
from tests.random_networks import check, quantized
from tests.strategies import networks


class Counts:
    """What was seen."""

    def __init__(self) -> None:
        self.networks = self.elements = self.tensors = self.channels = 0
        self.forms: Counter[str] = Counter()
        self.islands: Counter[str] = Counter()

    def add(self, net: Net) -> None:
        """Quantize and verify one network.

        Raises:
            AssertionError: It differs.
        """
        result = check(quantized(net))
        self.networks += 1
        self.elements += result.elements
        self.tensors += result.tensors
        self.channels += result.certificate.channels
        self.forms.update(result.certificate.by)
        self.islands.update(op for island in result.islands for op in island.op_types)


def run(count: int, start: int) -> Counts:
    """Verify `count` networks that a seed determines; a failing one is shrunk and shown."""
    counts = Counts()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )
    @given(networks)
    def each(net: Net) -> None:
        counts.add(net)

    each()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    counts = run(options.count, options.seed)
    answer: dict[str, Any] = {
        "seed": options.seed,
        **vars(counts),
        "mismatches": 0,
        "seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(answer, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
