"""What one core of this CPU can do at most: products of codes a second, and bytes read a second.

The peak is that of the best instruction for u8 x s8 in `INSTRUCTIONS`, in a loop of independent
sums that touches no memory: no kernel that computes all products of a layer can be faster.

Twelve sums are enough to hide the latency of an instruction. Tried (vpdpbusd on 512 bits, Sapphire
Rapids, 2026-11):
    1 sum     42 GMAC/s      10 sums  433 GMAC/s
    8 sums   343 GMAC/s      12 sums  476 GMAC/s, 24 sums 480 GMAC/s
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from onnxptq.kernels import conv_amx, target
from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import jit

I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]
Run = Callable[[int], int]
Step = Callable[[Any, Any], Any]

CHAINS = 12
"""Independent sums of a loop: latency times instructions a cycle is 10 at most."""
SECONDS = 0.15
"""How long a rate is looked for; the best one counts, which other load disturbs least."""
CALL_SECONDS = 0.004
DOT = 4096
"""Elements of the plain dot product: two arrays that stay in the first cache."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_BYTES = {2: 1 << 20, 3: 32 << 20}
"""Size of a cache that the system does not tell."""
MOST_BYTES = 256 << 20
"""The largest buffer that is read, also where the last cache is larger."""

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


def _bytes(lanes: int, value: int) -> Any:
    """A vector of equal bytes, as wide as `lanes` sums."""
    return ir.Constant(ir.VectorType(ir.IntType(8), 4 * lanes), [value] * (4 * lanes))


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _dpbusd(lanes: int) -> Step:
    """Four products a sum in one instruction."""
    sums = ir.VectorType(_I32, lanes)

    # Newer versions of LLVM write the operands as bytes; they still read this form.
    def step(builder: Any, acc: Any) -> Any:
        words = [builder.bitcast(_bytes(lanes, value), sums) for value in (3, 5)]
        return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums, [acc, *words])

    return step


def _maddubs(lanes: int, first: str, second: str) -> Step:
    """Pairs of products in 16 bits, pairs of these in 32 bits, and a sum: three instructions."""
    halves, sums = ir.VectorType(ir.IntType(16), 2 * lanes), ir.VectorType(_I32, lanes)

    # The codes are the sum itself: else LLVM would multiply once, before the loop.
    def step(builder: Any, acc: Any) -> Any:
        codes = builder.bitcast(acc, _bytes(lanes, 0).type)
        pairs = _call(builder, first, halves, [codes, _bytes(lanes, 5)])
        ones = ir.Constant(halves, [1] * (2 * lanes))
        return builder.add(acc, _call(builder, second, sums, [pairs, ones]))

    return step


