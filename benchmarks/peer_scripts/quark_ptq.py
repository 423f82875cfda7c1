"""AMD Quark's ONNX flow; the method is a calibration method, then perhaps its AdaRound.

Its shipped presets are per tensor and far worse; this is uint8 activations and per-channel weights.
"""

from collections.abc import Iterator
from typing import Any

from onnxruntime.quantization import CalibrationDataReader
from peer_common import Request, main, preprocessed
from quark.onnx import AdaRoundConfig, ModelQuantizer, QConfig
from quark.onnx.quantization.config.spec import (
    CalibMethod,
    Int8Spec,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
)


class Reader(CalibrationDataReader):
    def __init__(self, request: Request) -> None:
        self._feeds: Iterator[dict[str, Any]] = request.feeds()

    def get_next(self) -> Any:
        return next(self._feeds, None)


def quantize(request: Request) -> str:
    ranges, _, refinement = request.method.partition("+adaround")
    algorithms = []
    if refinement:
        algorithms.append(AdaRoundConfig(learning_rate=0.1, num_iterations=int(refinement)))
    layer = QLayerConfig(
        activation=UInt8Spec(calibration_method=CalibMethod[ranges]),
        weight=Int8Spec(quant_granularity=QuantGranularity.Channel),
    )
    config = QConfig(global_config=layer, algo_config=algorithms)
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(preprocessed(request), request.output, Reader(request))
    more = f", AdaRound({refinement} iterations)" if refinement else ""
    return f"quant_pre_process, UInt8Spec({ranges}), Int8Spec(Channel){more}"


if __name__ == "__main__":
    main("amd-quark", quantize)
