"""onnx's own node tests of integer operators: in integers, or with a reason; always bit for bit."""

import fnmatch
import warnings

import pytest

from benchmarks.node_cases import FOLDED, INTEGER, ISLAND, NOT_RUN, Outcome, cases, counts, try_case
from tests.ort_versions import VERSION

EXPLAINED = (
    # Case, what becomes of it, words of the reason.
    # Formats that are not 8-bit integers: onnxruntime dequantizes them in float as well.
    ("dequantizelinear_*int16", ISLAND, "int16, not 8-bit"),
    ("quantizelinear_e4m3fn", ISLAND, "quantizes to float8_e4m3fn"),
    ("quantizelinear_*int16", ISLAND, "int16"),
    ("quantizelinear_blocked_*", ISLAND, "a scale for each block"),
    ("dequantizelinear_blocked", ISLAND, "a scale for each block"),
    # Scale and zero point come out of real arithmetic on each input.
    ("dynamicquantizelinear", ISLAND, "chooses scale and zero point at run time"),
    ("dynamicquantizelinear_m??_adjusted", ISLAND, "chooses scale and zero point at run time"),
    ("dynamicquantizelinear_*expanded", ISLAND, "holds float32, not 8-bit codes"),
    # Arithmetic modulo 256, comparisons, bits: integers, but nothing that quantized networks do.
    *(
        (f"{name}_*int8*", ISLAND, f"no integer instruction does {op}")
        for name, op in (
            ("add", "Add"),
            ("sub", "Sub"),
            ("mul", "Mul"),
            ("div", "Div"),
            ("mod", "Mod"),
            ("bitshift", "BitShift"),
            ("bitcast", "BitCast"),
            ("equal", "Equal"),
            ("greater", "Greater"),
            ("less", "Less"),
        )
    ),
    ("bitwise_*", ISLAND, "no integer instruction does Bitwise"),
    ("greater_equal_*", ISLAND, "no integer instruction does"),
    ("less_equal_*", ISLAND, "no integer instruction does"),
    ("clip_default_int8_m*_expanded", ISLAND, "no integer instruction does Less"),
    # What onnxruntime has no kernel for, or Python no array to feed or get it with.
    ("image_decoder_*", NOT_RUN, "ImageDecoder"),
    ("bitcast_bool_to_uint8", NOT_RUN, "BitCast"),
    ("*quantizelinear_float4e2m1", NOT_RUN, "implementation"),
    ("*quantizelinear_e5m2", NOT_RUN, "could not run"),
    ("quantizelinear_*int4", NOT_RUN, "No corresponding Numpy type"),
    ("quantizelinear_*int2", NOT_RUN, "No corresponding Numpy type"),
    ("convinteger_with_padding", NOT_RUN, "Non per-tensor quantization is not supported"),
)

UNLIKE_ONNX = ("test_quantizelinear_e4m3fn",)
"""onnxruntime's own cast to float8 gives other codes than onnx's."""

IN_INTEGERS = (
    "qlinearconv",
    "qlinearmatmul_*",
    "convinteger_without_padding",
    "matmulinteger",
    "quantizelinear",
    "quantizelinear_axis",
    "dequantizelinear",
    "dequantizelinear_axis",
    "maxpool_2d_uint8",
    "clip_default_int8_m??",
    "clip_default_int8_inbounds",
    "min_*int8",
    "max_*int8",
)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes infinities while it makes its cases
        return [try_case(case) for case in cases()]


def test_the_executor_has_the_bits_of_onnxruntime(outcomes: list[Outcome]):
    differing = [o.name for o in outcomes if o.kind != NOT_RUN and not o.as_onnxruntime]

    assert differing == []


def test_the_executor_has_the_bits_that_onnx_expects(outcomes: list[Outcome]):
    differing = [o.name for o in outcomes if o.kind != NOT_RUN and not o.as_onnx]

    assert set(differing) <= set(UNLIKE_ONNX)


def test_a_convolution_that_onnxruntime_refuses_is_what_onnx_expects(outcomes: list[Outcome]):
    """Zero points of weights, one for each channel: the executor has them all the same."""
    refused = next(o for o in outcomes if o.name == "test_convinteger_with_padding")

    assert refused.as_onnx


@pytest.mark.skipif(VERSION < (1, 32), reason="an older onnxruntime runs fewer cases")
def test_what_quantized_networks_do_is_done_in_integers(outcomes: list[Outcome]):
    matching = [o for o in outcomes if any(is_named(o, pattern) for pattern in IN_INTEGERS)]

    assert [o.name for o in matching if o.kind != INTEGER] == []
    assert len(matching) >= len(IN_INTEGERS)


@pytest.mark.skipif(VERSION < (1, 32), reason="an older onnxruntime runs fewer cases")
def test_every_other_case_has_a_reason_that_is_listed(outcomes: list[Outcome]):
    unexplained = [
        (o.name, o.kind, o.why)
        for o in outcomes
        if o.kind not in (INTEGER, FOLDED) and not is_explained(o)
    ]

    assert unexplained == []


def test_every_case_is_counted_once(outcomes: list[Outcome]):
    found = counts(outcomes)

    assert found["cases"] == sum(found[kind] for kind in (INTEGER, FOLDED, ISLAND, NOT_RUN))
    assert found["unlike onnxruntime"] == 0


def is_named(outcome: Outcome, pattern: str) -> bool:
    return fnmatch.fnmatch(outcome.name.lower(), f"test_{pattern}".lower())


def is_explained(outcome: Outcome) -> bool:
    return any(
        is_named(outcome, pattern) and outcome.kind == kind and words in outcome.why
        for pattern, kind, words in EXPLAINED
    )
