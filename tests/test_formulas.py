"""The float32 formulas against the installed onnxruntime, bit for bit, on scales rich in ties."""

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxptq import formulas, ort
from onnxptq.formulas import Affine, Container, PairFormula
from tests.ort_versions import IS_OLD, SOFTMAX_IS_EXACT

Array = npt.NDArray[Any]
F = np.float32
MICROSOFT = "com.microsoft"
CONTAINERS: list[Container] = [np.dtype(np.uint8), np.dtype(np.int8)]
ELEMENT = {
    np.dtype(np.uint8): onnx.TensorProto.UINT8,
    np.dtype(np.int8): onnx.TensorProto.INT8,
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.int32): onnx.TensorProto.INT32,
}
REPEATS = 60

by_container = pytest.mark.parametrize("dtype", CONTAINERS, ids=str)


def run(op: str, inputs: list[Any], fed: list[int], result: Any, **attributes: Any) -> Array:
    """One node on onnxruntime; inputs at the positions `fed` are fed, the others constants."""
    names = [f"i{position}" for position in range(len(inputs))]
    domain = str(attributes.pop("domain", MICROSOFT))
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    arrays = dict(zip(names, map(np.asarray, inputs), strict=True))
    feeds = {names[position]: arrays[names[position]] for position in fed}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, ELEMENT[x.dtype], x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info("y", ELEMENT[np.dtype(result)], None)],
        [numpy_helper.from_array(x, n) for n, x in arrays.items() if n not in feeds],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.session(model.SerializeToString(), threads=1).run(feeds)["y"]


def decimal(rng: np.random.Generator) -> np.float32:
    """A multiple of 0.01: ratios of these are close to fractions, so near-ties abound."""
    return F(int(rng.integers(1, 40)) * 0.01)


def any_code(rng: np.random.Generator, dtype: Container) -> int:
    info = np.iinfo(dtype)
    return int(rng.integers(info.min, info.max + 1))


def all_codes(dtype: Container) -> Array:
    info = np.iinfo(dtype)
    return np.arange(info.min, info.max + 1).astype(dtype)


def random_codes(rng: np.random.Generator, dtype: Container, shape: tuple[int, ...]) -> Array:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def all_pairs(dtype: Container) -> tuple[Array, Array]:
    codes = all_codes(dtype)
    return np.repeat(codes, 256), np.tile(codes, 256)


def of(affine: Affine, dtype: Container) -> list[Any]:
    return [F(affine.scale), dtype.type(affine.zero_point)]


def pair_formula(rng: np.random.Generator, dtype: Container, swapped: bool = False) -> PairFormula:
    a, b, y = (Affine(decimal(rng), any_code(rng, dtype)) for _ in range(3))
    return PairFormula(a, b, y, dtype, swapped)


def run_pair(op: str, a: Array, b: Array, formula: PairFormula) -> Array:
    dtype = formula.dtype
    inputs = [a, *of(formula.a, dtype), b, *of(formula.b, dtype), *of(formula.y, dtype)]
    return run(op, inputs, [0, 3], dtype)


@by_container
def test_a_convolution_requantizes_so(dtype: Container, rng: np.random.Generator):
    for _ in range(REPEATS):
        x_scale, y = decimal(rng), Affine(decimal(rng), any_code(rng, dtype))
        w_scale = np.array([decimal(rng) for _ in range(7)], F)
        x = random_codes(rng, dtype, (1, 3, 1, 300))
        w = rng.integers(-9, 10, (7, 3, 1, 1)).astype(np.int8)
        bias = rng.integers(-300, 300, 7).astype(np.int32)
        x_zero = any_code(rng, dtype)
        zeros = np.zeros(7, np.int8)
        inputs = [x, x_scale, dtype.type(x_zero), w, w_scale, zeros, *of(y, dtype), bias]

        found = run("QLinearConv", inputs, [0], dtype, domain="")

        steps = x[0, :, 0].astype(np.int32) - x_zero
        acc = steps.T @ w[:, :, 0, 0].T.astype(np.int32) + bias
        scale = formulas.requant_scale(x_scale, w_scale, y.scale)
        info = np.iinfo(dtype)
        expected = formulas.requantized(acc, scale, y.zero_point, info.min, info.max)
        np.testing.assert_array_equal(found[0, :, 0].T, expected)


