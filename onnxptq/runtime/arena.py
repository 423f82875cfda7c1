"""Where values lie in the arena: those that are never needed at the same time share their bytes."""

from collections.abc import Iterable, Sequence

from onnxptq.runtime.draft import ALIGN, aligned

Life = tuple[int, int]
"""First and last step that touches a piece of the arena, both inclusive."""


def place(sizes: Sequence[int], lives: Sequence[Life]) -> tuple[list[int], int]:
    """Offsets of pieces in one arena, and its size.

    The largest pieces are placed first, each at the lowest offset where it meets no piece that is
    alive at the same time. The result is never below the largest sum of pieces alive at once, and
    for networks is seldom above it.

    Args:
        sizes: Bytes of each piece.
        lives: When each piece is needed.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for piece in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if sizes[piece] == 0:
            continue
        others = (other for other in placed if _meet(lives[other], lives[piece]))
        taken = sorted((offsets[i], offsets[i] + aligned(sizes[i])) for i in others)
        offsets[piece] = _first_gap(taken, aligned(sizes[piece]))
        placed.append(piece)
    total = max((offsets[i] + aligned(sizes[i]) for i in placed), default=0)
    return offsets, max(total, ALIGN)


def apart(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets of pieces that all keep their bytes, and the size of the arena."""
    return place(sizes, [(0, 0)] * len(sizes))


def lives_of(
    touched: Sequence[Iterable[int]], count: int, first: Iterable[int], last: Iterable[int]
) -> list[Life]:
    """When each of `count` pieces is needed.

    Args:
        touched: The pieces that each step touches.
        count: Number of pieces.
        first: Pieces that are filled before the first step: inputs, constants.
        last: Pieces that are read after the last step: outputs, constants.
    """
    begins, ends = [-1] * count, [-1] * count
    for step, pieces in enumerate(touched):
        for piece in pieces:
            ends[piece] = step
            begins[piece] = step if begins[piece] < 0 else begins[piece]
    for piece in first:
        begins[piece], ends[piece] = 0, max(ends[piece], 0)
    for piece in last:
        begins[piece], ends[piece] = max(begins[piece], 0), len(touched)
    return list(zip(begins, ends, strict=True))


def _meet(one: Life, other: Life) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _first_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    start = 0
    for begin, end in taken:
        if begin - start >= size:
            break
        start = max(start, end)
    return start
