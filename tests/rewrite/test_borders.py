"""Learned borders: as tables in the file they run in onnxruntime and in the executor alike."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxptq import ort
from onnxptq.calibrate.model import calibrate
from onnxptq.calibrate.run import CollectOptions
from onnxptq.calibrate.source import Taken
from onnxptq.errors import ModelError, SpecError
from onnxptq.graph import io
from onnxptq.methods import apply
from onnxptq.methods.method import Context
from onnxptq.program import IntegerProgram
from onnxptq.recipe import Recipe
from onnxptq.rewrite.borders import function_of
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.strip import strip
from onnxptq.runtime.certify import certify
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.lint import lint
from onnxptq.runtime.lower import lower
from tests.small_models import from_text, proto_from_text

BODY = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) b = Relu(a)
    c = Conv<strides = [2, 2], auto_pad = "SAME_UPPER">(b, w1) d = Clip(c, zero, six)
    e = Conv<group = 6, pads = [1, 1, 1, 1], dilations = [1, 1]>(d, w2, b2)
    f = Conv(e, w3, b3) h = Relu(f) i = Conv(h, w4) j = Conv(i, w5) k = GlobalAveragePool(j)
    y = Flatten(k)
"""
WEIGHTS = {
    "w0": (6, 3, 3, 3),
    "b0": (6,),
    "w1": (6, 6, 3, 3),
    "w2": (6, 1, 3, 3),
    "b2": (6,),
    "w3": (5, 6, 1, 1),
    "b3": (5,),
    "w4": (5, 5, 1, 1),
    "w5": (5, 5, 1, 1),
}
BORDERED = {"b": 6, "d": 6, "e": 6, "h": 5}
"""Channels of the values that get borders: behind Relu and Clip, and without either."""


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    ends = "<float zero = {0.0}, float six = {6.0}>"
    return from_text(f"g (float[N, 3, 9, 9] x) => (float[N, 5] y) {ends} {{{BODY}}}", rng, WEIGHTS)


def images(rng: np.random.Generator, count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": rng.normal(size=(1, 3, 9, 9)).astype(np.float32)} for _ in range(count)]


def recipe_of(model: ir.Model, bits: int, rng: np.random.Generator) -> Recipe:
    """Ranges and rounding chosen, no borders."""
    placing = Placing(bits=f"w{bits}a{bits}")
    data = Taken(images(rng, 8), None, 8, "calibration")
    recipe, stats = calibrate(model, place(model, placing), data, placing, CollectOptions())
    return apply(recipe, "mse,weights-mse", Context(model, stats, data))


def with_borders(recipe: Recipe, bits: int, rng: np.random.Generator | None) -> Recipe:
    """Any borders, or one half everywhere."""
    levels = (1 << bits) - 1
    borders = {
        name: np.full((c, levels), 0.5) if rng is None else rng.uniform(0, 1, (c, levels))
        for name, c in BORDERED.items()
    }
    return replace(recipe, borders={k: v.astype(np.float32) for k, v in borders.items()})


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return ort.exact_session(model).run(feeds)["y"]


def shapes_of(program: IntegerProgram, rng: np.random.Generator) -> dict[int, tuple[int, ...]]:
    """Shape of each value, by number."""
    traced = Executor(program, threads=1).trace(some(rng))
    numbered = enumerate(program.values)
    return {number: traced[v.name].shape for number, v in numbered if v.name in traced}


def some(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": np.concatenate([image["x"] for image in images(rng, 32)])}


def test_borders_of_one_half_are_the_usual_rounding(model: ir.Model, rng: np.random.Generator):
    """But for ties, which no value of these networks lies on."""
    recipe, feeds = recipe_of(model, 3, rng), some(rng)

    plain = insert_qdq(model, recipe, Storage())
    bordered = insert_qdq(model, with_borders(recipe, 3, None), Storage())

    assert outputs(bordered, feeds).tolist() == outputs(plain, feeds).tolist()


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["packed", "int8"])
def test_the_executor_gives_what_onnxruntime_does(
    bits: int, kind: str, model: ir.Model, rng: np.random.Generator
):
    recipe, feeds = with_borders(recipe_of(model, bits, rng), bits, rng), some(rng)

    written = insert_qdq(model, recipe, Storage(kind))  # type: ignore[arg-type]
    program = lower(written)
    found = Executor(program, threads=1).run(["y"], feeds)[0]

    assert found.tolist() == outputs(written, feeds).tolist()
    assert not program.islands
    assert [instr.op for instr in program.instrs].count("reached") == len(BORDERED)


def test_the_certificate_holds_and_counts_thresholds(model: ir.Model, rng: np.random.Generator):
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)
    program = lower(insert_qdq(model, recipe, Storage()))

    certificate = certify(program, shapes_of(program, rng))

    assert certificate.proved == certificate.channels
    assert certificate.by["thresholds"] >= sum(BORDERED.values())


