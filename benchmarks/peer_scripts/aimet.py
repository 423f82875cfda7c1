"""AIMET-ONNX: its ranges, sequential MSE and AdaRound, exported as QDQ or run in its simulator.

Its exporter knows integers of 4, 8, 16 and 32 bits; other widths are evaluated in its simulator.
"""

import numpy as np
import onnx
import torch
from aimet_onnx import QuantizationSimModel, apply_adaround, apply_seq_mse, qtype
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.common.defs import QuantScheme
from peer_common import Request, edges, main, preprocessed

EXPORTED = (4, 8)
SEQ_MSE_IMAGES = 32


def quantize(request: Request) -> str:
    torch.set_num_threads(request.threads)
    ranges, *refinements = request.method.split("+")
    model = onnx.load(preprocessed(request))
    fold_all_batch_norms_to_weight(model)
    sim = QuantizationSimModel(
        model,
        param_type=qtype.int(request.weight_bits),
        activation_type=qtype.int(request.activation_bits),
        # Sequential MSE wants the min_max scheme; the activations get theirs afterwards.
        quant_scheme="min_max" if "seq_mse" in refinements else ranges,
        config_file="default",
    )
    said = ["quant_pre_process", "fold_all_batch_norms_to_weight", "config default", ranges]
    if request.low:
        eight = edges(model)
        for name in eight.weights | eight.activations:
            if name in sim.qc_quantize_op_dict:
                sim.qc_quantize_op_dict[name].set_bitwidth(8)
        said.append("8 bits where onnxptq keeps them")
    said += [improve(sim, request, method) for method in refinements]
    for name in sim.activation_names:
        sim.qc_quantize_op_dict[name].set_quant_scheme(QuantScheme.from_str(ranges))
    sim.compute_encodings(list(request.feeds(8)))
    return ", ".join([*said, export(sim, request)])


def improve(sim: QuantizationSimModel, request: Request, method: str) -> str:
    """Choose weights' ranges or rounding by the layers' outputs."""
    if method == "seq_mse":
        apply_seq_mse(sim, list(request.feeds(8, SEQ_MSE_IMAGES)), num_candidates=20)
        return f"apply_seq_mse(20 candidates) on {SEQ_MSE_IMAGES} images"
    iterations = int(method.removeprefix("adaround"))
    apply_adaround(sim, list(request.feeds(32)), num_iterations=iterations)
    return f"apply_adaround({iterations} iterations)"


def export(sim: QuantizationSimModel, request: Request) -> str:
    """Write a file for onnxruntime, or, where none can say it, the simulator's logits."""
    if {request.weight_bits, request.activation_bits}.issubset(EXPORTED):
        made = sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True)
        onnx.save(made, request.output)
        return "to_onnx_qdq(export_int32_bias, prequantize_constants)"
    images = np.load(request.evaluation)[request.input]
    logits = [
        sim.session.run(None, {request.input: images[start : start + 50]})[0]
        for start in range(0, len(images), 50)
    ]
    np.save(request.logits, np.concatenate(logits))
    return "run in its own simulator: to_onnx_qdq has no 2 or 3 bits"


if __name__ == "__main__":
    main("aimet-onnx", quantize)
