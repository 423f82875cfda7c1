"""onnxruntime's `quantize_static`; the method is one of its calibration methods."""

from collections.abc import Iterator
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from peer_common import Request, edges, main, preprocessed

WEIGHTS = {8: QuantType.QInt8, 4: QuantType.QInt4}
ACTIVATIONS = {8: QuantType.QUInt8, 4: QuantType.QUInt4}


class Reader(CalibrationDataReader):
    def __init__(self, request: Request) -> None:
        self._feeds: Iterator[dict[str, Any]] = request.feeds()

    def get_next(self) -> Any:
        return next(self._feeds, None)


def quantize(request: Request) -> str:
    prepared = preprocessed(request)
    options: dict[str, Any] = {}
    kept = ""
    if request.low and not request.method.endswith(" all"):
        eight = edges(onnx.load(prepared))
        kinds = dict.fromkeys(eight.weights, WEIGHTS[8])
        if request.activation_bits < 8:
            kinds |= dict.fromkeys(eight.activations, ACTIVATIONS[8])
        options["TensorQuantOverrides"] = {
            name: [{"quant_type": kind}] for name, kind in kinds.items()
        }
        kept = ", TensorQuantOverrides: 8 bits where onnxptq keeps them"
    quantize_static(
        prepared,
        request.output,
        Reader(request),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=ACTIVATIONS[request.activation_bits],
        weight_type=WEIGHTS[request.weight_bits],
        calibrate_method=CalibrationMethod[request.method.split()[0]],
        extra_options=options,
    )
    return (
        f"quant_pre_process, QDQ, per_channel, {ACTIVATIONS[request.activation_bits]}, "
        f"{WEIGHTS[request.weight_bits]}, {request.method}{kept}"
    )


if __name__ == "__main__":
    main("onnxruntime", quantize)
