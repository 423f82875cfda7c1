"""The certificate of a program: each channel's integer arithmetic proved equal to onnxruntime's.

The proof of a channel covers every accumulator that its weights and the range of its input's codes
allow, not only those that some data reach. Ranges and proofs are made anew here from what the
program says, so that a program that was changed after lowering does not pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxptq import ort, reach, requant, requant_pairs
from onnxptq.program import Instr, IntegerProgram, Value
from onnxptq.requant import Form, Requant
from onnxptq.requant_pairs import PairForm, PairRequant
from onnxptq.runtime.averages import average_requant, averaged_pixels
from onnxptq.runtime.cpu import NO_VNNI, cpu_class
from onnxptq.runtime.probe import formula_of, probe
from onnxptq.runtime.ranges import sound, unsound_sources
from onnxptq.runtime.window import is_channels_last

Shapes = Mapping[int, tuple[int, ...]]
INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1
SUMMING = ("conv", "matmul", "matmul_computed")
AVERAGES = ("average_pool", "global_average_pool")


@dataclass(frozen=True, slots=True)
class Saturation:
    """What a CPU without VNNI would get wrong: sums of two products that leave int16.

    Attributes:
        channels: Output channels that have such a pair of weights.
        accumulators: Results for one run that could be wrong, at worst.
    """

    channels: int
    accumulators: int


@dataclass(frozen=True, slots=True)
class LayerProof:
    """One instruction that rounds.

    Attributes:
        node: Where it comes from.
        op: What it computes.
        channels: How many channels it has; 1 for an Add or Mul.
        proved: How many are proved.
        forms: Channels by the name of their form.
        reaches: Smallest and largest accumulator that can occur; None where there is none.
        saturation: On a CPU without VNNI.
    """

    node: str
    op: str
    channels: int
    proved: int
    forms: Mapping[str, int]
    reaches: tuple[int, int] | None = None
    saturation: Saturation = Saturation(0, 0)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proved, and for which onnxruntime on which CPU.

    Attributes:
        channels: Channels of all instructions that round accumulators, and one for each Add or Mul.
        proved: How many are proved.
        by: Channels by the form they are computed in.
        onnxruntime: Version.
        cpu: Class of machine that onnxruntime's formulas hold on.
        probe: What the check of the installed onnxruntime said.
        holds: Whether everything is proved, all ranges are sound, and the probe found nothing.
        unsound: Instructions, inputs and constants whose codes may leave the range that the program
            says.
        layers: Instruction by instruction.
    """

    channels: int
    proved: int
    by: Mapping[str, int]
    onnxruntime: str
    cpu: str
    probe: str
    holds: bool
    unsound: tuple[str, ...] = ()
    layers: tuple[LayerProof, ...] = field(default=(), repr=False)

    @property
    def saturates_here(self) -> bool:
        """Whether onnxruntime may saturate sums on this CPU, which the executor does on none."""
        risky = any(row.saturation.channels for row in self.layers)
        return risky and self.cpu.endswith(NO_VNNI)


def certify(program: IntegerProgram, shapes: Shapes) -> Certificate:
    """Prove every rounding of a program.

    Args:
        program: The program.
        shapes: Shape of each value, from a plan: the arithmetic of a global average pool depends on
            how many pixels there are.
    """
    layers = [proof for instr in program.instrs if (proof := _prove(program, instr, shapes))]
    by = {"fixed_point": 0, "thresholds": 0, "int64": 0, "table": 0, "emulated": 0}
    for layer in layers:
        for form, count in layer.forms.items():
            by[form] += count
    channels, proved = sum(row.channels for row in layers), sum(row.proved for row in layers)
    unsound = (
        *unsound_sources(program),
        *(instr.node for instr in program.instrs if not sound(program, instr)),
    )
    checked = probe(formulas_of(program))
    same = program.runtime == ort.version()
    said = checked.summary() if same else f"lowered with onnxruntime {program.runtime}"
    return Certificate(
        channels,
        proved,
        by,
        ort.version(),
        cpu_class(),
        said,
        proved == channels and not unsound and checked.holds and same,
        unsound,
        tuple(layers),
    )


def formulas_of(program: IntegerProgram) -> set[str]:
    """Names of the formulas that a program computes by."""
    names = {
        formula_of(instr.op, instr.attrs, program.values[instr.outputs[0]].dtype)
        for instr in program.instrs
        if instr.outputs
    }
    return {name for name in names if name is not None}


def _prove(program: IntegerProgram, instr: Instr, shapes: Shapes) -> LayerProof | None:
    if isinstance(instr.requant, PairRequant):
        return _prove_pair(program, instr, instr.requant)
    if instr.op in SUMMING:
        return _prove_sums(program, instr, shapes)
    if instr.op in AVERAGES:
        return _prove_average(program, instr, shapes)
    if instr.op == "reached":
        return _count_reached(program, instr)
    return _emulated(instr) if instr.op == "softmax" else None


def _prove_pair(program: IntegerProgram, instr: Instr, pair: PairRequant) -> LayerProof:
    a, b = (program.values[number] for number in instr.inputs)
    proved = requant_pairs.prove_pair(pair, (a.lo, a.hi), (b.lo, b.hi))
    form = "table" if pair.form is PairForm.TABLE else "fixed_point"
    return LayerProof(instr.node, instr.op, 1, int(proved), {form: 1})


