"""Rows are run in order by any number of threads; the instructions below equal their twins."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq.kernels import ROW_KERNELS, dispatch, intrinsics
from onnxptq.kernels.jit import jit

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
SIZE = 4096


def addresses_of(*kernels: str) -> I64:
    """Addresses of these kernels, by number."""
    addresses = dispatch.new_addresses()
    numbers = [[dispatch.NUMBERS[kernel]] for kernel in kernels]
    dispatch.update_addresses(addresses, np.array(numbers))
    return addresses


COPY = addresses_of("copy")


@jit
def add_often(array: I64, index: int, times: int) -> int:
    """Add 1 `times` times; give what was there before the last time."""
    last = 0
    for _ in range(times):
        last = intrinsics.atomic_add(array, index, 1)
        intrinsics.pause()
        intrinsics.give_way()
    return last


@jit
def call(address: int, row: I64, arena: U8, consts: U8) -> None:
    """One kernel call, in one part."""
    intrinsics.call_kernel(address, row, arena, consts, 0, 1)


@jit
def load(array: I64, index: int) -> int:
    """One element."""
    return intrinsics.atomic_load(array, index)


def test_atomic_instructions_equal_their_twins() -> None:
    own, other = np.arange(9), np.arange(9)

    found = add_often(own, 3, 1)

    assert found == intrinsics.atomic_add_naive(other, 3, 1)
    assert load(own, 3) == intrinsics.atomic_load_naive(other, 3) == 4
    np.testing.assert_array_equal(own, other)
    intrinsics.pause_naive()
    intrinsics.give_way_naive()
    np.testing.assert_array_equal(own, other)


def test_a_call_by_address_equals_its_twin(rng: np.random.Generator) -> None:
    (row, *_), tables = chain(rng, 1, [True])
    consts = tables.astype(np.uint8)
    found = rng.integers(0, 256, 2 * SIZE).astype(np.uint8)
    expected = found.copy()

    call(int(COPY[row[0]]), row, found, consts)

    intrinsics.call_kernel_naive(ROW_KERNELS["copy"], row, expected, consts, 0, 1)
    np.testing.assert_array_equal(found, expected)


def test_kernels_that_no_row_calls_have_no_address() -> None:
    addresses = addresses_of("copy", "clip")
    dispatch.update_addresses(addresses, np.array([[len(addresses)], [-1]]))

    assert set(np.flatnonzero(addresses)) == {dispatch.NUMBERS["copy"], dispatch.NUMBERS["clip"]}
    assert addresses[dispatch.NUMBERS["copy"]] == COPY[dispatch.NUMBERS["copy"]]


@pytest.mark.parametrize("number", [dispatch.NUMBERS["take"], len(dispatch.NUMBERS), 10**9, -1])
def test_a_kernel_without_an_address_stops_all_threads(
    number: int, rng: np.random.Generator
) -> None:
    rows, tables = chain(rng, 3, [False])
    rows[1, 0] = number
    consts, arena = tables.astype(np.uint8), rng.integers(0, 256, 4 * SIZE).astype(np.uint8)
    expected, claims = arena.copy(), dispatch.new_claims(3)
    dispatch.dispatch_naive(rows[:1], COPY, expected, consts, 1, dispatch.new_claims(1))

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(dispatch.dispatch, rows, COPY, arena, consts, 4, claims)] * 3

    assert [job.result() for job in jobs] == [False] * 3
    assert not dispatch.dispatch_naive(rows, COPY, expected, consts, 1, dispatch.new_claims(3))
    np.testing.assert_array_equal(arena, expected)


def test_no_addition_is_lost_between_threads() -> None:
    array = np.zeros(16, np.int64)

    with ThreadPoolExecutor(4) as pool:
        last = list(pool.map(add_often, [array] * 4, [8] * 4, [2000] * 4))

    assert array[8] == 8000
    assert max(last) == 7999


def test_kernels_are_numbered_as_they_stand_in_the_table() -> None:
    assert list(dispatch.NUMBERS) == list(ROW_KERNELS)
    for name, function in ROW_KERNELS.items():
        assert function.__name__ == name


def test_columns_of_a_row_do_not_meet() -> None:
    for name in dispatch.COLUMNS:
        places = dispatch.columns_of(name)

        assert len(set(places.values())) == len(places)
        assert max(places.values()) < dispatch.MOST_PARTS


def chain(rng: np.random.Generator, count: int, alone: list[bool]) -> tuple[I64, I64]:
    """Rows that each write a table of the row before, backwards; the arena's first bytes are x."""
    rows = np.zeros((count, dispatch.ROW), np.int64)
    copy = dispatch.columns_of("copy")
    for i in range(count):
        rows[i, 0] = dispatch.NUMBERS["copy"]
        values = {"x": i * SIZE + SIZE - 1, "y": (i + 1) * SIZE, "bytes": 1, "table": 256 * i}
        sizes = {f"n{axis}": 1 for axis in range(5)} | {"n5": SIZE}
        for name, value in (values | sizes | {"x5": -1, "y5": 1}).items():
            rows[i, copy[name]] = value
        rows[i, dispatch.MOST_PARTS] = 1 if alone[i % len(alone)] else 1000
    return rows, rng.integers(0, 256, 256 * count)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("alone", [[False], [True], [True, True, False], [False, False, True]])
