"""Integer formats and the affine map, held against onnxruntime's own QuantizeLinear."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxptq import ort
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.quant import SMALLEST_SCALE, QParams, QuantSpec

F32 = npt.NDArray[np.float32]

BITS = st.integers(2, 8)
REALS = st.floats(-1e6, 1e6, width=32)


def onnxruntimes_codes(x: F32, params: QParams) -> npt.NDArray[Any]:
    """QuantizeLinear alone: what it gives inside of the container, with no window of codes."""
    container = TensorProto.INT8 if params.spec.signed else TensorProto.UINT8
    axis = params.spec.axis
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    names = ["x", "scale", "zero_point"]
    kinds = [TensorProto.FLOAT, TensorProto.FLOAT, container]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", names, ["y"], **attributes)],
        "quantize",
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)],
        [helper.make_tensor_value_info("y", container, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feeds = {
        "x": x,
        "scale": params.scale,
        "zero_point": params.zero_point.astype(params.spec.container),
    }
    return ort.session(model.SerializeToString(), threads=1).run(feeds)["y"]


def whole_container(params: QParams) -> QParams:
    """8 bits with every code of the container in the window."""
    code_lo = np.full(params.scale.shape, params.spec.container_min, np.int32)
    return QParams(params.spec, params.scale, params.zero_point, code_lo)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("zero_point", [0, 7, 100])
def test_ties_are_rounded_as_onnxruntime_rounds_them(signed: bool, zero_point: int):
    spec = QuantSpec(8, signed=signed)
    zero = np.asarray(zero_point, np.int32)
    params = whole_container(QParams(spec, np.asarray(0.25, np.float32), zero, zero * 0))
    ties = np.arange(-700, 700).astype(np.float32) * np.float32(0.125)

    np.testing.assert_array_equal(params.quantize(ties), onnxruntimes_codes(ties, params))


@given(
    x=hnp.arrays(np.float32, st.integers(1, 40), elements=REALS),
    lo=st.floats(-1e3, 0, width=32),
    hi=st.floats(0.0078125, 1e3, width=32),
    signed=st.booleans(),
)
def test_codes_of_8_bits_are_those_of_onnxruntime(x: F32, lo: float, hi: float, signed: bool):
    params = whole_container(QParams.from_range(lo, hi, QuantSpec(8, signed=signed)))

    np.testing.assert_array_equal(params.quantize(x), onnxruntimes_codes(x, params))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channels_are_those_of_onnxruntime(axis: int, rng: np.random.Generator):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    top = np.abs(x).max(axis=tuple({0, 1, 2} - {axis}))
    params = QParams.from_range(-top, top, QuantSpec(8, signed=True, axis=axis))

    np.testing.assert_array_equal(params.quantize(x), onnxruntimes_codes(x, params))


@given(lo=REALS, hi=REALS, bits=BITS, signed=st.booleans())
def test_zero_is_stored_exactly(lo: float, hi: float, bits: int, signed: bool):
    params = QParams.from_range(min(lo, hi), max(lo, hi), QuantSpec(bits, signed=signed))

    zero = np.zeros(3, np.float32)

    np.testing.assert_array_equal(params.round_trip(zero), zero)


@given(lo=REALS, hi=REALS, bits=BITS, signed=st.booleans(), share=st.floats(0, 1))
def test_what_lies_in_the_range_of_the_codes_is_off_by_half_a_step(
    lo: float, hi: float, bits: int, signed: bool, share: float
):
    params = QParams.from_range(min(lo, hi), max(lo, hi), QuantSpec(bits, signed=signed))
    low, high = float(params.lo), float(params.hi)
    x = np.asarray([low + share * (high - low)], np.float32)

    error = np.abs(params.round_trip(x).astype(np.float64) - x)

    # One more unit in the last place of x, from its own rounding to float32.
    assert error[0] <= float(params.scale) * 0.5 * (1 + 1e-4) + float(np.spacing(np.abs(x[0])))


@given(lo=REALS, hi=REALS, bits=BITS, signed=st.booleans())
def test_the_range_asked_for_is_covered_up_to_half_a_step(
    lo: float, hi: float, bits: int, signed: bool
):
    low, high = min(lo, hi, 0.0), max(lo, hi, 0.0)

    params = QParams.from_range(min(lo, hi), max(lo, hi), QuantSpec(bits, signed=signed))

    slack = float(params.scale) * 0.5 * (1 + 1e-4)
    assert float(params.lo) <= low + slack
    assert float(params.hi) >= high - slack


@given(
    x=hnp.arrays(np.float32, st.integers(1, 40), elements=REALS),
    bits=BITS,
    signed=st.booleans(),
    shift=st.integers(0, 100),
)
def test_codes_stay_in_their_window(x: F32, bits: int, signed: bool, shift: int):
    fitted = QParams.from_range(-1.0, 1.0, QuantSpec(bits, signed=signed))
    code_lo = fitted.code_lo + np.int32(shift)
    params = QParams(fitted.spec, fitted.scale, fitted.zero_point, code_lo)

    codes = params.quantize(x).astype(np.int32)

    assert codes.min() >= int(code_lo)
    assert codes.max() <= min(int(code_lo) + 2**bits - 1, params.spec.container_max)


def test_quantizing_twice_changes_nothing(rng: np.random.Generator):
    x = rng.normal(size=1000).astype(np.float32)
    params = QParams.from_range(-2.0, 3.0, QuantSpec(5, signed=False))

    once = params.round_trip(x)

    np.testing.assert_array_equal(params.round_trip(once), once)


def test_eight_signed_bits_are_symmetric_and_fewer_use_every_code():
    assert QuantSpec(8, signed=True).default_code_lo == -127
    windows = {
        bits: (int(params.code_lo), int(params.code_hi))
        for bits in range(2, 9)
        for params in [QParams.unit(QuantSpec(bits, signed=True))]
    }
    assert windows == {
        2: (-2, 1), 3: (-4, 3), 4: (-8, 7), 5: (-16, 15), 6: (-32, 31), 7: (-64, 63),
        8: (-127, 127),
    }  # fmt: skip


@pytest.mark.parametrize("signed", [False, True])
def test_parameters_are_arrays_of_the_shape_of_the_range(signed: bool):
    for shape in ((), (3,)):
        lo = np.full(shape, -1.0)
        params = QParams.from_range(lo, -lo, QuantSpec(8, signed=signed))

        for array in (params.scale, params.zero_point, params.code_lo):
            assert isinstance(array, np.ndarray)
            assert array.shape == shape


def test_an_empty_range_gets_a_scale_that_works():
    params = QParams.from_range(0.0, 0.0, QuantSpec(8, signed=False))

    assert float(params.scale) == 1.0
    assert int(params.zero_point) == 0


def test_a_tiny_range_gets_the_smallest_safe_scale():
    params = QParams.from_range(0.0, 1e-40, QuantSpec(8, signed=False))

    assert params.scale == SMALLEST_SCALE


@pytest.mark.parametrize(("lo", "hi"), [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0)])
def test_a_range_that_is_not_finite_is_refused(lo: float, hi: float):
    with pytest.raises(CalibrationError, match="is not finite; check the data for NaN and inf"):
        QParams.from_range(lo, hi, QuantSpec(8, signed=False))


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(CalibrationError, match="has its ends the wrong way round"):
        QParams.from_range(1.0, -1.0, QuantSpec(8, signed=False))


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_out_of_range_are_refused(bits: int):
    with pytest.raises(SpecError, match=f"bits is {bits}; a tensor takes 2 to 8 bits"):
        QuantSpec(bits, signed=True)


def test_channels_have_ranges_of_their_own():
    params = QParams.from_range([-1.0, -2.0], [1.0, 4.0], QuantSpec(8, signed=True, axis=1))
    x = np.array([[1.0, 4.0], [-1.0, -2.0]], np.float32)

    assert params.quantize(x).tolist() == [[127, 127], [-127, -64]]
