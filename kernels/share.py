"""Who computes what: the part of a kernel's work that one thread takes."""

from onnxptq.kernels.jit import lean_jit


def share_naive(total: int, thread: int, n_threads: int) -> tuple[int, int]:
    """Specification of `share`: deal out the items, then say where this thread's hand begins."""
    hands = [len(range(t, total, n_threads)) for t in range(n_threads)]
    start = sum(hands[:thread])
    return start, start + hands[thread]


@lean_jit
def share(total: int, thread: int, n_threads: int) -> tuple[int, int]:
    """First item of `thread` and the one behind its last; parts differ by at most one item.

    Args:
        total: Number of items, at least 0.
        thread: Who asks, 0 .. n_threads - 1.
        n_threads: How many share the items.
    """
    each, left = total // n_threads, total % n_threads
    start = thread * each + min(thread, left)
    return start, start + each + (1 if thread < left else 0)
