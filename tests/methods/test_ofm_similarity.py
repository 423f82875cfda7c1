"""ofm-similarity: budgets hold, widths go where they matter, ranges are new, results repeat."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import joblib
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxptq import ort, quantize
from onnxptq.calibrate.data import open_data
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.graph import io
from onnxptq.methods import apply, parse_methods, with_budgets
from onnxptq.methods.candidates import Grid, Task, judge
from onnxptq.methods.decisions import decisions, moments_of
from onnxptq.methods.descent import Descent
from onnxptq.methods.method import Context
from onnxptq.methods.ofm_similarity import OfmSimilarity
from onnxptq.methods.resources import Resource, choose
from onnxptq.methods.terminal import Network, distances
from onnxptq.methods.weights import WeightsMse
from onnxptq.pipeline import Quantized
from onnxptq.recipe import Recipe, Role
from onnxptq.report.inputs import info
from onnxptq.report.totals import file_bytes
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import fixed_weights, place
from tests.cpus import needs_vnni
from tests.methods.test_gptq import RESIDUAL, WEIGHTS, images
from tests.methods.test_gptq import network as even_network
from tests.small_models import from_text, proto_from_text

Array = npt.NDArray[Any]
FORMS = ("local", "terminal", "greedy")
ENDS = {"w0", "w5"}
NEAREST, GPTQ = "mse,weights-mse", "mse,weights-mse,gptq"

SHARED = """
shared (float[N, 8] x) => (float[N, 8] y) {
  a = MatMul (x, w0)
  b = MatMul (a, w1)
  c = Relu (b)
  d = MatMul (c, w1)
  y = MatMul (d, w2)
}
"""


def network() -> onnx.ModelProto:
    """Weights of one layer have long tails, so that it needs more bits than the others."""
    model = even_network()
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            array = onnx.numpy_helper.to_array(tensor)
            tails = (np.sign(array) * np.abs(array) ** 3 * 4).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(tails, tensor.name))
    return model


def made(method: str, bits: str, **options: Any) -> Quantized:
    return quantize(network(), {"x": images(48, 0)}, bits=bits, method=method, **options)


def wide(method: str, bits: str, **options: Any) -> Quantized:
    """The same network with more channels: what unpacks a weight is small beside it."""
    body = RESIDUAL.replace("group = 16", "group = 48")
    shapes = {"w0": (48, 6, 3, 3), "b0": (48,), "w1": (48, 48, 3, 3), "b1": (48,)}
    shapes |= {"w2": (48, 1, 3, 3), "w3": (64, 48, 2, 2), "b3": (64,), "w4": (20, 64)}
    model = proto_from_text(body, np.random.default_rng(4), WEIGHTS | shapes)
    data = {"x": images(24, 0)}
    return quantize(model, data, bits=bits, method=method, report_samples=0, **options)


def distance(result: Quantized) -> float:
    """Squared error of the outputs on images that were not used, as a share of their square."""
    feeds = {"x": images(64, 1)}
    expected = ort.session(network().SerializeToString()).run(feeds)["y"].astype(np.float64)
    found = ort.session(result.model).run(feeds)["y"]
    return float(np.square(expected - found).sum() / np.square(expected).sum())


def mixed(form: str, method: str = NEAREST, **options: Any) -> Quantized:
    head, _, tail = method.partition("weights-mse")
    text = f"{head}ofm-similarity{{form={form}}},weights-mse{tail}"
    return made(text, "w8a8", report_samples=0, **options)


def widths(recipe: Recipe) -> dict[str, int]:
    return {tensor.value: tensor.params.spec.bits for tensor in recipe.weights()}


def context(**fields: Any) -> tuple[Recipe, Context]:
    """The network above with its placing and data, for calling parts of the method."""
    model = from_text(RESIDUAL, np.random.default_rng(3), WEIGHTS)
    recipe = place(model, Placing())
    data = open_data({"x": images(24, 0)}, [info(port) for port in ort.inputs(model)])
    fixed = fixed_weights(model, recipe, Placing())
    return recipe, Context(model, {}, batches=data, fixed=fixed, **fields)


@pytest.mark.parametrize("form", FORMS)
def test_mixed_widths_are_nearer_to_float_than_equal_ones_of_the_same_average(form: str) -> None:
    equal = made(NEAREST, "w3a8", report_samples=0)
    average = equal.report.average_weight_bits

    result = mixed(form, average_bits=average)

    assert result.report.average_weight_bits <= average + 1e-9
    assert distance(result) < 0.9 * distance(equal)


@pytest.mark.parametrize(
    ("form", "method"), [("local", NEAREST), ("local", GPTQ), ("greedy", NEAREST)]
)
def test_no_file_is_larger_than_its_budget_and_little_is_left_over(form: str, method: str) -> None:
    text = method.replace("weights-mse", f"ofm-similarity{{form={form}}},weights-mse")
    widest = file_bytes(wide(method, "w8a8").model)
    narrowest = file_bytes(wide(method, "w2a8").model)

    for share in (0.2, 0.6):
        most = int(narrowest + share * (widest - narrowest))
        written = file_bytes(wide(text, "w8a8", max_bytes=most).model)

        assert written <= most
        # One bit of the widest weight at most.
        assert written > most - 48 * 48 * 9 / 8


@pytest.mark.parametrize("storage", ["packed", "int8"])
@pytest.mark.parametrize("target", [None, "1.29.0"])
def test_what_a_file_will_take_is_known_before_it_is_written(
    storage: str, target: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "p.json"
    options = {"storage": storage, "target_ort": target, "pareto": file}
    result = made(GPTQ, "w8a8", average_bits=4.2, report_samples=0, **options)

    chosen = next(p for p in json.loads(file.read_text())["points"] if p["chosen"])

    assert 0 <= chosen["bytes"] - file_bytes(result.model) <= 40
    assert chosen["average_bits"] == pytest.approx(result.report.average_weight_bits)


def test_the_ranges_are_those_that_a_run_with_these_widths_chooses() -> None:
    """Grids that were tried on the way must not be left over."""
    found = mixed("local", GPTQ, average_bits=3.5)
    named = [f"{name}=w{bits}" for name, bits in widths(found.recipe).items()]
    expected = made(GPTQ, "w8a8", layer_bits=named, report_samples=0).recipe

    assert len(set(widths(found.recipe).values())) > 1
    for name, tensor in expected.tensors.items():
        params = found.recipe.tensors[name].params
        assert np.array_equal(params.scale, tensor.params.scale), name
        assert np.array_equal(params.code_lo, tensor.params.code_lo), name
    for name, codes in expected.codes.items():
        assert np.array_equal(found.recipe.codes[name], codes), name


def test_ends_and_named_weights_keep_their_bits() -> None:
    kept = widths(mixed("local", average_bits=4.4, layer_bits=["w3=w6"]).recipe)
    free = widths(mixed("local", average_bits=2.3, keep_first_last=False).recipe)

    assert {kept[name] for name in ENDS} == {8}
    assert kept["w3"] == 6
    assert all(free[name] < 8 for name in ENDS)


def test_only_weights_change_their_bits() -> None:
    before = made(NEAREST, "w8a4", report_samples=0).recipe
    after = made(NEAREST, "w8a4", average_bits=3.5, report_samples=0).recipe

    for name, tensor in before.tensors.items():
        changes = tensor.role is Role.WEIGHT and name not in ENDS
        same = after.tensors[name].params.spec == tensor.params.spec
        assert same or changes, name
    assert after.tensors["w1"].params.spec.bits < 8


@pytest.mark.parametrize(("form", "method"), [*((f, NEAREST) for f in FORMS), ("local", GPTQ)])
def test_any_number_of_jobs_gives_the_same_bytes(form: str, method: str) -> None:
    one, three = (mixed(form, method, average_bits=6.0, jobs=n).recipe.to_json() for n in (1, 3))

    assert one == three


@pytest.mark.parametrize("form", FORMS)
def test_a_cluster_of_the_user_gives_what_threads_give(form: str) -> None:
    """Tasks hold arrays and bytes alone, and no backend is wired in."""
    expected = mixed(form, average_bits=6.0).recipe.to_json()
    options: Any = {"threads_per_worker": 2, "processes": False, "dashboard_address": None}

    with (
        distributed.LocalCluster(n_workers=1, **options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        found = mixed(form, average_bits=6.0).recipe.to_json()

    assert found == expected


def test_tasks_survive_pickling() -> None:
    recipe, ctx = context()
    task = _tasks(recipe, ctx)["w1"]
    net = Network(ctx.model, list(ctx.samples("test").batches(8)), 1)
    decision = decisions(recipe, ctx)[0]
    other = net.task(decision.nodes, [decision.stored(decision.rows * 1.1, None)])

    again = judge(pickle.loads(pickle.dumps(task)))

    assert np.array_equal(again.cosine, judge(task).cosine)
    assert np.array_equal(distances(pickle.loads(pickle.dumps(other))), distances(other))


def _tasks(recipe: Recipe, ctx: Context) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    for decision, moments in moments_of(decisions(recipe, ctx), ctx.samples("test"), ctx):
        grids: list[Grid] = []
        for bits in (2, 4, 8):
            spec = replace(recipe.tensors[decision.weight].params.spec, bits=bits)
            tensor = replace(recipe.tensors[decision.weight], params=_unit(recipe, decision, spec))
            one = replace(recipe, tensors={decision.weight: tensor})
            params = WeightsMse().apply(one, ctx).tensors[decision.weight].params
            grids.append(Grid.of(params, *decision.rows.shape[:2]))
        tasks[decision.weight] = Task(decision.rows, moments, tuple(grids), None, False)
    return tasks


def _unit(recipe: Recipe, decision: Any, spec: Any) -> Any:
    return type(recipe.tensors[decision.weight].params).unit(
        spec, recipe.tensors[decision.weight].params.scale.size
    )


def test_the_movement_of_a_layer_is_that_of_running_it() -> None:
    recipe, ctx = context()
    feeds = {"x": images(24, 0)}
    for decision in decisions(recipe, ctx):
        judged = judge(_tasks(recipe, ctx)[decision.weight])
        node = decision.nodes[0]
        names = [str(node.outputs[0].name)]
        real = run(ctx, feeds, {}, names)[names[0]].astype(np.float64)
        for width in range(3):
            patch = decision.stored(judged.rounded[width].rows, None)
            # The input of the layer does not depend on its own weight.
            moved = run(ctx, feeds, patch, names)[names[0]].astype(np.float64)
            noise = np.square(real - moved).sum() / np.square(real).sum()
            cosine = (real * moved).sum() / np.linalg.norm(real) / np.linalg.norm(moved)
            assert judged.noise[width] == pytest.approx(noise, rel=1e-3)
            assert judged.cosine[width] == pytest.approx(1 - cosine, rel=1e-3, abs=1e-9)


def run(ctx: Context, feeds: Mapping[str, Array], patch: Any, names: list[str]) -> dict[str, Array]:
    proto = onnx.ModelProto.FromString(io.to_bytes(ort.with_outputs(ctx.model, names)))
    for tensor in proto.graph.initializer:
        if tensor.name in patch:
            tensor.CopyFrom(onnx.numpy_helper.from_array(patch[tensor.name], tensor.name))
    return ort.session(proto.SerializeToString()).run(feeds, names)


def test_cutting_the_network_in_front_of_a_layer_changes_no_distance() -> None:
    recipe, ctx = context()
    net = Network(ctx.model, list(ctx.samples("test").batches(8)), 2)
    for decision in decisions(recipe, ctx):
        patches = [decision.stored(decision.rows * factor, None) for factor in (0.5, 1.2)]

        cut = distances(net.task(decision.nodes, patches))

        assert cut == pytest.approx([net.distance(patch) for patch in patches], rel=1e-3)
        assert cut.min() > 0


def test_rounding_is_that_of_the_methods_behind() -> None:
    behind, none = parse_methods("weights-mse,gptq{rounds=1}"), parse_methods("weights-mse")
    _, ctx = context()

    search = OfmSimilarity().search(replace(ctx, later=behind))

    assert search is not None
    assert search.rounds == 1
    assert OfmSimilarity().search(replace(ctx, later=none)) is None
    assert OfmSimilarity(rounding="nearest").search(replace(ctx, later=behind)) is None
    assert OfmSimilarity(rounding="gptq").search(replace(ctx, later=none)) is not None


@pytest.mark.parametrize(
    "options", ["metric=sqnr", "omega=probe", "widths=2/4/8", "form=greedy,reverse=false"]
)
def test_options_lead_to_a_choice_within_the_budget(options: str) -> None:
    text = f"mse,ofm-similarity{{{options}}},weights-mse"

    result = made(text, "w8a8", average_bits=4.0, report_samples=0)

    assert result.report.average_weight_bits <= 4.0
    if "2/4/8" in options:
        assert set(widths(result.recipe).values()) <= {2, 4, 8}


@needs_vnni
def test_a_weight_that_layers_share_gets_one_width() -> None:
    shapes = {"w0": (8, 8), "w1": (8, 8), "w2": (8, 8)}
    rng = np.random.default_rng(1)
    model = from_text(SHARED, rng, shapes)
    data = {"x": rng.normal(size=(32, 8)).astype(np.float32)}

    result = quantize(
        onnx.ModelProto.FromString(io.to_bytes(model)), data, average_bits=6.5, report_samples=0
    )

    assert result.report.average_weight_bits <= 6.5
    assert widths(result.recipe)["w1"] == 3


def test_budgets_are_put_in_front_of_what_rounds_weights() -> None:
    assert with_budgets("mse,weights-mse,gptq", average_bits=4.0) == (
        "mse,ofm-similarity{average-bits=4.0},weights-mse,gptq"
    )
    assert with_budgets("gptq", max_bytes=9) == "ofm-similarity{max-bytes=9},gptq"
    assert with_budgets("mse", max_bytes=None) == "mse"
    own = with_budgets("ofm-similarity{form=greedy},gptq", max_bytes=9)
    assert own == "ofm-similarity{max-bytes=9,form=greedy},gptq"


@pytest.mark.slow
def test_all_budgets_hold_together() -> None:
    most = file_bytes(mixed("local", average_bits=4.5).model)

    result = mixed("local", average_bits=4.0, max_bytes=most, max_latency_ms=1e3)

    assert file_bytes(result.model) <= most
    assert result.report.average_weight_bits <= 4.0


def test_a_latency_budget_takes_the_narrow_kernels() -> None:
    """Measured times are made up here: 1 ms for each bit of w1, nothing for the rest."""
    model = from_text(RESIDUAL, np.random.default_rng(3), WEIGHTS)
    layer = next(node for node in model.graph if "w1" in [v.name for v in node.inputs if v])

    def times(recipe: Recipe) -> dict[str, float]:
        return {str(layer.name): recipe.tensors["w1"].params.spec.bits, "other": 10.0}

    recipe, ctx = context()
    stats = made(NEAREST, "w8a8", report_samples=0).recipe
    decided = replace(
        stats, tensors={n: stats.tensors[n] for n in recipe.tensors}, steps=(), codes={}, biases={}
    )
    found = OfmSimilarity(max_latency_ms=15.5).apply(decided, replace(ctx, latency_ms=times))

    assert widths(found)["w1"] == 5
    assert widths(found)["w3"] == 8
    with pytest.raises(SpecError, match=r"--max-latency-ms 11 .* the least possible is 12\.0000"):
        OfmSimilarity(max_latency_ms=11).apply(decided, replace(ctx, latency_ms=times))


def test_pareto_points_fall_from_few_bits_to_many(tmp_path: Path) -> None:
    file = tmp_path / "p.json"

    mixed("local", average_bits=4.0, pareto=file)

    points = json.loads(file.read_text())["points"]
    bits = [point["average_bits"] for point in points]
    predicted = [point["predicted"] for point in points]
    measured = [point["measured"] for point in points if point["measured"] is not None]
    assert bits == sorted(bits)
    assert predicted == sorted(predicted, reverse=True)
    assert len(measured) >= 5
    assert measured[0] > measured[-1]
    assert sum(point["chosen"] for point in points) == 1
    assert set(points[0]["widths"]) == {"w1", "w2", "w3", "w4"}
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_descent_sees_that_harms_add_up() -> None:
    """Two weights harm only together: the greedy form narrows one of them and the third."""

    def harm(chosen: tuple[int, ...]) -> float:
        lost = [2 - width for width in chosen]
        return 10.0 * lost[0] * lost[1] + 0.5 * lost[2] + 0.1 * lost[0] + 0.2 * lost[1]

    budget = Resource("--average-bits", 5.0, 0.0, np.tile([1.0, 2.0, 3.0], (3, 1)))

    assert Descent(harm, [budget], 3, lambda: None).run(3) == (0, 2, 0)


def test_shared_tables_are_paid_once() -> None:
    """Alone, neither weight is worth a table of 100; both together are."""
    costs = np.array([[10.0, 90.0], [10.0, 90.0]])
    shared = [[{"t": 100.0}, {}], [{"t": 100.0}, {}]]
    values = np.array([[1.0, 0.0], [1.0, 0.0]])

    assert choose(values, [Resource("--max-bytes", 180.0, 0.0, costs, shared)]) == (1, 1)
    assert choose(values, [Resource("--max-bytes", 170.0, 0.0, costs, shared)]) == (0, 0)
    assert choose(values, [Resource("--max-bytes", 110.0, 0.0, costs, shared)]) is None


def test_without_a_budget_it_says_which_there_are() -> None:
    recipe, ctx = context()

    with pytest.raises(SpecError, match="no budget; give --average-bits"):
        apply(recipe, "ofm-similarity", ctx)


def test_without_data_it_says_what_is_missing() -> None:
    recipe, ctx = context()
    decided = made(NEAREST, "w8a8", report_samples=0).recipe
    decided = replace(decided, tensors={n: decided.tensors[n] for n in recipe.tensors})

    with pytest.raises(CalibrationError, match="ofm-similarity runs the model"):
        apply(decided, "ofm-similarity{average-bits=4}", replace(ctx, batches=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average_bits": 1.5}, "--average-bits 1.5: it must be 2 to 8"),
        ({"max_bytes": 0}, "--max-bytes 0: it must be at least 1"),
        ({"max_latency_ms": -1.0}, "--max-latency-ms -1: it must be above 0"),
        ({"widths": "2/9"}, "widths must be 2 to 8"),
        ({"widths": "all"}, "widths must be 2 to 8"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        OfmSimilarity(**options)
