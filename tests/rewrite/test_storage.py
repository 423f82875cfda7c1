"""Packed weights are exactly their codes again once onnxruntime has folded the unpacking."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq import ort
from onnxptq.errors import SpecError
from onnxptq.graph.skeleton import size_bytes
from onnxptq.quant import QParams, QuantSpec
from onnxptq.rewrite.storage import PLANES, Storage, WeightWriter, pack, parse_version

HELPERS_BYTES = 512 + 1024 + 2048 + 256
"""The lookup tables for parts of 4, 2 and 1 bits, and shapes: the same for a weight of any size."""


def stored(codes: np.ndarray, params: QParams, storage: Storage) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="weights")
    value, nodes = WeightWriter(graph, storage).write("w", codes, params)
    graph.extend(nodes)
    copy = ir.val("codes", dtype=ir.DataType.INT8)
    graph.append(ir.node("Identity", [value], outputs=[copy]))
    graph.outputs.append(copy)
    return ir.Model(graph, ir_version=10)


def params_of(bits: int, channels: int, shifted: np.ndarray) -> QParams:
    unit = QParams.unit(QuantSpec(bits, signed=True, axis=0), channels)
    return QParams(unit.spec, unit.scale, unit.zero_point, unit.code_lo + shifted.astype(np.int32))


def codes_in(params: QParams, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    lo = params.along(params.code_lo, len(shape))
    hi = params.along(params.code_hi, len(shape))
    return rng.integers(lo, hi + 1, shape).astype(np.int8)


@given(
    bits=st.integers(2, 8),
    channels=st.integers(1, 5),
    columns=st.integers(1, 9),
    shift=st.booleans(),
    int4=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_unpacked_codes_are_the_stored_ones(
    bits: int, channels: int, columns: int, shift: bool, int4: bool, seed: int
):
    rng = np.random.default_rng(seed)
    shifted = rng.integers(0, 2, channels) if shift and bits < 8 else np.zeros(channels)
    params = params_of(bits, channels, shifted)
    codes = codes_in(params, (channels, columns), rng)

    model = stored(codes, params, Storage("packed", int4=int4))

    found = ort.session(model, threads=1).run({})["codes"]
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_a_weight_takes_as_many_bits_as_it_says(bits: int, rng: np.random.Generator):
    params = params_of(bits, 64, np.zeros(64))
    codes = codes_in(params, (64, 1000), rng)

    packed = size_bytes(stored(codes, params, Storage("packed")))

    assert packed <= codes.size * bits / 8 + HELPERS_BYTES


def test_every_width_is_a_sum_of_parts_of_a_byte():
    assert {bits: sum(parts) for bits, parts in PLANES.items()} == {b: b for b in range(2, 8)}


def test_the_first_field_lies_in_the_lowest_bits():
    packed = pack(np.array([1, 2, 3], np.uint8), 4)

    assert packed.tolist() == [0x21, 0x03]


def test_int2_is_used_only_where_the_target_knows_it():
    assert Storage.for_target("packed", "1.29.0").int2
    assert not Storage.for_target("packed", "1.24.4").int2
    assert not Storage.for_target("packed", None).int2
    assert not Storage.for_target("packed", "1.22.0").int4


@pytest.mark.parametrize("text", ["one", "1", "1.2.3.4", "1.x"])
def test_a_bad_version_is_refused(text: str):
    with pytest.raises(SpecError, match="expected an onnxruntime version"):
        parse_version(text)


def test_an_unknown_storage_is_refused():
    with pytest.raises(SpecError, match="it must be packed or int8"):
        Storage.for_target("zip", None)
