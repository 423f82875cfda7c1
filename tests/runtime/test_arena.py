"""Pieces that are alive together never share bytes; the others do."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from onnxptq.runtime.arena import apart, lives_of, place
from onnxptq.runtime.draft import ALIGN, aligned

PIECES = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 12), st.integers(0, 12)), max_size=25
)


@given(PIECES)
def test_pieces_alive_together_are_apart(pieces: list[tuple[int, int, int]]) -> None:
    sizes = [size for size, _, _ in pieces]
    lives = [(min(a, b), max(a, b)) for _, a, b in pieces]

    offsets, total = place(sizes, lives)

    for i, j in itertools.combinations(range(len(pieces)), 2):
        if lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1] and sizes[i] and sizes[j]:
            assert offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
    assert all(offset % ALIGN == 0 for offset in offsets)
    assert all(offset + size <= total for offset, size in zip(offsets, sizes, strict=True))
    alive = [
        sum(aligned(n) for n, (a, b) in zip(sizes, lives, strict=True) if a <= step <= b)
        for step in range(13)
    ]
    assert max(alive) <= total <= max(sum(map(aligned, sizes)), ALIGN)


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [1000, 2000, 640, 640, 3000]
    lives = lives_of([(0, 1), (1, 2), (2, 3), (3, 4)], 5, first=[0], last=[4])

    _, total = place(sizes, lives)

    assert lives == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4)]
    assert total == aligned(3000) + 640


def test_what_is_filled_before_and_read_after_the_steps_keeps_its_bytes() -> None:
    lives = lives_of([(1,), (1, 2)], 4, first=[0, 3], last=[2, 3])

    assert lives == [(0, 0), (0, 1), (1, 2), (0, 2)]


def test_all_pieces_apart() -> None:
    assert apart([64, 0, 65]) == ([128, 0, 0], 192)
