"""KERNELS: every kernel with its plain twin and the cases that tests and benchmarks run it on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxptq.kernels import (
    accumulate,
    borders,
    boundary,
    cases,
    cases_borders,
    cases_boundary,
    cases_conv,
    cases_conv_u8s8,
    cases_depthwise_u8s8,
    cases_fake_quantize,
    cases_global_average_pool,
    cases_move,
    cases_pair,
    cases_pool,
    cases_reached,
    cases_requantize,
    cases_softmax,
    cases_table,
    cases_winograd,
    conv,
    conv_amx,
    conv_u8s8,
    depthwise,
    depthwise_u8s8,
    fake_quantize,
    global_average_pool,
    matmul,
    move,
    numeric,
    pair,
    pool,
    reached,
    requantize,
    share,
    softmax,
    table,
    target,
    winograd,
)
from onnxptq.kernels.jit import RowKernel


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel.

    Attributes:
        function: The compiled kernel.
        naive: The plain twin of the same signature: the specification, never optimised.
        cases: Argument tuples: odd, empty and 1-sized arrays, extreme values.
        work: Arguments of a typical size, for timing.
        elements: How many elements `work` has, which its time is divided by.
        rtol: How far float results may be from the twin's, and why is said in the kernel.
    """

    function: Callable[..., Any]
    naive: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterator[tuple[Any, ...]]]
    work: Callable[[np.random.Generator], tuple[Any, ...]]
    elements: int
    rtol: float


