"""Values of the float and of the quantized model come from the part of the graph they need."""

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq import ort, quantize
from tests.cpus import needs_vnni
from tests.small_models import proto_from_text

Array = npt.NDArray[Any]

BODY = """
net (float[N, 4, 6, 6] x, float[N, 4, 6, 6] state, bool flag) => (float[N, 5, 6, 6] y) {
  c = If (flag) <
    then_branch = yes () => (float[N, 4, 6, 6] t) { t = Neg (state) },
    else_branch = no () => (float[N, 4, 6, 6] e) { e = Identity (state) }
  >
  s = Add (x, c)
  a = Conv (s, w0, b0)
  ar = Relu (a)
  y = Conv (ar, w1, b1)
}
"""
WEIGHTS = {"w0": (6, 4, 1, 1), "b0": (6,), "w1": (5, 6, 1, 1), "b1": (5,)}


def feed(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    x, state = rng.normal(size=(2, 1, 4, 6, 6)).astype(np.float32)
    return {"x": x, "state": state, "flag": np.array(seed % 2 == 0)}


@needs_vnni
def test_an_input_that_only_a_body_reads_is_fed_too() -> None:
    net = proto_from_text(BODY, np.random.default_rng(0), WEIGHTS)

    result = quantize(net, [feed(i) for i in range(32)], method="gptq", report_samples=0)

    assert set(result.recipe.codes) == {"w0", "w1"}
    sessions = ort.session(net.SerializeToString()), ort.session(result.model)
    expected, found = (session.run(feed(100))["y"] for session in sessions)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