def _prove_sums(program: IntegerProgram, instr: Instr, shapes: Shapes) -> LayerProof:
    sums = accumulators(program, instr, shapes)
    ends = int(sums.lo.min(initial=0)), int(sums.hi.max(initial=0))
    risk = saturation(program, instr, shapes)
    if not isinstance(instr.requant, Requant):
        # Nothing is rounded; an accumulator that overflows counts as one channel without proof.
        return LayerProof(instr.node, instr.op, int(not sums.fits), 0, {}, ends, risk)
    proved = requant.prove(instr.requant, sums.lo, sums.hi) & sums.fits
    forms = _by_form(instr.requant)
    return LayerProof(instr.node, instr.op, proved.size, int(proved.sum()), forms, ends, risk)


def _by_form(found: Requant) -> dict[str, int]:
    each = np.repeat(found.form, requant.GROUP)[: found.scale.size]
    counts = {form.name.lower(): int((each == form).sum()) for form in Form}
    return {name: count for name, count in counts.items() if count}


def accumulators(program: IntegerProgram, instr: Instr, shapes: Shapes) -> reach.Reach:
    """Which accumulators a convolution or product can have, from what the program says now."""
    x = program.values[instr.inputs[0]]
    if instr.op == "matmul_computed":
        b = program.values[instr.inputs[1]]
        return product_reach(instr, x, b, shapes[instr.inputs[1]][-2])
    return constant_reach(instr, reach.Codes(x.lo, x.hi, instr.int("x_zero")))


def product_reach(instr: Instr, a: Value, b: Value, depth: int) -> reach.Reach:
    """The same for two computed matrices."""
    left = reach.Codes(a.lo, a.hi, instr.int("a_zero"))
    return reach.of_products(depth, left, reach.Codes(b.lo, b.hi, instr.int("b_zero")))


def constant_reach(instr: Instr, x: reach.Codes) -> reach.Reach:
    """The same for constant weights, whose shapes do not matter."""
    weight, zero = instr.arrays["weight"], instr.arrays["weight_zero"].astype(np.int64)
    bias = instr.arrays.get("bias")
    wide = None if bias is None else bias.astype(np.int64)
    if instr.op == "conv":
        padded = any(instr.ints("pads")) or instr.text("auto_pad") not in ("NOTSET", "VALID")
        return reach.of_convolution(weight, zero, wide, x, padded=padded)
    return reach.of_matrix(weight, zero, wide, x)


def _prove_average(program: IntegerProgram, instr: Instr, shapes: Shapes) -> LayerProof:
    """Of a whole map: one requantization for all channels. Of windows: emulated bit by bit."""
    shape = shapes[instr.inputs[0]]
    pixels = averaged_pixels(instr, shape)
    if pixels is None:
        return _emulated(instr)
    x, y = program.values[instr.inputs[0]], program.values[instr.outputs[0]]
    found, (lo, hi) = average_requant(instr, x, y, pixels)
    channels = shape[-1] if is_channels_last(instr) else shape[1]
    fits = lo >= reach.INT32_MIN and hi <= reach.INT32_MAX
    proved = bool(requant.prove(found, np.array([lo]), np.array([hi]))[0]) and fits
    forms = dict.fromkeys(_by_form(found), channels)
    return LayerProof(instr.node, instr.op, channels, channels * proved, forms, (lo, hi))


def _count_reached(program: IntegerProgram, instr: Instr) -> LayerProof:
    """Thresholds that onnxruntime counts too: exact if the output has room for all of them."""
    channels, levels = instr.arrays["table"].shape
    made = program.values[instr.outputs[0]]
    proved = channels * (made.hi - made.lo == levels)
    return LayerProof(instr.node, instr.op, channels, proved, {"thresholds": channels})


def _emulated(instr: Instr) -> LayerProof:
    """Float32 arithmetic that is carried out bit by bit in integers: nothing is left to prove."""
    return LayerProof(instr.node, instr.op, 1, 1, {"emulated": 1})


def saturation(program: IntegerProgram, instr: Instr, shapes: Shapes) -> Saturation:
    """Pairs of products that a CPU without VNNI would saturate (ort_semantics A.4).

    Its kernel multiplies uint8 codes with int8 weights and adds neighbours along the summed axis in
    int16. Other types are widened first, and so are depthwise convolutions.
    """
    weight = instr.arrays.get("weight")
    x = program.values[instr.inputs[0]]
    if weight is None or weight.dtype != np.int8 or x.dtype != "uint8":
        return Saturation(0, 0)
    if instr.op == "conv" and (weight.shape[1] == 1 and instr.int("group") > 1):
        return Saturation(0, 0)
    rows = _in_kernel_order(instr, weight).astype(np.int64)
    pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(rows.shape[0], -1, 2)
    most = np.maximum(pairs, 0).sum(axis=2) * x.hi + np.minimum(pairs, 0).sum(axis=2) * x.lo
    least = np.minimum(pairs, 0).sum(axis=2) * x.hi + np.maximum(pairs, 0).sum(axis=2) * x.lo
    risky = ((most > INT16_MAX) | (least < INT16_MIN)).any(axis=1)
    channels = int(risky.sum())
    shape = shapes[instr.outputs[0]]
    pixels = int(np.prod(shape, dtype=np.int64)) // max(rows.shape[0], 1)
    return Saturation(channels, channels * pixels)


def _in_kernel_order(instr: Instr, weight: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Weights of each channel in the order of the summed axis: channels innermost."""
    if instr.op == "conv":
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])
