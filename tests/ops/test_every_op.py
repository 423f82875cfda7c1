"""All rows of OPS through the claims of their records, with no test written by hand."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from onnxptq import ort
from onnxptq.graph import io
from onnxptq.ops import OPS
from onnxptq.ops.moves import MOVERS
from onnxptq.ops.op import Case, Op
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import lay_out, place, regions_of
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.weights import fit_scales
from onnxptq.runtime.lint import lint
from onnxptq.runtime.shares import IslandShare
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.ort_versions import IS_OLD
from tests.small_models import feeds_for, one_node, sqnr_db, with_ranges

ROWS = [
    pytest.param(op, case, id=f"{op.type}-{position}")
    for op in OPS.values()
    for position, case in enumerate(op.cases)
]

EIGHT_BIT_SQNR_DB = 25.0
"""Normal data in 8 bits give 30 to 45 dB; a wrong scale, zero point or axis falls below 15."""

Grid = Callable[[npt.ArrayLike], npt.NDArray[np.floating]]


def hundredths(step: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """The nearest multiple of 0.01: products of such scales lie on ties of rounding."""
    return np.maximum(np.rint(np.asarray(step) * 100), 1) * 0.01


def powers_of_two(step: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """The nearest power of two: every product is exact, so ties are ties."""
    return np.exp2(np.rint(np.log2(step)))


@dataclass(frozen=True)
class Format:
    """Bits of all codes, where the activations' zero point is, and which scales they have."""

    bits: int
    zero: int
    grid: Grid

    def __str__(self) -> str:
        return f"{self.bits}-bit-zero-{self.zero}-{self.grid.__name__}"

    def activation(self, params: QParams) -> QParams:
        """Parameters whose window holds the zero point, at the same end as the container does."""
        step = float(params.hi - params.lo) / ((1 << self.bits) - 1)
        code_lo = {0: 0, 128: 128 - (1 << (self.bits - 1)), 255: 256 - (1 << self.bits)}[self.zero]
        return QParams(
            QuantSpec(self.bits, signed=False),
            np.asarray(self.grid(step), np.float32),
            np.asarray(self.zero, np.int32),
            np.asarray(code_lo, np.int32),
        )

    def weight(self, params: QParams) -> QParams:
        """The same for weights, whose zero point stays 0."""
        spec = QuantSpec(self.bits, signed=True, axis=params.spec.axis)
        step = self.grid(params.hi / ((1 << (self.bits - 1)) - 0.5))
        code_lo = np.full_like(params.code_lo, spec.default_code_lo)
        return QParams(spec, step.astype(np.float32), params.zero_point, code_lo)


FORMATS = [
    Format(bits, zero, (hundredths, powers_of_two)[(row + column) % 2])
    for row, bits in enumerate((8, 4, 2))
    for column, zero in enumerate((0, 128, 255))
]


def everything_quantized(op: Op, case: Case, rng: np.random.Generator):
    """The model of a case, its feeds, and a recipe that quantizes the node in any case."""
    model = one_node(op, case, rng)
    feeds = feeds_for(model, rng)
    proposed = place(model, Placing())
    recipe = Recipe(proposed.model_digest, proposed.tensors)
    layout = lay_out(model, regions_of(model, recipe))
    tensors = dict(recipe.tensors)
    if not tensors:
        # place leaves a lone data mover in float; here it is asked to run on codes.
        for name in layout.values:
            tied = "x" if op.rule.tied and "x" in layout.values and name != "x" else None
            unit = QParams.unit(QuantSpec(8, signed=False))
            tensors[name] = TensorQuant(name, Role.ACTIVATION, unit, tied)
        recipe = Recipe(proposed.model_digest, tensors)
    return model, feeds, with_ranges(model, recipe, feeds)