def test_a_table_that_lost_a_threshold_is_not_proved(model: ir.Model, rng: np.random.Generator):
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)
    program = lower(insert_qdq(model, recipe, Storage()))
    first = next(instr for instr in program.instrs if instr.op == "reached")
    cut = replace(first, arrays={"table": first.arrays["table"][:, 1:]})
    instrs = [cut if instr is first else instr for instr in program.instrs]

    certificate = certify(replace(program, instrs=tuple(instrs)), shapes_of(program, rng))

    assert certificate.channels - certificate.proved == len(cut.arrays["table"])


def test_one_scale_for_all_channels_is_enough(model: ir.Model, rng: np.random.Generator):
    placing = Placing(bits="w3a3", per_channel=False)
    data = Taken(images(rng, 8), None, 8, "calibration")
    recipe, stats = calibrate(model, place(model, placing), data, placing, CollectOptions())
    recipe = apply(recipe, "mse,weights-mse", Context(model, stats, data))
    recipe, feeds = with_borders(recipe, 3, rng), some(rng)

    written = insert_qdq(model, recipe, Storage())

    found = Executor(lower(written), threads=1).run(["y"], feeds)[0]
    assert found.tolist() == outputs(written, feeds).tolist()


def test_weights_with_zero_points_are_refused(model: ir.Model, rng: np.random.Generator):
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)
    tensor = recipe.tensors["w1"]
    params = replace(tensor.params, zero_point=tensor.params.zero_point + 1)
    tensors = {**recipe.tensors, "w1": replace(tensor, params=params)}

    with pytest.raises(SpecError, match="has borders and zero points of weights"):
        insert_qdq(model, replace(recipe, tensors=tensors), Storage())


@pytest.mark.parametrize(
    ("table", "lowest"), [((5, 3, 1, 1), 0), ((1, 3, 1, 1), 7), ((3, 1, 1), 0), ((5, 3, 1, 1), 253)]
)
def test_countings_of_others_run_as_in_onnxruntime(
    table: tuple[int, ...], lowest: int, rng: np.random.Generator
):
    """Also where they are none of ours: broadcast in another way, or beyond the last code."""
    body = """
        a = ConvInteger(x, w) b = Unsqueeze(a, axis) c = GreaterOrEqual(b, t)
        d = Cast<to = 6>(c) e = ReduceSum<keepdims = 0>(d, axis) f = Add(e, lo) y = Cast<to = 2>(f)
    """
    text = f"g (uint8[N, 3, 6, 6] x) => (uint8[N, ?, ?, ?] y) {{{body}}}"
    proto = proto_from_text(text.replace("?", "M"), rng, {})
    constants = {
        "w": rng.integers(-4, 4, (5, 3, 1, 1)).astype(np.int8),
        "axis": np.array([2], np.int64),
        "t": rng.integers(-500, 500, table).astype(np.int32),
        "lo": np.array(lowest, np.int32),
    }
    for name, array in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = io.from_proto(proto, "a counting")
    feeds = {"x": rng.integers(0, 256, (4, 3, 6, 6)).astype(np.uint8)}

    expected = ort.session(model).run(feeds)["y"]

    assert Executor(lower(model), threads=1).run(["y"], feeds)[0].tolist() == expected.tolist()


