"""weights-minmax and weights-mse."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.errors import ModelError
from onnxptq.methods import apply
from onnxptq.methods.method import Context
from onnxptq.methods.weights import WeightsMse, weight_grids
from onnxptq.quant import F32, QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant


def model_with(weight: F32) -> ir.Model:
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


def fitted(method: str, weight: F32, bits: int, axis: int | None = 0) -> QParams:
    channels = None if axis is None else weight.shape[axis]
    unit = QParams.unit(QuantSpec(bits, signed=True, axis=axis), channels)
    recipe = Recipe("digest", {"w": TensorQuant("w", Role.WEIGHT, unit)})
    return apply(recipe, method, Context(model_with(weight), {})).tensors["w"].params


def normal(*shape: int) -> F32:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_minmax_reaches_the_largest_weight_of_each_channel() -> None:
    weight = normal(5, 3, 3, 3)

    params = fitted("weights-minmax", weight, 8)

    largest = np.abs(weight).reshape(5, -1).max(axis=1)
    np.testing.assert_array_equal(params.scale, (largest / 127).astype(np.float32))
    assert (params.code_lo == -127).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_lie_along_the_axis_of_the_format(axis: int) -> None:
    weight = normal(4, 6)

    params = fitted("weights-mse", weight, 4, axis)
    rows = np.moveaxis(weight, axis, 0)
    alone = [fitted("weights-mse", row[None], 4).scale[0] for row in rows]

    np.testing.assert_array_equal(params.scale, np.asarray(alone))


def test_per_tensor_weight_has_one_scale() -> None:
    params = fitted("weights-mse", normal(4, 6), 4, axis=None)

    assert params.scale.shape == params.code_lo.shape == ()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_mse_beats_minmax_below_8_bits(bits: int) -> None:
    weight = normal(16, 64)

    def error(params: QParams) -> F32:
        steps = np.abs(params.round_trip(weight) - weight).astype(np.float64) ** 2.4
        return steps.sum(axis=1)

    best = error(fitted("weights-mse", weight, bits))
    plain = error(fitted("weights-minmax", weight, bits))

    assert (best <= plain * 1.001).all()  # the kernel's power is off by up to 2e-4
    assert best.sum() < plain.sum()


def test_grid_shifts_up_for_a_channel_with_a_heavy_positive_side() -> None:
    row = np.linspace(-1, 2, 200, dtype=np.float32)

    params = fitted("weights-mse", np.stack([row, -row]), 2)

    assert params.code_lo.tolist() == [-1, -2]
    assert params.code_hi.tolist() == [2, 1]


def test_eight_bits_use_the_symmetric_grid_alone() -> None:
    assert weight_grids(QuantSpec(8, signed=True, axis=0)).tolist() == [[-127, 127]]


def test_dead_channel_gets_scale_one() -> None:
    weight = normal(2, 9)
    weight[1] = 0

    for method in ("weights-minmax", "weights-mse"):
        assert fitted(method, weight, 4).scale[1] == 1


def test_activation_methods_leave_weights_alone_and_the_other_way_round() -> None:
    weight = normal(2, 9)
    unit = QParams.unit(QuantSpec(4, signed=True, axis=0), 2)
    recipe = Recipe("digest", {"w": TensorQuant("w", Role.WEIGHT, unit)})
    ctx = Context(model_with(weight), {})

    assert apply(recipe, "minmax,mse,percentile,entropy", ctx).tensors["w"].params is unit


def test_nan_in_a_weight_is_an_error_that_names_it() -> None:
    weight = normal(2, 9)
    weight[0, 0] = np.nan

    with pytest.raises(ModelError, match="weight 'w' holds 1 NaN or inf"):
        fitted("weights-mse", weight, 4)


def test_missing_weight_is_an_error_that_names_it() -> None:
    unit = QParams.unit(QuantSpec(4, signed=True, axis=0), 2)
    recipe = Recipe("digest", {"v": TensorQuant("v", Role.WEIGHT, unit)})

    with pytest.raises(ModelError, match="weight 'v' of the recipe is not a constant"):
        apply(recipe, "weights-minmax", Context(model_with(normal(2, 9)), {}))


def test_search_tries_at_least_80_shrinks() -> None:
    rows = normal(1, 500)
    spec = QuantSpec(3, signed=True, axis=0)

    scales, code_lo = WeightsMse().fit(rows, spec)

    full = np.abs(rows).max() / 3
    tried = [
        (np.float32(full * share), lo) for share in np.linspace(1, 0.05, 96) for lo in (-4, -3)
    ]
    errors = [
        (np.abs(rows - s * np.clip(np.rint(rows / s), lo, lo + 7)).astype(np.float64) ** 2.4).sum()
        for s, lo in tried
    ]
    best = tried[int(np.argmin(errors))]
    assert (scales[0], code_lo[0]) == (pytest.approx(best[0], rel=1e-5), best[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, None])
def test_zero_points_let_both_ends_of_a_channel_fit(bits: int, axis: int | None) -> None:
    weight = normal(6, 40) + np.float32(1.5)

    with pytest.warns(UserWarning, match=r"about 1\.5 times slower"):
        params = fitted("weights-asymmetric", weight, bits, axis)

    error = np.abs(params.round_trip(weight) - weight)
    # Half a step for the weight, and half a step for the rounded zero point.
    assert (error <= params.along(params.scale, 2) * 1.001).all()
    assert (params.round_trip(np.zeros_like(weight)) == 0).all()