def test_accumulators_beyond_24_bits_are_rounded_first(rng: np.random.Generator):
    bias = np.concatenate(
        [
            rng.integers(-(2**31), 2**31, 400),
            2**24 + np.arange(-20, 20),
            [-(2**31), 2**31 - 1, 0, 2**25 + 2, 2**25 + 6],
        ]
    ).astype(np.int32)
    channels = bias.size
    for exponent in (-30, -24, -18, -12, 100, -140):
        x = np.zeros((1, 1, 1, 1), np.uint8)
        w = np.ones((channels, 1, 1, 1), np.int8)
        w_scale = (rng.uniform(1, 2, channels) * 2.0**exponent).astype(F)
        inputs = [x, F(1), np.uint8(0), w, w_scale, np.zeros(channels, np.int8)]

        found = run("QLinearConv", [*inputs, F(1), np.uint8(77), bias], [0], np.uint8, domain="")

        expected = formulas.requantized(bias, w_scale, 77, 0, 255)
        np.testing.assert_array_equal(found.reshape(-1), expected)


@by_container
def test_quantize_and_dequantize(dtype: Container, rng: np.random.Generator):
    for _ in range(REPEATS):
        affine = Affine(decimal(rng), any_code(rng, dtype))
        ties = (rng.integers(-300, 300, 400) + F(0.5)) * affine.scale
        far = [np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0]
        x = np.concatenate([ties, rng.normal(size=400) * 100 * affine.scale, far]).astype(F)

        codes = run("QuantizeLinear", [x, *of(affine, dtype)], [0], dtype, domain="")
        reals = run("DequantizeLinear", [codes, *of(affine, dtype)], [0], F, domain="")

        np.testing.assert_array_equal(codes, formulas.quantized(x, affine, dtype))
        np.testing.assert_array_equal(reals, formulas.dequantized(codes, affine))


@by_container
def test_add(dtype: Container, rng: np.random.Generator):
    a, b = all_pairs(dtype)
    for _ in range(REPEATS):
        formula = pair_formula(rng, dtype)

        found = run_pair("QLinearAdd", a, b, formula)

        np.testing.assert_array_equal(found, formulas.added(a, b, formula))


@by_container
def test_add_of_one_element_exchanges_the_operands(dtype: Container, rng: np.random.Generator):
    many = all_codes(dtype)
    differing = 0
    for _ in range(20 * REPEATS):
        one = random_codes(rng, dtype, (1,))
        formula = pair_formula(rng, dtype, swapped=True)
        straight = PairFormula(formula.a, formula.b, formula.y, dtype)
        expected = formulas.added(one, many, formula)
        differs = (expected != formulas.added(one, many, straight)).any()
        if not differs:
            continue
        differing += 1

        found = run_pair("QLinearAdd", one, many, formula)

        np.testing.assert_array_equal(found, expected)
    assert differing > 0


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((1,), (7,)),
        ((7,), (1,)),
        ((3, 1), (3, 7)),
        ((3, 1), (1, 7)),
        ((3, 7), (3, 1)),
        ((1, 7), (3, 1)),
        ((3, 1, 1), (3, 5, 1)),
        ((3, 5), (5,)),
        ((5,), (3, 5)),
        ((1, 4, 1, 1), (2, 4, 3, 3)),
        ((2, 4, 3, 3), (1, 4, 1, 1)),
        ((1, 1), (1, 1)),
        ((2, 1, 3), (2, 4, 3)),
        ((2, 4, 3), (2, 1, 3)),
        ((2, 3, 1, 1), (1, 3, 4, 4)),
        ((), (6,)),
        ((6,), ()),
    ],
    ids=str,
)
def test_which_broadcasts_exchange_the_operands(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], rng: np.random.Generator
):
    dtype = CONTAINERS[0]
    decided = 0
    for _ in range(4000):
        a, b = random_codes(rng, dtype, a_shape), random_codes(rng, dtype, b_shape)
        formula = pair_formula(rng, dtype, formulas.swaps(a_shape, b_shape))
        other = PairFormula(formula.a, formula.b, formula.y, dtype, not formula.swapped)
        expected = formulas.added(a, b, formula)
        if (expected == formulas.added(a, b, other)).all():
            continue
        decided += 1

        found = run_pair("QLinearAdd", a, b, formula)

        np.testing.assert_array_equal(found, expected)
        if decided == 5:
            break
    assert decided > 0


