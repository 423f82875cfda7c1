"""What hypothesis draws: networks from small independent choices, so that they shrink well."""

from hypothesis import strategies as st

from tests.networks import (
    ACTIVATIONS,
    HEADS,
    MOVES,
    Activation,
    Block,
    Branches,
    Conv,
    Excite,
    Move,
    Net,
    Pool,
    Residual,
)
from tests.odd_graphs import OPERATORS, Format, Odd

MOST_BLOCKS = 5
LONGEST_SIDE = 11

_activations = st.sampled_from(("Relu", *ACTIVATIONS))
_small = st.integers(1, 3)
_pairs = st.tuples(_small, _small)
_strides = st.tuples(st.integers(1, 2), st.integers(1, 2))
_pads = st.tuples(*[st.integers(0, 2)] * 4)

bits = st.builds("w{}a{}".format, st.integers(2, 8), st.integers(2, 8))
"""Widths of weights and activations."""

convolutions = st.builds(
    Conv,
    channels=st.integers(1, 20),
    kernel=_pairs,
    strides=_strides,
    pads=_pads,
    dilations=_strides,
    groups=st.sampled_from(("one", "each", "two")),
    bias=st.booleans(),
    then=_activations,
)

blocks: st.SearchStrategy[Block] = st.one_of(
    convolutions,
    st.builds(
        Residual,
        op=st.sampled_from(("Add", "Mul")),
        kernel=st.sampled_from((1, 3)),
        then=_activations,
    ),
    st.builds(
        Branches,
        channels=st.integers(1, 5),
        then=st.lists(_activations, min_size=1, max_size=2).map(tuple),
    ),
    st.builds(
        Excite,
        channels=st.integers(1, 4),
        then=st.sampled_from(("Relu", "HardSwish")),
        gate=st.sampled_from(("Sigmoid", "HardSigmoid")),
    ),
    st.builds(
        Pool,
        op=st.sampled_from(("MaxPool", "AveragePool")),
        kernel=_pairs,
        strides=_strides,
        pads=st.tuples(*[st.integers(0, 1)] * 4),
        ceil_mode=st.integers(0, 1),
        count_include_pad=st.integers(0, 1),
    ),
    st.builds(Activation, op=st.sampled_from(ACTIVATIONS[1:])),
    st.builds(Move, kind=st.sampled_from(tuple(MOVES)), amount=st.integers(1, 2)),
)
"""Parts of networks."""

networks = st.builds(
    Net,
    blocks=st.lists(blocks, min_size=1, max_size=MOST_BLOCKS).map(tuple),
    shape=st.tuples(st.integers(1, 4), *[st.integers(1, LONGEST_SIDE)] * 2),
    head=st.sampled_from(HEADS),
    classes=st.integers(1, 18),
    tapped=st.none() | st.integers(0, MOST_BLOCKS),
    free_batch=st.booleans(),
    bits=st.just("w8a8") | bits,
    layer_bits=st.lists(st.tuples(st.integers(0, 7), bits), max_size=3).map(tuple),
    per_channel=st.booleans(),
    symmetric=st.sampled_from((True, True, False)),
    keep_first_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
"""Float networks over small images, and how they are quantized."""

formats = st.builds(Format, hundredths=st.integers(1, 40), zero=st.sampled_from((0.0, 1.0, 0.5)))
"""Scales whose products lie on ties, zero points at the ends."""

odd_graphs = st.builds(
    Odd,
    op=st.sampled_from(tuple(OPERATORS)),
    qdq=st.booleans(),
    signed=st.booleans(),
    signed_weight=st.booleans(),
    x=formats,
    other=formats,
    y=formats,
    weight_zeros=st.sampled_from(("none", "one", "each")),
    channels=st.integers(1, 18),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
"""Quantized graphs of one operator that our rewriter never writes."""
