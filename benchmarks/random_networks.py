"""Any number of random networks through quantize and verify: counts, and the first that fails.

python -m benchmarks.random_networks --count 1000 --seed 7
"""

import sys
import time
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from benchmarks import common
from tests.networks import Net
from tests.random_networks import check, quantized
from tests.strategies import networks

SHOWN = ("networks", "tensors", "elements", "channels", "seconds")


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
    parser = common.parser(__doc__, "random_networks")
    parser.add_argument("--count", type=int, default=200, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same networks")
    options = parser.parse_args()
    started = time.perf_counter()
    counts = run(options.count, options.seed)
    answer: dict[str, Any] = {
        "seed": options.seed,
        **vars(counts),
        "mismatches": 0,
        "seconds": round(time.perf_counter() - started, 1),
    }
    common.show("random networks", [{key: answer[key] for key in SHOWN} | {"mismatches": 0}])
    common.write_results("random_networks", answer, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