@by_container
def test_multiply(dtype: Container, rng: np.random.Generator):
    a, b = all_pairs(dtype)
    for _ in range(REPEATS):
        formula = pair_formula(rng, dtype)

        found = run_pair("QLinearMul", a, b, formula)

        np.testing.assert_array_equal(found, formulas.multiplied(a, b, formula))


@by_container
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_what_int32_cannot_hold_becomes_the_lowest_code(op: str, dtype: Container):
    a, b = all_pairs(dtype)
    large, tiny = Affine(F(3.7), 3), Affine(F(1e-9), 5)
    formula = PairFormula(large, large, tiny, dtype)
    compute = formulas.added if op == "QLinearAdd" else formulas.multiplied

    found = run_pair(op, a, b, formula)

    np.testing.assert_array_equal(found, compute(a, b, formula))


@by_container
@pytest.mark.parametrize("include_pad", [0, 1])
def test_average_pool(dtype: Container, include_pad: int, rng: np.random.Generator):
    side, kernel = 9, 3
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    for repeat in range(REPEATS // 2):
        x_affine = Affine(F(1) if repeat % 2 else decimal(rng), any_code(rng, dtype))
        y = Affine(F(2.0 ** int(rng.integers(-1, 4))) if repeat % 2 else decimal(rng), 7)
        x = random_codes(rng, dtype, (1, 4, side, side))
        inputs = [x, *of(x_affine, dtype), *of(y, dtype)]
        shape = {"kernel_shape": [kernel] * 2, "pads": [1] * 4, "count_include_pad": include_pad}

        found = run("QLinearAveragePool", inputs, [0], dtype, **shape)

        windows, inside = [], []
        for row in range(kernel):
            for column in range(kernel):
                h, w = rows + row - 1, columns + column - 1
                inside.append((h >= 0) & (h < side) & (w >= 0) & (w < side))
                windows.append(x[0, :, h.clip(0, side - 1), w.clip(0, side - 1)])
        mask = np.stack(inside, axis=-1)[..., None, :]
        count = kernel * kernel if include_pad else mask.sum(axis=-1)
        real = formulas.average_pooled(np.stack(windows, axis=-1), mask, count, x_affine, y)
        expected = formulas.rounded(real, dtype)
        np.testing.assert_array_equal(np.moveaxis(found[0], 0, -1), expected)


@by_container
def test_global_average_pool(dtype: Container, rng: np.random.Generator):
    info = np.iinfo(dtype)
    for height, width in [(7, 7), (1, 1), (14, 9), (8, 8)] * 10:
        x_affine = Affine(decimal(rng), any_code(rng, dtype))
        y = Affine(decimal(rng), any_code(rng, dtype))
        x = random_codes(rng, dtype, (2, 65, height, width))

        inputs = [x, *of(x_affine, dtype), *of(y, dtype)]
        found = run("QLinearGlobalAveragePool", inputs, [0], dtype, channels_last=0)

        pixels = height * width
        acc = x.astype(np.int32).sum(axis=(2, 3)) - x_affine.zero_point * pixels
        scale = formulas.global_average_scale(x_affine.scale, y.scale, pixels)
        expected = formulas.requantized(acc, scale, y.zero_point, info.min, info.max)
        np.testing.assert_array_equal(found.reshape(2, 65), expected)


SOFTMAXED = formulas.softmaxed if SOFTMAX_IS_EXACT else formulas.softmaxed_in_float32


@by_container
def test_softmax(dtype: Container, rng: np.random.Generator):
    info = np.iinfo(dtype)
    if IS_OLD and info.min < 0:
        pytest.skip("an old onnxruntime wraps int8 codes around")
    for repeat in range(REPEATS):
        length = int(rng.integers(2, 300))
        x_scale = F(rng.uniform(0.01, 0.2)) if repeat % 2 else decimal(rng)
        y = Affine(F(1 / 256) if repeat % 3 else F(rng.uniform(0.002, 0.01)), info.min + repeat % 5)
        x = random_codes(rng, dtype, (5, length))
        inputs = [x, x_scale, dtype.type(0), *of(y, dtype)]

        found = run("QLinearSoftmax", inputs, [0], dtype, axis=-1, opset=13)

        np.testing.assert_array_equal(found, SOFTMAXED(x, x_scale, y, dtype))


def test_a_share_of_softmax_is_rounded_as_often_as_in_this_version(rng: np.random.Generator):
    """Scales whose inverse is no power of two: t * c is not exact in float32, and c is odd."""
    for _ in range(40 * REPEATS):
        x_scale, y = F(rng.uniform(0.005, 0.03)), Affine(F(1 / int(rng.integers(100, 256))), 0)
        length = int(rng.integers(2, 12))
        x = random_codes(rng, np.dtype(np.uint8), (400, length))

        inputs = [x, x_scale, np.uint8(0), *of(y, np.dtype(np.uint8))]
        found = run("QLinearSoftmax", inputs, [0], np.dtype(np.uint8), axis=-1, opset=13)

        expected = SOFTMAXED(x, x_scale, y, np.dtype(np.uint8))
        np.testing.assert_array_equal(found, expected)


@by_container
@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_functions_of_one_code(op: str, dtype: Container, rng: np.random.Generator):
    codes = all_codes(dtype)
    for _ in range(REPEATS):
        x_affine = Affine(F(rng.uniform(0.005, 0.1)), any_code(rng, dtype))
        y = Affine(decimal(rng), any_code(rng, dtype))
        alpha = float(F(rng.uniform(0.01, 0.3)))
        attributes = {"alpha": alpha} if op == "QLinearLeakyRelu" else {}

        inputs = [codes, *of(x_affine, dtype), *of(y, dtype)]
        found = run(op, inputs, [0], dtype, **attributes)

        real = formulas.dequantized(codes, x_affine)
        real = formulas.leaky_relu(real, alpha) if attributes else formulas.sigmoid(real)
        np.testing.assert_array_equal(found, formulas.quantized(real, y, dtype))


def test_sigmoid_has_the_same_bits(rng: np.random.Generator):
    edges = [0.0, -0.0, 17.999, 18.0, 18.1, -18.1, 88.0, -88.0]
    x = np.concatenate([rng.uniform(-20, 20, 50_000), rng.normal(size=50_000), edges]).astype(F)

    found = run("Sigmoid", [x], [0], F, domain="")

    np.testing.assert_array_equal(found.view(np.int32), formulas.sigmoid(x).view(np.int32))


def test_fma_rounds_once(rng: np.random.Generator):
    """Against exact rational arithmetic, where rounding twice would go wrong."""
    a = rng.integers(2**23, 2**24, 300).astype(F)
    b = rng.integers(2**23, 2**24, 300).astype(F)
    c = (-(a.astype(np.float64) * b)).astype(F) * rng.choice([1, 0.5, 2.0**-30], 300).astype(F)

    found = formulas.fma32(a, b, c)

    for x, y, z, result in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(result)) - exact)
        for direction in (-np.inf, np.inf):
            neighbour = Fraction(float(np.nextafter(result, F(direction))))
            assert error <= abs(neighbour - exact)
