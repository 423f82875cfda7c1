"""Quantizes a described network and holds its integer program against onnxruntime."""

import warnings

import onnx_ir as ir

from onnxptq.graph.text import to_text
from onnxptq.pipeline import quantize
from onnxptq.runtime.verify import Verification, verify
from tests.networks import Net


def quantized(net: Net) -> ir.Model:
    """The quantized network, through the real pipeline."""
    proto = net.model()
    with warnings.catch_warnings():
        # Weights with zero points say that they are slow, dead channels that they have no range.
        warnings.filterwarnings("ignore", "weights-asymmetric")
        warnings.filterwarnings("ignore", r"value .* was .* in all \d+ samples")
        return quantize(proto, {"x": net.images()}, **net.options(proto)).model


def check(model: ir.Model, samples: int = 2) -> Verification:
    """Verify a model; whatever is wrong is shown with the whole model as text.

    Raises:
        AssertionError: Something differs, is not proved, or was not compared.
    """
    result = verify(model, samples=samples)
    complaints = [
        *([] if result.bit_exact else [f"{result.mismatches} of {result.elements} differ"]),
        *([] if result.certificate.holds else [f"not proved: {result.certificate!r}"]),
        *([f"not compared: {result.not_compared}"] if result.not_compared else []),
    ]
    if complaints:
        complaints += [f"first difference: {result.first_difference}", to_text(model)]
        raise AssertionError("\n".join(complaints))
    return result
