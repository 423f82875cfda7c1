"""What may stand between two layers without costing a conversion to float."""

import numpy as np
import pytest

from onnxptq import ort
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.runtime.lint import lint
from tests.cpus import needs_vnni
from tests.small_models import feeds_for, from_text, placed, sqnr_db

MIDDLES = {
    "silu": "s = Sigmoid (a)  b = Mul (a, s)",
    "leaky relu": "b = LeakyRelu <alpha = 0.1> (a)",
    "softmax over channels": "b = Softmax <axis = 1> (a)",
    "softmax over the last axis": "b = Softmax <axis = -1> (a)",
    "split, recombined": """p, q = Split <axis = 1, num_outputs = 2> (a)
      b = Concat <axis = 1> (q, p)""",
    "split, added": """p, q = Split <axis = 1, num_outputs = 2> (a)  r = Add (p, q)
      b = Concat <axis = 1> (r, q)""",
    "resize nearest": """none = Constant <value_floats = [0.0]> ()
      scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
      b = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
                  nearest_mode = "floor"> (a, , scales)""",
    "depth to space": "b = DepthToSpace <blocksize = 2> (a)",
    "gather": """i = Constant <value_ints = [3, 1, 0, 2, 7, 7, 5, 4]> ()
      b = Gather <axis = 1> (a, i)""",
    "unsqueeze and squeeze": """k = Constant <value_ints = [1]> ()  u = Unsqueeze (a, k)
      r = Relu (u)  b = Squeeze (r, k)""",
    "expand": """g = GlobalAveragePool (a)  size = Constant <value_ints = [1, 1, 8, 8]> ()
      b = Expand (g, size)""",
    "tile": "n = Constant <value_ints = [1, 1, 2, 1]> ()  b = Tile (a, n)",
    "transpose": "b = Transpose <perm = [0, 1, 3, 2]> (a)",
    "strided slice": """from = Constant <value_ints = [1, 0]> ()
      to = Constant <value_ints = [8, 8]> ()
      on = Constant <value_ints = [2, 3]> ()  by = Constant <value_ints = [2, 3]> ()
      b = Slice (a, from, to, on, by)""",
    "pad with a number": """n = Constant <value_ints = [0, 0, 1, 0, 0, 0, 0, 2]> ()
      v = Constant <value_float = 0.7> ()  b = Pad (a, n, v)""",
    "pad by reflection": """n = Constant <value_ints = [0, 0, 1, 2, 0, 0, 2, 1]> ()
      b = Pad <mode = "reflect"> (a, n)""",
    "average pool that counts its padding": """b = AveragePool <kernel_shape = [3, 3],
      pads = [1, 1, 1, 1], strides = [2, 2], count_include_pad = 1> (a)""",
    "average pool that does not": """b = AveragePool <kernel_shape = [3, 3],
      pads = [1, 1, 0, 0], strides = [2, 2]> (a)""",
    "average pool with gaps": "b = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (a)",
    "grouped conv": "b = Conv <group = 2, pads = [1, 1, 1, 1]> (a, grouped)",
    "depthwise conv": "b = Conv <group = 8> (a, depthwise)",
    "1-D conv": """to = Constant <value_ints = [0, 8, 64]> ()  f = Reshape (a, to)
      c = Conv <pads = [1, 1]> (f, line)  r = Relu (c)
      back = Constant <value_ints = [0, 8, 8, 8]> ()  b = Reshape (r, back)""",
}  # fmt: skip
CHANNELS = {"depth to space": 2}
WEIGHTS = {"grouped conv": "grouped", "depthwise conv": "depthwise", "1-D conv": "line"}
SHAPES = {"grouped": (8, 4, 3, 3), "depthwise": (8, 1, 3, 3), "line": (8, 8, 3)}
# Ranges are the minimum and the maximum of random numbers; the widths are those of every layer.
EXPECTED_DB = {"w8a8": 25.0, "w4a4": -np.inf}


@needs_vnni
@pytest.mark.parametrize("per_channel", [True, False], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("bits", EXPECTED_DB)
@pytest.mark.parametrize("middle", MIDDLES)
def test_what_stands_between_two_layers_runs_in_integers(
    middle: str, bits: str, per_channel: bool, rng: np.random.Generator
):
    weights = {"first": (8, 4, 1, 1), "last": (3, CHANNELS.get(middle, 8), 1, 1)}
    weights |= {name: SHAPES[name] for name in [WEIGHTS.get(middle)] if name is not None}
    model = from_text(
        f"""middle (float[2, 4, 8, 8] x) => (float[2, 3, H, W] y) {{
          a = Conv (x, first)
          {MIDDLES[middle]}
          y = Conv (b, last)
        }}""",
        rng,
        weights,
    )
    feeds = feeds_for(model, rng)
    recipe = placed(model, feeds, bits=bits, per_channel=per_channel, keep_first_last=False)

    quantized = insert_qdq(model, recipe, Storage("packed"))

    assert lint(quantized).float_nodes == ()
    expected = ort.session(model).run(feeds)["y"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["y"]) > EXPECTED_DB[bits]
