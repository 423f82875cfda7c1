"""allocate-bits: exact budgets, optimal widths, codes inside of them, and files that run."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq import ort, quantize
from onnxptq.errors import SpecError
from onnxptq.methods import apply
from onnxptq.methods.allocate_bits import AllocateBits, code_entropy
from onnxptq.methods.allocation import by_bins, by_bits
from onnxptq.methods.method import Context
from onnxptq.methods.weights import WeightsMse
from onnxptq.pipeline import Quantized
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant
from onnxptq.rewrite.storage import packed_bytes
from onnxptq.runtime.lint import lint
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.methods.test_weights import model_with
from tests.small_models import proto_from_text

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

NETWORK = """
network (float[N, 4, 10, 10] x) => (float[N, 5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  b = Conv <pads = [1, 1, 1, 1]> (ar, w1, b1)
  br = Relu (b)
  c = Conv <group = 16, pads = [1, 1, 1, 1]> (br, w2)
  s = Add (c, ar)
  g = GlobalAveragePool (s)
  f = Flatten (g)
  h = Gemm <transB = 1> (f, w3, b3)
  y = MatMul (h, w4)
}
"""
WEIGHTS = {
    "w0": (16, 4, 3, 3),
    "b0": (16,),
    "w1": (16, 16, 3, 3),
    "b1": (16,),
    "w2": (16, 1, 3, 3),
    "w3": (12, 16),
    "b3": (12,),
    "w4": (12, 5),
}


def network() -> Any:
    """Channels of unequal ranges, as folded BatchNorms leave them."""
    model = proto_from_text(NETWORK, np.random.default_rng(5), WEIGHTS)
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "w2"):
            array = np.frombuffer(tensor.raw_data, np.float32).reshape(WEIGHTS[tensor.name])
            gains = np.exp(np.random.default_rng(6).normal(scale=0.8, size=(16, 1, 1, 1)))
            tensor.raw_data = (array * gains).astype(np.float32).tobytes()
    return model


def images() -> Array:
    return np.random.default_rng(1).normal(size=(24, 4, 10, 10)).astype(np.float32)


def made(method: str, bits: str = "w3a3", **options: Any) -> Quantized:
    return quantize(network(), {"x": images()}, bits=bits, method=method, **options)


def ranges(seed: int, count: int, spread: float) -> npt.NDArray[np.float64]:
    return np.exp(np.random.default_rng(seed).normal(scale=spread, size=count))


def rows_of_unequal_ranges(count: int = 24, length: int = 200) -> F32:
    rng = np.random.default_rng(2)
    return (rng.normal(size=(count, length)) * ranges(3, count, 1.0)[:, None]).astype(np.float32)


def fitted(method: str, rows: F32, bits: int) -> Recipe:
    unit = QParams.unit(QuantSpec(bits, signed=True, axis=0), rows.shape[0])
    recipe = Recipe("digest", {"w": TensorQuant("w", Role.WEIGHT, unit)})
    return apply(recipe, method, Context(model_with(rows), {}))


def cost(alpha: npt.NDArray[np.float64], widths: npt.ArrayLike) -> float:
    return float((alpha**2 / 4.0 ** np.asarray(widths)).sum())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("bits", "ends"), [(3, (2, 8)), (3, (0, 8)), (4, (2, 5)), (2, (1, 4))])
def test_a_budget_of_bits_is_spent_exactly_and_no_other_widths_do_better(
    seed: int, bits: int, ends: tuple[int, int]
) -> None:
    alpha = ranges(seed, 5, 1.3)

    widths = by_bits(alpha, bits, ends)

    every = itertools.product(range(ends[0], ends[1] + 1), repeat=5)
    least = min(cost(alpha, tried) for tried in every if sum(tried) == 5 * bits)
    assert widths.sum() == 5 * bits
    assert widths.min() >= ends[0]
    assert widths.max() <= ends[1]
    assert cost(alpha, widths) == pytest.approx(least, rel=1e-9)  # ties differ in the last digit


@pytest.mark.parametrize("count", [1, 7, 16, 64, 1000])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_mean_width_is_the_nominal_one(count: int, bits: int, spread: float) -> None:
    widths = by_bits(ranges(0, count, spread), bits, (2, 8))

    assert widths.mean() == bits


def test_dead_channels_give_their_bits_to_the_others() -> None:
    alpha = np.array([0.0, 1.0, 0.0, 1.0])

    assert by_bits(alpha, 4, (2, 8)).tolist() == [2, 6, 2, 6]
    assert by_bits(np.zeros(3), 4, (2, 8)).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("spread", "mean", "of_uniform"),
    [(0.3, 3.97, (0.93, 0.90)), (0.6, 3.89, (0.60, 0.56)), (1.0, 3.70, (0.25, 0.20))],
)
def test_the_closed_forms_save_what_the_note_says(
    spread: float, mean: float, of_uniform: tuple[float, float]
) -> None:
    """methods.md 3: bins spend fewer bits than nominal without the authors' third step.

    The heaviest tail moves its sums by a quarter from one draw to the next.
    """
    slack = 0.06 if spread == 1.0 else 0.03
    alpha = ranges(0, 20_000, spread)
    plain = np.log2(16 * alpha ** (2 / 3) / (alpha ** (2 / 3)).mean())

    uniform = cost(alpha, 4)

    assert plain.mean() == pytest.approx(mean, abs=0.02)
    bins, bits = by_bins(alpha, 4, (0, 8)), by_bits(alpha, 4, (0, 8))
    assert cost(alpha, bins) / uniform == pytest.approx(of_uniform[0], abs=slack)
    assert cost(alpha, bits) / uniform == pytest.approx(of_uniform[1], abs=slack)
    assert bins.mean() == pytest.approx(4, abs=0.02)  # half a step is 0.01


def test_codes_stay_inside_of_their_channels_width() -> None:
    recipe = fitted("allocate-bits{lowest=0}", rows_of_unequal_ranges(), 3)

    widths, codes = recipe.widths["w"], recipe.codes["w"]
    assert len(set(widths.tolist())) > 3
    assert recipe.tensors["w"].params.spec.bits == widths.max()
    for width, row in zip(widths.tolist(), codes, strict=True):
        assert int(row.max()) - int(row.min()) < 1 << width
    low, high = recipe.code_ends("w")
    # 8 bits leave out -128, as everywhere.
    assert (high - low + 1 == np.minimum(1 << widths, 255)).all()


@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_a_channel_has_the_scale_that_weights_mse_gives_at_its_width(width: int) -> None:
    rows = rows_of_unequal_ranges()
    recipe = fitted("allocate-bits", rows, 4)
    chosen = recipe.widths["w"] == width

    scale, code_lo = WeightsMse().fit(rows[chosen], QuantSpec(width, signed=True, axis=0))

    np.testing.assert_array_equal(recipe.tensors["w"].params.scale[chosen], scale)
    np.testing.assert_array_equal(recipe.tensors["w"].params.code_lo[chosen], code_lo)


def test_one_bit_holds_zero_and_the_value_beside_it_that_suits_best() -> None:
    rows = np.array([[0.0, 1.0, 1.1, 0.1], [0.0, -2.0, -2.2, 0.1]], np.float32)
    method = AllocateBits(lowest=1)

    scale, code_lo = method._fit(rows, QuantSpec(2, signed=True, axis=0), 1)  # pyright: ignore[reportPrivateUsage]

    assert code_lo.tolist() == [0, -1]
    assert scale == pytest.approx([1.05, 2.1], rel=0.03)


def error_of(method: str, rows: F32, bits: int) -> float:
    recipe = fitted(method, rows, bits)
    params = recipe.tensors["w"].params
    codes = recipe.codes.get("w")
    real = params.round_trip(rows) if codes is None else params.dequantize(codes)
    return float(np.square(real - rows, dtype=np.float64).sum())


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(
    "method",
    [
        "allocate-bits",
        "allocate-bits{budget=bins}",
        "allocate-bits{scales=aciq}",
        "allocate-bits{prior=laplace,scales=aciq}",
    ],
)
def test_error_is_below_that_of_equal_widths(method: str, bits: int) -> None:
    rows = rows_of_unequal_ranges()

    assert error_of(method, rows, bits) < 0.5 * error_of("weights-mse", rows, bits)


def test_wider_weights_and_weights_without_channels_are_left() -> None:
    rows = rows_of_unequal_ranges()

    assert fitted("weights-mse,allocate-bits", rows, 5).widths == {}
    assert fitted("weights-mse,allocate-bits{up-to=5}", rows, 5).widths["w"].mean() == 5
    made_per_tensor = made("allocate-bits", per_channel=False)
    assert made_per_tensor.recipe.widths == {}


def test_new_parameters_drop_the_codes_and_widths_of_the_old_ones() -> None:
    recipe = fitted("allocate-bits,weights-mse", rows_of_unequal_ranges(), 3)

    assert recipe.codes == {}
    assert recipe.widths == {}


def test_widths_come_back_from_the_recipes_text() -> None:
    recipe = made("allocate-bits").recipe

    found = Recipe.from_json(recipe.to_json())

    assert found.to_json() == recipe.to_json()
    assert set(found.widths) == set(recipe.widths) == {"w1", "w2", "w3"}
    np.testing.assert_array_equal(found.widths["w1"], recipe.widths["w1"])
    assert found.widths["w1"].dtype == np.int32


def test_equal_widths_leave_nothing_in_the_recipes_text() -> None:
    assert "widths" not in made("weights-mse").recipe.to_json()


@needs_vnni
@pytest.mark.parametrize("method", ["allocate-bits", "mse,allocate-bits{lowest=0},gptq"])
def test_the_file_runs_in_integers_bit_for_bit(method: str, tmp_path: Path) -> None:
    result = made(method)
    result.save(tmp_path / "q.onnx")

    found = verify(tmp_path / "q.onnx", [{"x": images()[:4]}])

    assert [row.node for row in lint(tmp_path / "q.onnx").float_nodes if row.inside] == []
    assert found.bit_exact
    assert found.elements > 10_000
    plain = quantize(network(), recipe=write(result.recipe, tmp_path), storage="int8")
    feeds = {"x": images()}
    np.testing.assert_array_equal(
        ort.session(result.model).run(feeds)["y"], ort.session(plain.model).run(feeds)["y"]
    )


def write(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.json"
    path.write_text(recipe.to_json(), encoding="utf-8")
    return path


def test_gptq_keeps_the_width_of_each_channel() -> None:
    before = made("mse,allocate-bits").recipe
    after = made("mse,allocate-bits,gptq").recipe

    changed = 0
    for name, widths in before.widths.items():
        np.testing.assert_array_equal(after.widths[name], widths)
        axis = after.tensors[name].params.spec.axis
        assert axis is not None
        rows = np.moveaxis(after.codes[name], axis, 0).reshape(widths.size, -1)
        low, high = (end[:, None] for end in after.code_ends(name))
        assert ((low <= rows) & (rows <= high)).all()
        changed += int((after.codes[name] != before.codes[name]).sum())
    assert changed > 0


def test_the_step_says_what_it_came_to() -> None:
    result = made("allocate-bits", keep_first_last=False)

    recipe = result.recipe
    step = next(step for step in recipe.steps if step.method == "allocate-bits")
    stored = {
        tensor.value: sum(
            value.const_value.nbytes
            for name, value in result.model.graph.initializers.items()
            if value.const_value is not None
            and re.fullmatch(rf"{tensor.value}_quantized_bits\d", name)
        )
        for tensor in recipe.weights()
    }
    expected = sum(
        packed_bytes(recipe.codes[name].size, recipe.tensors[name].params.spec.bits)
        for name in stored
    )
    assert step.numbers["mean_bits"] == 3
    assert step.numbers["packed_bytes"] == expected
    assert 0 < step.numbers["entropy_bytes"] < expected
    assert result.report.average_weight_bits == 3
    planes = [name for name in stored if recipe.tensors[name].params.spec.bits not in (4, 8)]
    assert planes
    for name in planes:
        codes, spec = recipe.codes[name], recipe.tensors[name].params.spec
        assert stored[name] == packed_bytes(codes.size, spec.bits)


def test_entropy_of_equal_shares_is_the_width() -> None:
    assert code_entropy(np.tile(np.arange(-4, 4), 5).astype(np.int8)) == pytest.approx(3)
    assert code_entropy(np.zeros(9, np.int8)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 3}, "lowest is 3, it must be 0, 1 or 2"),
        ({"highest": 9}, "highest must be 2 to 8"),
        ({"up_to": 1}, "up-to must be 2 to 8"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"allocate-bits: {message}"):
        AllocateBits(**options)
