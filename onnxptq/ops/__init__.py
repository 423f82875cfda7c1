"""OPS: the operators that can run on integers, one line each. Everything else stays in float."""

from onnxptq.ops import conversions, moves, pairs, pools
from onnxptq.ops.add import ADD
from onnxptq.ops.average_pool import AVERAGE_POOL
from onnxptq.ops.clip import CLIP
from onnxptq.ops.concat import CONCAT
from onnxptq.ops.conv import CONV
from onnxptq.ops.depth_to_space import DEPTH_TO_SPACE
from onnxptq.ops.expand import EXPAND
from onnxptq.ops.flatten import FLATTEN
from onnxptq.ops.fused import Lower
from onnxptq.ops.gather import GATHER
from onnxptq.ops.gemm import GEMM
from onnxptq.ops.global_average_pool import GLOBAL_AVERAGE_POOL
from onnxptq.ops.hard_sigmoid import HARD_SIGMOID
from onnxptq.ops.leaky_relu import LEAKY_RELU
from onnxptq.ops.mat_mul import MAT_MUL
from onnxptq.ops.max_pool import MAX_POOL
from onnxptq.ops.mul import MUL
from onnxptq.ops.op import Op
from onnxptq.ops.pad import PAD
from onnxptq.ops.relu import RELU
from onnxptq.ops.reshape import RESHAPE
from onnxptq.ops.resize import RESIZE
from onnxptq.ops.sigmoid import SIGMOID
from onnxptq.ops.slice import SLICE
from onnxptq.ops.softmax import SOFTMAX
from onnxptq.ops.split import SPLIT
from onnxptq.ops.squeeze import SQUEEZE
from onnxptq.ops.tile import TILE
from onnxptq.ops.transpose import TRANSPOSE
from onnxptq.ops.unsqueeze import UNSQUEEZE

OPS: dict[str, Op] = {
    op.type: op
    for op in (
        CONV,
        GEMM,
        MAT_MUL,
        ADD,
        MUL,
        CONCAT,
        AVERAGE_POOL,
        GLOBAL_AVERAGE_POOL,
        LEAKY_RELU,
        SIGMOID,
        SOFTMAX,
        MAX_POOL,
        RESHAPE,
        FLATTEN,
        TRANSPOSE,
        SQUEEZE,
        UNSQUEEZE,
        EXPAND,
        TILE,
        GATHER,
        SLICE,
        SPLIT,
        DEPTH_TO_SPACE,
        RESIZE,
        PAD,
        RELU,
        CLIP,
        HARD_SIGMOID,
    )
}

LOWERINGS: dict[str, Lower] = {
    **{name: lower for op in OPS.values() for name, lower in op.lowerings.items()},
    # What the rewriter does not write, but stands in files of others or at the borders.
    "QuantizeLinear": conversions.quantize_linear,
    "DequantizeLinear": conversions.dequantize_linear,
    "DynamicQuantizeLinear": conversions.chosen_at_run_time,
    "DynamicQuantizeMatMul": conversions.chosen_at_run_time,
    "Min": pairs.minimum,
    "Max": pairs.maximum,
    "ReduceMax": pools.reduce_max,
    "ReduceMin": pools.reduce_min,
    "Identity": moves.plain("identity"),
}
"""How each node that onnxruntime runs on codes becomes integer instructions, by its type."""