KERNELS: dict[str, Kernel] = {
    "update_histogram": Kernel(
        numeric.update_histogram,
        numeric.update_histogram_naive,
        cases.histograms,
        cases.histogram_work,
        cases.HISTOGRAM_WORK,
        1e-9,
    ),
    "update_channels": Kernel(
        numeric.update_channels,
        numeric.update_channels_naive,
        cases.channels,
        cases.channel_work,
        cases.CHANNEL_WORK,
        1e-9,
    ),
    "grow": Kernel(
        numeric.grow, numeric.grow_naive, cases.grown, cases.grow_work, cases.GROW_WORK, 0.0
    ),
    "search_grid": Kernel(
        numeric.search_grid,
        numeric.search_grid_naive,
        cases.grids,
        cases.grid_work,
        cases.GRID_WORK,
        2e-3,
    ),
    "divergence": Kernel(
        numeric.divergence,
        numeric.divergence_naive,
        cases.divergences,
        cases.divergence_work,
        cases.DIVERGENCE_WORK,
        1e-9,
    ),
    "weight_errors": Kernel(
        numeric.weight_errors,
        numeric.weight_errors_naive,
        cases.weights,
        cases.weight_work,
        cases.WEIGHT_WORK,
        3e-4,
    ),
    "fake_quantize": Kernel(
        fake_quantize.fake_quantize,
        fake_quantize.fake_quantize_naive,
        cases_fake_quantize.fake_quantizes,
        cases_fake_quantize.fake_quantize_work,
        cases_fake_quantize.WORK,
        0.0,
    ),
    "fake_quantize_gradient": Kernel(
        fake_quantize.fake_quantize_gradient,
        fake_quantize.fake_quantize_gradient_naive,
        cases_fake_quantize.gradients,
        cases_fake_quantize.gradient_work,
        cases_fake_quantize.WORK,
        3e-4,
    ),
    "mix_rows": Kernel(
        fake_quantize.mix_rows,
        fake_quantize.mix_rows_naive,
        cases_fake_quantize.mixes,
        cases_fake_quantize.mix_work,
        cases_fake_quantize.WORK,
        0.0,
    ),
    "border_round": Kernel(
        borders.border_round,
        borders.border_round_naive,
        cases_borders.rounded,
        cases_borders.rounded_work,
        cases_borders.WORK,
        0.0,
    ),
    "border_round_gradient": Kernel(
        borders.border_round_gradient,
        borders.border_round_gradient_naive,
        cases_borders.gradients,
        cases_borders.gradient_work,
        cases_borders.WORK,
        3e-4,
    ),
    "pair": Kernel(
        pair.pair, pair.pair_naive, cases_pair.pairs, cases_pair.pair_work, cases_pair.WORK, 0.0
    ),
    "table": Kernel(
        table.table,
        table.table_naive,
        cases_table.tables,
        cases_table.table_work,
        cases_table.WORK,
        0.0,
    ),
    "clip": Kernel(
        table.clip,
        table.clip_naive,
        cases_table.clips,
        cases_table.clip_work,
        cases_table.WORK,
        0.0,
    ),
    "copy": Kernel(
        move.copy, move.copy_naive, cases_move.copies, cases_move.copy_work, cases_move.WORK, 0.0
    ),
    "fill": Kernel(
        move.fill, move.fill_naive, cases_move.fills, cases_move.fill_work, cases_move.WORK, 0.0
    ),
    "take": Kernel(
        move.take, move.take_naive, cases_move.takes, cases_move.take_work, cases_move.WORK, 0.0
    ),
    "share": Kernel(
        share.share,
        share.share_naive,
        cases_requantize.shares,
        cases_requantize.share_work,
        1,
        0.0,
    ),
    "requantize_row": Kernel(
        requantize.requantize_row,
        requantize.requantize_row_naive,
        cases_requantize.rows,
        cases_requantize.row_work,
        cases_requantize.ROW_WORK,
        0.0,
    ),
    "multiply": Kernel(
        accumulate.multiply,
        accumulate.multiply_naive,
        cases_conv.products,
        cases_conv.product_work,
        cases_conv.PRODUCT_WORK,
        0.0,
    ),
    "conv": Kernel(
        conv.conv,
        conv.conv_naive,
        cases_conv.convs,
        cases_conv.conv_work,
        cases_conv.CONV_WORK,
        0.0,
    ),
    "conv_u8s8": Kernel(
        conv_u8s8.conv_u8s8,
        conv_u8s8.conv_u8s8_naive,
        cases_conv_u8s8.convs,
        cases_conv_u8s8.conv_work,
        cases_conv_u8s8.WORK,
        0.0,
    ),
    "winograd": Kernel(
        winograd.winograd,
        winograd.winograd_naive,
        cases_winograd.winograds,
        cases_winograd.winograd_work,
        cases_winograd.WORK,
        0.0,
    ),
    "depthwise": Kernel(
        depthwise.depthwise,
        depthwise.depthwise_naive,
        cases_conv.depthwises,
        cases_conv.depthwise_work,
        cases_conv.DEPTHWISE_WORK,
        0.0,
    ),
    "depthwise_u8s8": Kernel(
        depthwise_u8s8.depthwise_u8s8,
        depthwise_u8s8.depthwise_u8s8_naive,
        cases_depthwise_u8s8.depthwises,
        cases_depthwise_u8s8.depthwise_work,
        cases_depthwise_u8s8.WORK,
        0.0,
    ),
    "matmul": Kernel(
        matmul.matmul,
        matmul.matmul_naive,
        cases_conv.matmuls,
        cases_conv.matmul_work,
        cases_conv.MATMUL_WORK,
        0.0,
    ),
    "max_pool": Kernel(
        pool.max_pool,
        pool.max_pool_naive,
        cases_pool.max_pools,
        cases_pool.max_pool_work,
        cases_pool.MAX_WORK,
        0.0,
    ),
    "reduce": Kernel(
        pool.reduce,
        pool.reduce_naive,
        cases_pool.reduces,
        cases_pool.reduce_work,
        cases_pool.REDUCE_WORK,
        0.0,
    ),
    "average_pool": Kernel(
        pool.average_pool,
        pool.average_pool_naive,
        cases_pool.average_pools,
        cases_pool.average_pool_work,
        cases_pool.AVERAGE_WORK,
        0.0,
    ),
    "softmax": Kernel(
        softmax.softmax,
        softmax.softmax_naive,
        cases_softmax.softmaxes,
        cases_softmax.softmax_work,
        cases_softmax.WORK,
        0.0,
    ),
    "quantize": Kernel(
        boundary.quantize,
        boundary.quantize_naive,
        cases_boundary.quantizes,
        cases_boundary.quantize_work,
        cases_boundary.WORK,
        0.0,
    ),
    "dequantize": Kernel(
        boundary.dequantize,
        boundary.dequantize_naive,
        cases_boundary.dequantizes,
        cases_boundary.dequantize_work,
        cases_boundary.WORK,
        0.0,
    ),
    "acc_to_real": Kernel(
        boundary.acc_to_real,
        boundary.acc_to_real_naive,
        cases_boundary.accs_to_real,
        cases_boundary.acc_to_real_work,
        cases_boundary.WORK // 1024 * 1024,
        0.0,
    ),
    "reached": Kernel(
        reached.reached,
        reached.reached_naive,
        cases_reached.counted,
        cases_reached.counted_work,
        cases_reached.WORK,
        0.0,
    ),
    "global_average_pool": Kernel(
        global_average_pool.global_average_pool,
        global_average_pool.global_average_pool_naive,
        cases_global_average_pool.pools,
        cases_global_average_pool.pool_work,
        cases_global_average_pool.WORK,
        0.0,
    ),
}

if target.allow_tiles():  # asked before anything runs them
    KERNELS["conv_amx"] = Kernel(
        conv_amx.conv_amx,
        conv_amx.conv_amx_naive,
        cases_conv_u8s8.tile_convs,
        cases_conv_u8s8.tile_conv_work,
        cases_conv_u8s8.WORK,
        0.0,
    )

# In the order of their numbers in row[0].
ROW_KERNELS: dict[str, RowKernel] = {
    "conv": conv.conv,
    "depthwise": depthwise.depthwise,
    "matmul": matmul.matmul,
    "pair": pair.pair,
    "table": table.table,
    "clip": table.clip,
    "copy": move.copy,
    "fill": move.fill,
    "take": move.take,
    "max_pool": pool.max_pool,
    "reduce": pool.reduce,
    "global_average_pool": global_average_pool.global_average_pool,
    "average_pool": pool.average_pool,
    "softmax": softmax.softmax,
    "quantize": boundary.quantize,
    "dequantize": boundary.dequantize,
    "acc_to_real": boundary.acc_to_real,
    "conv_u8s8": conv_u8s8.conv_u8s8,
    "conv_amx": conv_amx.conv_amx,
    "depthwise_u8s8": depthwise_u8s8.depthwise_u8s8,
    "winograd": winograd.winograd,
    "reached": reached.reached,
}
