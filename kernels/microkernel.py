"""What microkernels are written with: LLVM vectors of 16 int32 lanes, loops that carry values.

A microkernel is one intrinsic whose LLVM code is built here by hand, because Numba has no vector
type and LLVM does not find `vpdpbusd` in a loop by itself. It takes addresses and sizes, int64.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir

from onnxptq.kernels import target
from onnxptq.kernels.intrinsics import intrinsic, signature_of

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
LANES = 16
"""int32 numbers in a vector: one of 512 bits, or two of 256."""
ACC = ir.VectorType(I32, LANES)
BYTES = ir.VectorType(I8, 4 * LANES)
LONGS = ir.VectorType(I64, LANES // 2)

Builder = Any
Vector = Any
Body = Callable[[Builder, Vector, Sequence[Vector]], Sequence[Vector]]


def microkernel(*names: str) -> Callable[[Callable[..., Any]], Callable[..., int]]:
    """Make an intrinsic of int64 arguments of these names.

    What it decorates gets a builder and the arguments, and emits the code. The intrinsic gives what
    that gives, an int64, or 0 where that is None.
    """

    def decorate(emit: Callable[..., Any]) -> Callable[..., int]:
        def typing(context: Any, *arguments: Any) -> Any:
            del context

            def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                del context, signature
                found = emit(builder, *values)
                return number(0) if found is None else found

            return signature_of(len(arguments)), build

        parameters = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("typing_context", *names)
        ]
        described: Any = typing
        described.__signature__ = inspect.Signature(parameters)
        described.__name__ = described.__qualname__ = emit.__name__
        return cast("Callable[..., int]", intrinsic(described))

    return decorate


def number(value: int) -> Vector:
    """A constant int64."""
    return ir.Constant(I64, value)


def at(builder: Builder, address: Vector, offset: int = 0) -> Vector:
    """An address some bytes on."""
    return builder.add(address, number(offset)) if offset else address


def load(builder: Builder, address: Vector, kind: Any) -> Vector:
    """What lies at an address, a multiple of anything."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def store(builder: Builder, value: Vector, address: Vector) -> None:
    """Write a value at an address, a multiple of anything."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def prefetch(builder: Builder, address: Vector) -> None:
    """Ask for the cache line at an address, which may be any, to come to the second cache."""
    arguments = [builder.inttoptr(address, I8.as_pointer())]
    arguments += [ir.Constant(I32, number) for number in (0, 2, 1)]  # to read, second cache, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)


def splat(builder: Builder, value: Vector, kind: Any) -> Vector:
    """A vector with a number in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    mask = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), mask)


def constant(value: int, kind: Any) -> Vector:
    """A vector with the same constant in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def shuffled(builder: Builder, one: Vector, other: Vector, lanes: Sequence[int]) -> Vector:
    """Lanes of two vectors, counted through."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(one, other, mask)


def call(builder: Builder, name: str, result: Any, arguments: Sequence[Vector]) -> Vector:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [value.type for value in arguments])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, arguments)


def loop(builder: Builder, count: Vector, carried: Sequence[Vector], body: Body) -> list[Vector]:
    """Run `body` `count` times, at least once; it gets the round and what the last one gave."""
    before = builder.block
    head = builder.append_basic_block("loop")
    after = builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    turn = builder.phi(I64)
    phis = [builder.phi(value.type) for value in carried]
    turn.add_incoming(number(0), before)
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    new = body(builder, turn, phis)
    following = builder.add(turn, number(1))
    tail = builder.block
    turn.add_incoming(following, tail)
    for phi, value in zip(phis, new, strict=True):
        phi.add_incoming(value, tail)
    builder.cbranch(builder.icmp_signed("<", following, count), head, after)
    builder.position_at_end(after)
    return list(new)


def dot4(builder: Builder, acc: Vector, codes: Vector, weights: Vector) -> Vector:
    """Give acc + sum over four of codes (u8) * weights (s8), lane by lane, exactly.

    Args:
        builder: Where code goes.
        acc: 16 x i32.
        codes: 64 x u8, four for each lane.
        weights: 64 x s8.
    """
    if target.HAS_VNNI:
        pair = [builder.bitcast(codes, ACC), builder.bitcast(weights, ACC)]
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", ACC, [acc, *pair])
    return _dot4_words(builder, acc, codes, weights)


def _dot4_words(builder: Builder, acc: Vector, codes: Vector, weights: Vector) -> Vector:
    """By products of int16: even and odd bytes apart, so that no pair of sums is saturated."""
    words = ir.VectorType(I16, 2 * LANES)
    x, w = builder.bitcast(codes, words), builder.bitcast(weights, words)
    eight = constant(8, words)
    even = (builder.and_(x, constant(255, words)), builder.ashr(builder.shl(w, eight), eight))
    odd = (builder.lshr(x, eight), builder.ashr(w, eight))
    for left, right in (even, odd):
        acc = builder.add(acc, pair_sums(builder, left, right))
    return acc