def test_lint_says_that_tables_are_slow(model: ir.Model, rng: np.random.Generator):
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)

    found = lint(insert_qdq(model, recipe, Storage()))

    assert len(found.slow_nodes) == len(BORDERED)
    assert found.float_nodes == ()


def test_lint_says_which_of_them_saturate_without_vnni(model: ir.Model, rng: np.random.Generator):
    """The first one reads 8-bit codes by 8-bit weights; behind borders codes are small."""
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)

    plain = lint(insert_qdq(model, replace(recipe, borders={}), Storage()))
    found = lint(insert_qdq(model, recipe, Storage()))

    first = next(str(node.name) for node in model.graph if node.op_type == "Conv")
    assert first in plain.saturation_risk
    assert found.saturation_risk == plain.saturation_risk


def test_a_recipe_keeps_its_borders(model: ir.Model, rng: np.random.Generator):
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)

    found = Recipe.from_json(recipe.to_json())

    assert found.to_json() == recipe.to_json()
    assert found.borders["e"].tolist() == recipe.borders["e"].tolist()


def test_borders_where_no_layer_is_are_refused(model: ir.Model, rng: np.random.Generator):
    recipe = recipe_of(model, 2, rng)
    wrong = replace(recipe, borders={"x": np.full((3, 255), 0.5, np.float32)})

    with pytest.raises(
        SpecError, match="value 'x' has borders, but no Conv or plain Gemm makes it"
    ):
        insert_qdq(model, wrong, Storage())


DENSE = """
    a = Gemm<transB = 1>(x, w0, b0) b = Relu(a) c = Gemm(b, w1, b1) d = Clip(c, zero, six)
    e = Gemm<transB = 1>(d, w2) f = Relu(e) y = Gemm<transB = 1>(f, w3)
"""
DENSE_WEIGHTS = {
    "w0": (16, 12),
    "b0": (16,),
    "w1": (16, 9),
    "b1": (9,),
    "w2": (9, 9),
    "w3": (4, 9),
}


@pytest.fixture
def dense(rng: np.random.Generator) -> ir.Model:
    ends = "<float zero = {0.0}, float six = {6.0}>"
    text = f"g (float[N, 12] x) => (float[N, 4] y) {ends} {{{DENSE}}}"
    return from_text(text, rng, DENSE_WEIGHTS)


def dense_recipe(model: ir.Model, bits: int, rng: np.random.Generator) -> Recipe:
    """Borders behind the first Gemm, whose weight is to be transposed, and behind the second."""
    placing = Placing(bits=f"w{bits}a{bits}")
    feeds = [{"x": rng.normal(size=(1, 12)).astype(np.float32)} for _ in range(16)]
    data = Taken(feeds, None, 16, "calibration")
    recipe, stats = calibrate(model, place(model, placing), data, placing, CollectOptions())
    recipe = apply(recipe, "mse,weights-mse", Context(model, stats, data))
    levels = (1 << bits) - 1
    borders = {name: rng.uniform(0, 1, (c, levels)) for name, c in (("b", 16), ("d", 9))}
    return replace(recipe, borders={k: v.astype(np.float32) for k, v in borders.items()})


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["packed", "int8"])
def test_behind_gemm_the_executor_gives_what_onnxruntime_does(
    bits: int, kind: str, dense: ir.Model, rng: np.random.Generator
):
    feeds = {"x": rng.normal(size=(64, 12)).astype(np.float32)}

    written = insert_qdq(dense, dense_recipe(dense, bits, rng), Storage(kind))  # type: ignore[arg-type]
    program = lower(written)
    found = Executor(program, threads=1).run(["y"], feeds)[0]

    assert found.tolist() == outputs(written, feeds).tolist()
    assert not program.islands
    assert [instr.op for instr in program.instrs].count("reached") == 2
    assert sorted(name for _, name, _ in written.functions) == ["BorderedGemm", "BorderedMatMul"]