def _chains(lanes: int, step: Step) -> Run:
    """`n` times one step of each of CHAINS sums; gives the total of their first lanes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        kind, before = ir.VectorType(_I32, lanes), builder.block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        count, sums = builder.phi(_I64), [builder.phi(kind) for _ in range(CHAINS)]
        count.add_incoming(ir.Constant(_I64, 0), before)
        more = builder.add(count, ir.Constant(_I64, 1))
        count.add_incoming(more, loop)
        ends = [step(builder, acc) for acc in sums]
        for start, (acc, end) in enumerate(zip(sums, ends, strict=True)):
            acc.add_incoming(ir.Constant(kind, [start] * lanes), before)
            acc.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", more, arguments[0]), loop, done)
        builder.position_at_end(done)
        total = ends[0]
        for end in ends[1:]:
            total = builder.add(total, end)
        return builder.sext(builder.extract_element(total, ir.Constant(_I32, 0)), _I64)

    def typed(typing: Any, n: Any) -> Any:
        del typing, n
        return types.int64(types.int64), build

    return cast("Run", intrinsic(typed))


_dpbusd_512 = _chains(16, _dpbusd(16))
_dpbusd_256 = _chains(8, _dpbusd(8))
_maddubs_512 = _chains(
    16, _maddubs(16, "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")
)
_maddubs_256 = _chains(8, _maddubs(8, "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"))


@jit
def dpbusd_512(n: int) -> int:
    """`n` times CHAINS vpdpbusd on 512 bits."""
    return _dpbusd_512(n)


@jit
def dpbusd_256(n: int) -> int:
    """`n` times CHAINS vpdpbusd on 256 bits."""
    return _dpbusd_256(n)


@jit
def maddubs_512(n: int) -> int:
    """`n` times CHAINS vpmaddubsw, vpmaddwd and vpaddd on 512 bits."""
    return _maddubs_512(n)


@jit
def maddubs_256(n: int) -> int:
    """`n` times CHAINS vpmaddubsw, vpmaddwd and vpaddd on 256 bits."""
    return _maddubs_256(n)


@mk.microkernel("steps")
def _products(builder: mk.Builder, steps: mk.Vector) -> None:
    """Products of two tiles of codes with two of weights, into four."""
    kind = ir.IntType(8)

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        del turn
        for acc in range(4):
            tiles = [ir.Constant(kind, number) for number in (acc, 4 + acc // 2, 6 + acc % 2)]
            mk.call(builder, "llvm.x86.tdpbusd", ir.VoidType(), tiles)
        return []

    mk.loop(builder, steps, [], body)


@jit
def tiles(n: int) -> int:
    """`n` times four products of tiles, whose contents do not matter."""
    place = np.zeros(64, np.uint8)
    conv_amx.configure(place.ctypes.data)
    _products(n)
    conv_amx.release()
    return n + int(place[0])


@jit
def dot(a: I16, b: I16, n: int) -> int:
    """`n` dot products of two arrays, as the compiler makes them."""
    total = np.int32(0)
    for i in range(n):
        a[0] = i
        for k in range(a.size):
            total = np.int32(total + np.int32(np.int32(a[k]) * np.int32(b[k])))
    return int(total)


def _plain(n: int) -> int:
    return dot(np.ones(DOT, np.int16), np.ones(DOT, np.int16), n)


@jit
def read(array: I64) -> int:
    """Read an array once."""
    total = 0
    for i in range(array.size):
        total ^= array[i]
    return total


@dataclass(frozen=True, slots=True)
class Instruction:
    """A way to multiply codes.

    Attributes:
        name: For people.
        needs: What the CPU must have, in LLVM's names.
        macs: Products of one step of `run`.
        run: Takes so many steps. It ends the process where the CPU lacks what it needs.
    """

    name: str
    needs: frozenset[str]
    macs: int
    run: Run


# The best one first.
INSTRUCTIONS = (
    Instruction("tdpbusd", frozenset({"amx-tile", "amx-int8"}), 4 * 16 * 16 * 64, tiles),
    Instruction("vpdpbusd zmm", frozenset({"avx512vnni", "avx512f"}), 64 * CHAINS, dpbusd_512),
    Instruction("vpdpbusd ymm", frozenset({"avxvnni", "avx2"}), 32 * CHAINS, dpbusd_256),
    Instruction("vpmaddubsw zmm", frozenset({"avx512bw"}), 64 * CHAINS, maddubs_512),
    Instruction("vpmaddubsw ymm", frozenset({"avx2"}), 32 * CHAINS, maddubs_256),
    Instruction("int16 dot product", frozenset(), DOT, _plain),
)


@dataclass(frozen=True, slots=True)
class Read:
    """How fast memory is read.

    Attributes:
        place: Where the bytes come from, for people.
        bytes_per_s: Bytes a second.
        holds_bytes: How much is kept there; None for memory.
        buffer_bytes: Size of the buffer that was read.
    """

    place: str
    bytes_per_s: float
    holds_bytes: int | None
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The limits of one core.

    Attributes:
        instruction: The one that multiplies fastest.
        macs_per_s: Products of codes a second.
        reads: From the nearest place to the farthest; the last one is memory.
    """

    instruction: str
    macs_per_s: float
    reads: tuple[Read, ...]

    def read(self, working_set: int) -> Read:
        """Where so many bytes, which are used in turn, come from."""
        near = (one for one in self.reads if working_set <= (one.holds_bytes or working_set))
        return next(near)


def usable_features() -> frozenset[str]:
    """What code may be compiled for and this process may run, in LLVM's names."""
    tiles = frozenset[str]() if target.allow_tiles() else frozenset({"amx-tile", "amx-int8"})
    return target.FEATURES - tiles


def best_instruction(features: frozenset[str]) -> Instruction:
    """The first of INSTRUCTIONS that a CPU with these features has."""
    return next(one for one in INSTRUCTIONS if one.needs <= features)


def cache_bytes(level: int) -> int:
    """Size of a cache of this CPU; a usual size where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for index in sorted(CACHES.glob("index*")):
        kind, size = ((index / name).read_text().strip() for name in ("type", "size"))
        if kind != "Instruction" and (index / "level").read_text().strip() == str(level):
            return int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
    return USUAL_BYTES[level]


def measure() -> Peak:
    """Measure this machine, on one core, in about two seconds."""
    best = best_instruction(usable_features())
    second, third = cache_bytes(2), cache_bytes(3)
    near = min(4 * second, MOST_BYTES // 2)
    far = min(max(2 * third, 2 * near), MOST_BYTES)
    array = np.ones(far // 8, np.int64)  # not zeros: pages that nobody wrote to are all the same
    return Peak(
        best.name,
        best.macs * rate(best.run),
        (
            _read("second cache", second, array[: second // 16]),
            _read("third cache", third, array[: near // 8]),
            _read("memory", None, array),
        ),
    )


def _read(place: str, holds: int | None, array: I64) -> Read:
    speed = array.nbytes * rate(lambda n: sum(read(array) for _ in range(n)))
    return Read(place, speed, holds, array.nbytes)


def rate(run: Run) -> float:
    """Steps a second: the best of what is seen in SECONDS."""
    run(1)
    steps, seconds = 1, 0.0
    while seconds < CALL_SECONDS:
        steps *= 2
        seconds = _seconds(run, steps)
    best, end = steps / seconds, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        best = max(best, steps / _seconds(run, steps))
    return best


def _seconds(run: Run, steps: int) -> float:
    begun = time.perf_counter()
    run(steps)
    return max(time.perf_counter() - begun, 1e-9)