def _halves(builder: Builder, values: Sequence[Vector]) -> list[list[Vector]]:
    """The low halves of some vectors, and their high ones."""
    size = values[0].type.count
    return [
        [shuffled(builder, value, value, range(first, first + size // 2)) for value in values]
        for first in (0, size // 2)
    ]


def _by_halves(builder: Builder, name: str, values: Sequence[Vector], kind: Any) -> Vector:
    """Call an intrinsic of 256 bits for both halves; `kind` is what it gives."""
    low, high = (call(builder, name, kind, half) for half in _halves(builder, values))
    return shuffled(builder, low, high, range(2 * kind.count))


def pair_sums(builder: Builder, left: Vector, right: Vector) -> Vector:
    """Sums of two products each: 32 x i16 and 32 x i16 give 16 x i32."""
    if target.HAS_VNNI:
        return call(builder, "llvm.x86.avx512.pmaddw.d.512", ACC, [left, right])
    if target.HAS_AVX2:
        kind = ir.VectorType(I32, LANES // 2)
        return _by_halves(builder, "llvm.x86.avx2.pmadd.wd", [left, right], kind)
    total = None
    for first in (0, 1):
        lanes = range(first, 2 * LANES, 2)
        x, w = (
            builder.sext(shuffled(builder, value, value, lanes), ACC) for value in (left, right)
        )
        product = builder.mul(x, w)
        total = product if total is None else builder.add(total, product)
    return total


def high_product(builder: Builder, left: Vector, right: Vector) -> Vector:
    """The high 16 bits of the products of 32 x i16."""
    wide = ir.VectorType(I32, left.type.count)
    product = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    return builder.trunc(builder.lshr(product, constant(16, wide)), left.type)


def unpacked(builder: Builder, one: Vector, other: Vector, block: int) -> list[Vector]:
    """Lanes of two vectors in turn: the low halves of each block of lanes, and the high ones."""
    size = one.type.count
    return [
        shuffled(
            builder,
            one,
            other,
            [
                lane
                for first in range(half, size, block)
                for i in range(block // 2)
                for lane in (first + i, size + first + i)
            ],
        )
        for half in (0, block // 2)
    ]


def packed(builder: Builder, fours: Sequence[Vector]) -> Vector:
    """Codes of four vectors of 16 x i32, clipped to 0 .. 255: in each 16 bytes four of each."""
    words, codes = ir.VectorType(I16, 2 * LANES), BYTES
    pairs = (fours[:2], fours[2:])
    if target.HAS_VNNI:
        halves = [call(builder, "llvm.x86.avx512.packssdw.512", words, pair) for pair in pairs]
        return call(builder, "llvm.x86.avx512.packuswb.512", codes, halves)
    if target.HAS_AVX2:
        words, codes = ir.VectorType(I16, LANES), ir.VectorType(I8, 2 * LANES)
        halves = [_by_halves(builder, "llvm.x86.avx2.packssdw", pair, words) for pair in pairs]
        return _by_halves(builder, "llvm.x86.avx2.packuswb", halves, codes)
    small: list[Vector] = []
    for vector in fours:
        low, high = constant(0, ACC), constant(255, ACC)
        raised = builder.select(builder.icmp_signed(">", vector, low), vector, low)
        clipped = builder.select(builder.icmp_signed("<", raised, high), raised, high)
        small.append(builder.trunc(clipped, ir.VectorType(I8, LANES)))
    halves = [shuffled(builder, *small[i : i + 2], range(2 * LANES)) for i in (0, 2)]
    order = [
        LANES * vector + 4 * block + i
        for block in range(4)
        for vector in range(4)
        for i in range(4)
    ]
    return shuffled(builder, *halves, order)


@microkernel("to", "source", "count")
def copy_bytes(builder: Builder, to: Vector, source: Vector, count: Vector) -> None:
    """Copy bytes between addresses that do not overlap."""
    kind = I8.as_pointer()
    ends = [builder.inttoptr(address, kind) for address in (to, source)]
    name = "llvm.memcpy.p0.p0.i64"
    call(builder, name, ir.VoidType(), [*ends, count, ir.Constant(I1, 0)])


@microkernel("to", "value", "count")
def fill_bytes(builder: Builder, to: Vector, value: Vector, count: Vector) -> None:
    """Write the same byte everywhere from an address on."""
    start, byte = builder.inttoptr(to, I8.as_pointer()), builder.trunc(value, I8)
    call(builder, "llvm.memset.p0.i64", ir.VoidType(), [start, byte, count, ir.Constant(I1, 0)])