def test_borders_of_one_half_behind_gemm_are_the_usual_rounding(
    dense: ir.Model, rng: np.random.Generator
):
    recipe = dense_recipe(dense, 3, rng)
    half = {name: np.full_like(table, 0.5) for name, table in recipe.borders.items()}
    feeds = {"x": rng.normal(size=(64, 12)).astype(np.float32)}

    plain = insert_qdq(dense, replace(recipe, borders={}), Storage())
    bordered = insert_qdq(dense, replace(recipe, borders=half), Storage())

    assert outputs(bordered, feeds).tolist() == outputs(plain, feeds).tolist()


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_does_more_than_a_product_has_no_function(attributes: dict[str, float]):
    values = [ir.val(name) for name in ("x", "w", "b")]

    assert function_of(ir.node("Gemm", values, attributes)) is None
    assert function_of(ir.node("Gemm", values, {"transB": 1})) == "BorderedGemm"


SUM = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w1) d = Add(c, b) e = Relu(d)
    f = AveragePool<kernel_shape = [3, 3]>(e) h = Conv(f, w3, b3) i = Conv(h, w4) y = Flatten(i)
"""


@pytest.fixture
def residual(rng: np.random.Generator) -> ir.Model:
    weights = {name: WEIGHTS[name] for name in ("w0", "b0", "w1", "w3", "b3", "w4")}
    return from_text(f"g (float[N, 3, 9, 9] x) => (float[N, 245] y) {{{SUM}}}", rng, weights)


def with_roundings(recipe: Recipe) -> Recipe:
    """Linear borders behind the sum and the pool."""
    factors = {"e": 1.13, "f": 0.92}
    scales = {
        name: np.float32(factor * recipe.tensors[name].params.scale)
        for name, factor in factors.items()
    }
    return replace(recipe, rounding_scales={k: np.asarray(v) for k, v in scales.items()})


def test_a_linear_border_behind_a_sum_costs_nothing(residual: ir.Model, rng: np.random.Generator):
    recipe = recipe_of(residual, 3, rng)

    before, after = (
        insert_qdq(residual, each, Storage()) for each in (recipe, with_roundings(recipe))
    )

    assert lint(after).integer_nodes == lint(before).integer_nodes
    assert lint(after).float_nodes == ()
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]


def test_the_executor_rounds_by_one_scale_and_reads_by_another(
    residual: ir.Model, rng: np.random.Generator
):
    recipe, feeds = with_roundings(recipe_of(residual, 3, rng)), some(rng)

    written = insert_qdq(residual, recipe, Storage())
    found = Executor(lower(written), threads=1).run(["y"], feeds)[0]

    assert found.tolist() == outputs(written, feeds).tolist()
    plain = replace(recipe, rounding_scales={})
    assert found.tolist() != outputs(insert_qdq(residual, plain, Storage()), feeds).tolist()


def test_both_scales_are_found_again(residual: ir.Model, rng: np.random.Generator):
    recipe = with_roundings(recipe_of(residual, 3, rng))
    written = insert_qdq(residual, recipe, Storage())

    stripped, found = strip(written)

    assert found.rounding_scales == recipe.rounding_scales
    assert io.to_bytes(insert_qdq(stripped, found, Storage())) == io.to_bytes(written)


def test_a_file_with_tables_is_not_taken_apart(model: ir.Model, rng: np.random.Generator):
    recipe = with_borders(recipe_of(model, 2, rng), 2, rng)

    with pytest.raises(ModelError, match="tables of borders"):
        strip(insert_qdq(model, recipe, Storage()))


def test_a_new_scale_keeps_the_ratio_of_the_two(residual: ir.Model, rng: np.random.Generator):
    recipe = with_roundings(recipe_of(residual, 3, rng))
    params = recipe.tensors["e"].params

    found = recipe.with_params({"e": params.with_scale(params.scale * np.float32(2))}, "test")

    assert float(found.rounding_scales["e"]) == pytest.approx(
        2 * float(recipe.rounding_scales["e"]), rel=1e-6
    )