@pytest.mark.parametrize(("op", "case"), ROWS)
def test_onnxruntime_runs_the_node_on_codes(op: Op, case: Case, rng: np.random.Generator):
    model, _, recipe = everything_quantized(op, case, rng)

    found = lint(insert_qdq(model, recipe, Storage("int8")))

    assert found.float_nodes == ()
    assert len(found.integer_nodes) >= 1 or op.type in ("Relu", "Clip")


@needs_vnni
@pytest.mark.parametrize(("op", "case"), ROWS)
def test_the_quantized_node_computes_the_same_up_to_rounding(
    op: Op, case: Case, rng: np.random.Generator
):
    model, feeds, recipe = everything_quantized(op, case, rng)
    quantized = insert_qdq(model, recipe, Storage("int8"))

    expected = ort.session(model).run(feeds)
    found = ort.session(quantized).run(feeds)

    assert list(found) == list(expected)
    for name in expected:
        assert sqnr_db(expected[name], found[name]) > EIGHT_BIT_SQNR_DB


@functools.cache
def quantized_case(op_type: str, position: int) -> tuple[ir.Model, Recipe]:
    """The model of a case, and a recipe with the ranges of its data."""
    op = OPS[op_type]
    rng = np.random.default_rng(position)
    model, _, recipe = everything_quantized(op, op.cases[position], rng)
    return model, recipe


def in_format(model: ir.Model, recipe: Recipe, chosen: Format) -> ir.Model:
    """The quantized model with all of its codes in one format."""
    params = {t.value: chosen.activation(t.params) for t in recipe.activations() if not t.tied_to}
    params |= {t.value: chosen.weight(t.params) for t in recipe.weights()}
    return insert_qdq(model, fit_scales(model, recipe.with_params(params, "test")), Storage("int8"))


def with_int8_activations(model: ir.Model) -> ir.Model:
    """The same network on int8 codes: every uint8 number of the file, 128 lower."""
    proto = ir.serde.serialize_model(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.UINT8:
            codes = numpy_helper.to_array(tensor).astype(np.int16) - 128
            tensor.CopyFrom(numpy_helper.from_array(codes.astype(np.int8), tensor.name))
    del proto.graph.value_info[:]
    return io.from_proto(proto, "int8")


INDEXED = [
    pytest.param(op.type, position, id=f"{op.type}-{position}")
    for op in OPS.values()
    for position in range(len(op.cases))
]


@needs_vnni
@pytest.mark.parametrize("chosen", FORMATS, ids=str)
@pytest.mark.parametrize(("op_type", "position"), INDEXED)
def test_the_executor_equals_onnxruntime_on_uint8_codes(
    op_type: str, position: int, chosen: Format
):
    quantized = in_format(*quantized_case(op_type, position), chosen)

    found = verify(quantized)

    assert found.first_difference is None
    assert found.holds
    assert found.elements > 0
    assert found.not_compared == ()
    assert IS_OLD or found.islands == ()


def computing(islands: Iterable[IslandShare]) -> list[str]:
    """Operators of islands, those aside that only turn codes into real numbers and back."""
    borders = ("QuantizeLinear", "DequantizeLinear")
    return sorted(op for island in islands for op in island.op_types if op not in borders)


@needs_vnni
@pytest.mark.parametrize("chosen", FORMATS, ids=str)
@pytest.mark.parametrize(("op_type", "position"), INDEXED)
def test_the_executor_equals_onnxruntime_on_int8_codes(op_type: str, position: int, chosen: Format):
    quantized = with_int8_activations(in_format(*quantized_case(op_type, position), chosen))

    found = verify(quantized)

    assert found.first_difference is None
    assert found.holds
    assert found.elements > 0
    assert found.not_compared == ()
    in_float = [row.op for row in lint(quantized).float_nodes if row.op not in MOVERS]
    assert IS_OLD or computing(found.islands) == sorted(
        in_float
    )  # moves of real numbers are copies


def test_the_table_is_keyed_by_onnx_names():
    assert all(name == op.type for name, op in OPS.items())
    assert all(op.cases for op in OPS.values())
