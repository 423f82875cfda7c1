"""Blocks are found in any graph: one entry, one exit, each layer in one of them."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.methods.reconstruction.blocks import Block, alone, blocks_of
from onnxptq.rewrite.regions import weight_of
from tests.small_models import from_text

W = (4, 4, 3, 3)
PADS = "<pads = [1, 1, 1, 1]>"


def layers(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if weight_of(node) is not None]


def found(model: ir.Model) -> list[list[str]]:
    """Operators of each block, in order."""
    return [[node.op_type for node in block.nodes] for block in blocks_of(model, layers(model))]


def network(body: str, rng: np.random.Generator, convolutions: int) -> ir.Model:
    weights = {f"w{i}": W for i in range(convolutions)}
    return from_text(
        "g (float[N, 4, 8, 8] x) => (float[N, c, 8, 8] y) {" + body + "}", rng, weights
    )


def test_a_residual_branch_is_a_block_with_the_relu_behind_it(rng: np.random.Generator):
    model = network(
        f"""a = Conv{PADS}(x, w0) b = Relu(a)
            c = Conv{PADS}(b, w1) d = Relu(c) e = Conv{PADS}(d, w2) f = Add(e, b) h = Relu(f)
            y = Conv{PADS}(h, w3)""",
        rng,
        4,
    )

    assert found(model) == [["Conv", "Relu"], ["Conv", "Relu", "Conv", "Add", "Relu"], ["Conv"]]


def test_a_layer_on_the_shortcut_is_in_the_block(rng: np.random.Generator):
    model = network(
        f"a = Conv{PADS}(x, w0) b = Conv{PADS}(a, w1) c = Conv{PADS}(a, w2) y = Add(b, c)", rng, 3
    )

    assert found(model) == [["Conv"], ["Conv", "Conv", "Add"]]


def test_without_branches_up_to_three_layers_are_one_block(rng: np.random.Generator):
    chain = [
        f"v{i} = Conv{PADS}({'x' if i == 0 else f'r{i - 1}'}, w{i}) r{i} = Relu(v{i})"
        for i in range(4)
    ]
    model = network(" ".join(chain) + f" y = Conv{PADS}(r3, w4)", rng, 5)

    assert [len(block.layers) for block in blocks_of(model, layers(model))] == [3, 2]


def test_a_gate_written_out_stays_with_its_layer(rng: np.random.Generator):
    """HardSwish is HardSigmoid times its input after preparation."""
    model = network(f"a = Conv{PADS}(x, w0) b = HardSwish(a) y = Conv{PADS}(b, w1)", rng, 2)

    (block,) = blocks_of(model, layers(model))

    assert [node.op_type for node in block.nodes] == ["Conv", "HardSigmoid", "Mul", "Conv"]


def test_a_value_read_further_on_ends_a_block(rng: np.random.Generator):
    """A long connection around several layers: nothing in between is an exit twice."""
    model = network(
        f"""a = Conv{PADS}(x, w0) b = Conv{PADS}(a, w1) c = Conv{PADS}(b, w2)
            d = Conv{PADS}(c, w3) e = Conv{PADS}(d, w4) f = Conv{PADS}(e, w5)
            h = Conv{PADS}(f, w6) i = Conv{PADS}(h, w7) j = Conv{PADS}(i, w8)
            k = Conv{PADS}(j, w9) y = Add(k, a)""",
        rng,
        10,
    )
    blocks = blocks_of(model, layers(model))

    assert sorted(n for block in blocks for n in map(id, block.layers)) == sorted(
        map(id, layers(model))
    )
    assert max(len(block.layers) for block in blocks) <= 3
    assert all("Add" not in ops for ops in found(model))


def test_layer_by_layer_each_has_what_follows_it(rng: np.random.Generator):
    model = network(f"a = Conv{PADS}(x, w0) b = Relu(a) y = Conv{PADS}(b, w1)", rng, 2)

    blocks = alone(model, layers(model))

    assert [[node.op_type for node in block.nodes] for block in blocks] == [
        ["Conv", "Relu"],
        ["Conv"],
    ]


@pytest.mark.parametrize(
    "body",
    [
        f"a = Conv{PADS}(x, w0) b = Conv{PADS}(x, w1) y = Mul(a, b)",
        f"a = Conv{PADS}(x, w0) b = Sigmoid(a) c = Mul(a, b) d = Conv{PADS}(c, w1) "
        "y = Concat<axis = 1>(c, d)",
    ],
)
def test_blocks_read_one_value_and_give_one(body: str, rng: np.random.Generator):
    model = network(body, rng, 2)

    for block in blocks_of(model, layers(model)):
        assert outside(block) == {str(block.entry.name)}
        assert leaving(block) == {block.name}


def outside(block: Block) -> set[str]:
    made = {value for node in block.nodes for value in node.outputs}
    return {
        str(value.name)
        for node in block.nodes
        for value in node.inputs
        if value is not None and value.const_value is None and value not in made
    }


def leaving(block: Block) -> set[str]:
    ours = set(block.nodes)
    return {
        str(value.name)
        for node in block.nodes
        for value in node.outputs
        if value.is_graph_output() or any(reader not in ours for reader in value.consumers())
    }
