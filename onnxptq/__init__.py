"""onnxptq: post-training quantization of ONNX models for onnxruntime."""
