"""The worker threads of this process, which run a plan's rows together with their caller.

They are Python threads that each make one call into compiled code, which does not hold the GIL.
Numba's own thread pools are not used: its OpenMP pool kills forked children, and its work queue
dies of concurrent callers.
"""

import os
import threading
from queue import SimpleQueue

from onnxptq.errors import ProgramError
from onnxptq.kernels.dispatch import dispatch, give_up, new_claims, parts_of
from onnxptq.runtime.draft import I64, U8

Job = tuple[I64, I64, U8, U8, int, I64]
"""Arguments of `dispatch`."""


class Team:
    """Worker threads, started when first needed, that wait for work at a queue each.

    Nobody waits for them: a worker that comes late, or is busy for another caller, finds the rows
    finished and goes on to the next job.
    """

    def __init__(self) -> None:
        self._queues: list[SimpleQueue[Job]] = []

    def run(self, rows: I64, addresses: I64, arena: U8, consts: U8, n_threads: int) -> None:
        """Run rows in the calling thread and up to n_threads - 1 workers.

        Args:
            rows: Kernel calls, [n, 64].
            addresses: Of all kernels that they call, by number.
            arena: uint8 [bytes], changed in place.
            consts: uint8 [bytes].
            n_threads: How many may share the work.

        Raises:
            ProgramError: A row calls a kernel without an address.
        """
        claims = new_claims(len(rows))
        job = (rows, addresses, arena, consts, parts_of(n_threads), claims)
        while len(self._queues) < n_threads - 1:
            self._hire()
        try:
            for queue in self._queues[: n_threads - 1]:
                if queue.empty():  # else its worker is far behind, and jobs would pile up
                    queue.put(job)
            finished = dispatch(*job)
        except BaseException:
            # An interrupt between two lines above: nobody may go on with this arena.
            give_up(claims)
            raise
        if not finished:
            numbers = sorted({int(n) for n in rows[:, 0]})
            raise ProgramError(f"rows call kernels {numbers}, of which one has no address")

    def _hire(self) -> None:
        queue: SimpleQueue[Job] = SimpleQueue()
        name = f"onnxptq-{len(self._queues) + 1}"
        threading.Thread(target=_work, args=(queue,), name=name, daemon=True).start()
        self._queues.append(queue)


def _work(queue: "SimpleQueue[Job]") -> None:
    while True:
        job = queue.get()
        dispatch(*job)
        del job  # what it refers to is not kept alive until the next one comes


_teams: dict[int, Team] = {}


def team() -> Team:
    """The team of this process; a forked child, where no worker lives on, gets a new one."""
    return _teams.setdefault(os.getpid(), Team())
