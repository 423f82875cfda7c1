"""onnxsim's own quantizer: static W8A8 of the whole graph; the method is a calibration method."""

import onnx
import onnxsim
from onnxsim.full_qdq import quantize_full_qdq
from peer_common import Request, main


def quantize(request: Request) -> str:
    model, _ = onnxsim.simplify(onnx.load(request.model))
    method, _, correction = request.method.partition("+")
    made = quantize_full_qdq(model, list(request.feeds()), method=method)
    said = f"simplify, quantize_full_qdq(uint8/int8, per_channel, {method})"
    if correction:
        made = onnxsim.correct_bias(model, made, list(request.feeds()))
        said += ", correct_bias"
    onnx.save(made, request.output)
    return said


if __name__ == "__main__":
    main("onnxsim", quantize)
