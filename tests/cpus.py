"""What tests ask of the CPU that they run on."""

import pytest

from onnxptq.runtime.cpu import NO_VNNI, cpu_class

HAS_VNNI = not cpu_class().endswith(NO_VNNI)
"""Whether onnxruntime's sums of 8-bit products are exact here."""

needs_vnni = pytest.mark.skipif(
    not HAS_VNNI,
    reason="onnxruntime cuts off sums of 8-bit products at 16 bits on a CPU without VNNI",
)
"""For tests that hold full 8-bit codes against onnxruntime, which only exact sums equal."""