def test_threads_do_not_change_a_bit(
    threads: int, alone: list[bool], rng: np.random.Generator
) -> None:
    rows, tables = chain(rng, 20, alone)
    consts = tables.astype(np.uint8)
    arena = rng.integers(0, 256, 21 * SIZE).astype(np.uint8)
    expected = arena.copy()
    dispatch.dispatch_naive(rows, COPY, expected, consts, 1, dispatch.new_claims(len(rows)))
    parts = dispatch.parts_of(threads)
    for _ in range(20):
        found, claims = arena.copy(), dispatch.new_claims(len(rows))

        def work(_: int, found: npt.NDArray[np.uint8] = found, claims: I64 = claims) -> None:
            dispatch.dispatch(rows, COPY, found, consts, parts, claims)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))

        np.testing.assert_array_equal(found, expected)


def test_nobody_waits_for_a_thread_that_does_not_come(rng: np.random.Generator) -> None:
    rows, tables = chain(rng, 20, [False])
    consts, arena = tables.astype(np.uint8), rng.integers(0, 256, 21 * SIZE).astype(np.uint8)
    expected = arena.copy()
    dispatch.dispatch_naive(rows, COPY, expected, consts, 1, dispatch.new_claims(20))

    parts, claims = dispatch.parts_of(7), dispatch.new_claims(20)

    finished = dispatch.dispatch(rows, COPY, arena, consts, parts, claims)

    assert finished
    np.testing.assert_array_equal(arena, expected)


def test_who_comes_late_touches_nothing(rng: np.random.Generator) -> None:
    rows, tables = chain(rng, 4, [False, True])
    consts, arena = tables.astype(np.uint8), rng.integers(0, 256, 5 * SIZE).astype(np.uint8)
    claims, parts = dispatch.new_claims(4), dispatch.parts_of(2)
    dispatch.dispatch(rows, COPY, arena, consts, parts, claims)
    others = np.zeros_like(arena)  # the arena is in use by somebody else again

    dispatch.dispatch(rows, COPY, others, consts, parts, claims)

    assert not others.any()


def test_a_thread_that_waits_in_vain_can_be_sent_home(rng: np.random.Generator) -> None:
    rows, tables = chain(rng, 2, [False])
    arena, claims, parts = np.zeros(3 * SIZE, np.uint8), dispatch.new_claims(2), 4
    claims[dispatch.CLAIMED] = 1  # a part that somebody claimed and never finishes
    arguments = (rows, COPY, arena, tables.astype(np.uint8), parts, claims)
    thread = threading.Thread(target=dispatch.dispatch, args=arguments, daemon=True)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()

    dispatch.give_up(claims)

    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("kernel", dispatch.COLUMNS)
def test_columns_of_a_row_have_names_and_places_of_their_own(kernel: str) -> None:
    names = [*dispatch.COLUMNS[kernel]]
    places = dispatch.columns_of(kernel)

    assert len(set(places.values())) == len(places) >= len(names)
    assert [places[name] for name in names] == list(range(1, 1 + len(names)))
