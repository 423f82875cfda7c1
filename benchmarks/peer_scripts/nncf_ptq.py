"""NNCF's post-training quantization of ONNX; the method is its preset, with "full" bias correction.

Its own advice: give it the float model as it is, batch norms included.
"""

import nncf
import onnx
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    QuantizationParameters,
)
from peer_common import Request, main, preprocessed


def quantize(request: Request) -> str:
    preset, _, correction = request.method.partition("+")
    advanced = AdvancedQuantizationParameters(
        weights_quantization_params=bits(request.weight_bits),
        activations_quantization_params=bits(request.activation_bits),
    )
    images = list(request.feeds())
    made = nncf.quantize(
        onnx.load(preprocessed(request)),
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset(preset),
        subset_size=len(images),
        fast_bias_correction=correction != "full",
        advanced_parameters=advanced,
    )
    onnx.save(made, request.output)
    kind = "full" if correction == "full" else "fast"
    return f"quant_pre_process, preset {preset}, {kind} bias correction, {len(images)} images"


def bits(width: int) -> QuantizationParameters | None:
    return None if width == 8 else QuantizationParameters(num_bits=width)


if __name__ == "__main__":
    main("nncf", quantize)
