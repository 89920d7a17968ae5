"""The worker processes of a backfill: gives each its chunks, and replaces one that was killed."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.backfill.plan import Chunk, Plan
from headrace.backfill.worker import CODE
from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.processes import PARENT_PID

MOST_ATTEMPTS = 3
"""A chunk that ends its worker this many times ends the backfill."""
END_SECONDS = 5.0


class Worker:
    """One worker process, and the chunks that are its own."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        # In a group of its own, so that Ctrl-C reaches only the process that ends all of them.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=folder,
            process_group=0,
        )
        self.chunk: int | None = None
        self.is_ready = False

    def give(self, chunk: int) -> None:
        self.chunk = chunk
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{chunk}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it was killed: its output ends too

    def kill(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(END_SECONDS)


class Pool:
    """Scores chunks with several processes.

    Args:
        code: the folder of the code in the version's bento, for a custom class.
        progress: called with the number of rows of each chunk that is done.
    """

    def __init__(self, plan: Plan, workers: int, code: Path | None, progress: Callable[[Chunk], None], report: Report) -> None:
        self._plan, self._count, self._progress, self._report = plan, workers, progress, report
        self._command = [sys.executable, "-m", "headrace.backfill.worker", plan.out]
        self._environment = {
            **os.environ,
            PARENT_PID: str(os.getpid()),
            "MALLOC_ARENA_MAX": "2",
            **({CODE: str(code)} if code is not None else {}),
        }
        self._attempts: Counter[int] = Counter()
        self._chunks: dict[int, Chunk] = {}

    def score(self, chunks: Sequence[Chunk]) -> None:
        """Scores the chunks, in ascending order within each process.

        Raises:
            HeadraceError: a chunk cannot be scored.
        """
        self._chunks = {chunk.index: chunk for chunk in chunks}
        queues = divided([chunk.index for chunk in chunks], self._count)
        with selectors.DefaultSelector() as selector:
            workers = [(self._started(selector, place), queue) for place, queue in enumerate(queues)]
            running = dict(enumerate(workers))
            try:
                while running:
                    for key, _ in selector.select():
                        place: int = key.data
                        worker, queue = running[place]
                        if (replacement := self._take_reply(worker, queue, selector, place)) is not worker:
                            running[place] = (replacement, queue)
                        elif worker.is_ready and worker.chunk is None and not self._give_next(place, running):
                            selector.unregister(key.fileobj)
                            running.pop(place)[0].kill()
            finally:
                for worker, _ in running.values():
                    worker.kill()

    def _started(self, selector: selectors.BaseSelector, place: int) -> Worker:
        worker = Worker(self._command, self._environment, Path(self._plan.project))
        assert worker.process.stdout is not None
        selector.register(worker.process.stdout, selectors.EVENT_READ, place)
        return worker

    def _take_reply(self, worker: Worker, queue: deque[int], selector: selectors.BaseSelector, place: int) -> Worker:
        """Reads a reply; returns the worker, or the one that replaces it."""
        assert worker.process.stdout is not None
        line = worker.process.stdout.readline()
        if not line.endswith(b"\n"):
            selector.unregister(worker.process.stdout)
            return self._replaced(worker, queue, selector, place)
        reply = json.loads(line)
        if "error" in reply:
            raise HeadraceError.from_dict(reply["error"])
        worker.is_ready = True
        if "chunk" in reply:
            worker.chunk = None
            self._progress(self._chunks[reply["chunk"]])
        return worker

    def _replaced(self, worker: Worker, queue: deque[int], selector: selectors.BaseSelector, place: int) -> Worker:
        """Starts a worker in the place of one that was killed; its chunk is repeated.

        Raises:
            HeadraceError: the chunk, or loading the model, has ended several workers.
        """
        chunk, how = worker.chunk, _ending(worker.process.wait(END_SECONDS))
        worker.kill()
        number = -1 if chunk is None else chunk
        self._attempts[number] += 1
        if self._attempts[number] >= MOST_ATTEMPTS:
            raise self._gave_up(chunk, how)
        self._report(f"a worker process {how}; it is started again")
        if chunk is not None:
            queue.appendleft(chunk)
        return self._started(selector, place)

    def _gave_up(self, chunk: int | None, how: str) -> HeadraceError:
        if chunk is None:
            what, where = "loading the model", self._plan.name
        else:
            one = self._chunks[chunk]
            what, where = one.described, self._plan.files[one.file].path
        return HeadraceError(
            f"{what} ended {MOST_ATTEMPTS} worker processes; the last one {how}",
            where=where,
            hint="if the machine is short of memory, the same command with --workers 1; otherwise remove these rows",
        )

    def _give_next(self, place: int, running: dict[int, tuple[Worker, deque[int]]]) -> bool:
        """Gives a worker its next chunk, or one of the worker that has most left; False if there is none."""
        worker, queue = running[place]
        if not queue:
            longest = max((other for _, other in running.values()), key=len)
            taken = [longest.pop() for _ in range((len(longest) + 1) // 2)]
            queue.extend(reversed(taken))
        if not queue:
            return False
        worker.give(queue.popleft())
        return True


def divided(chunks: Sequence[int], count: int) -> list[deque[int]]:
    """Returns `count` runs of chunks, so that each process reads a part of the file in order; fewer if there are fewer."""
    count = max(1, min(count, len(chunks)))
    bounds = [len(chunks) * place // count for place in range(count + 1)]
    return [deque(chunks[start:end]) for start, end in itertools.pairwise(bounds)]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
