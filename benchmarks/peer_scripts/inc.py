"""onnx-neural-compressor (the successor of INC's ONNX part); the method is a calibration method."""

from pathlib import Path
from typing import Any

import onnx
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import CalibrationMethod, QuantFormat, config
from onnx_neural_compressor.quantization import quantize as theirs
from peer_common import Request, main, preprocessed


class Reader(data_reader.CalibrationDataReader):
    def __init__(self, request: Request) -> None:
        self._request = request
        self.rewind()

    def get_next(self) -> Any:
        return next(self._feeds, None)

    def rewind(self) -> None:
        self._feeds = self._request.feeds()


def quantize(request: Request) -> str:
    reader = Reader(request)
    settings = config.StaticQuantConfig(
        calibration_data_reader=reader,
        calibrate_method=CalibrationMethod[request.method],
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(request.images()),
    )
    aside = request.beside(".inc.onnx")
    theirs(preprocessed(request), aside, settings)
    # It writes the weights to a second file; the sizes of one file each are compared.
    onnx.save(onnx.load(aside), request.output)
    for path in (Path(aside), Path(f"{aside}_data")):
        path.unlink(missing_ok=True)
    return f"quant_pre_process, QDQ, per_channel, uint8/int8, {request.method}"


if __name__ == "__main__":
    main("onnx-neural-compressor", quantize)
