"""Pictures for the loop: a step's batches at a time, whatever becomes of the files and of those that read them.

What is read depends on the seed and the step alone, so it can be read again: after a process that reads has died, or
by more processes where they are waited for.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fullyconv.errors import DatasetError
from fullyconv.events import Alarm, Event, Said
from fullyconv.sampling import Batch, Lost, Positions, Samples, WorkerDied, batches

if TYPE_CHECKING:
    from fullyconv.learner import Learner

UNREADABLE = 0.01
"""Training ends where more than this share of the pictures, rounded up to a whole one, can no longer be read: a damaged
file or two is no reason to lose a night, and a lost disk is."""
DEATHS = 3
"""So often in one start the processes that read are started anew after one has died. More is no accident."""
WAITING, WATCHED = 0.1, 20
"""More than this share of so many steps spent waiting for pictures calls for more processes that read them."""


class Reader:
    """What a fit learns from, step by step.

    Args:
        samples: what to read.
        learner: for which; in several processes each reads its share.
        stage: name in events and messages.
        batch, accumulate: pictures at a time, and how often for a step.
        workers, most_workers: processes that read, now and at most.
        void, fill: of padding, as for `batches`.
        step: to begin with.
        lost: pictures that an interrupted fit could not read; they are not told again.
        stop: whether somebody has asked to stop. Then the death of a worker is no accident.

    Attributes:
        lost: pictures that could not be read, by name, over all processes and starts.
        waited_s: how long the last step waited.
    """

    def __init__(
        self,
        samples: Samples,
        learner: Learner,
        *,
        stage: str,
        batch: int,
        accumulate: int,
        workers: int,
        most_workers: int,
        void: int,
        fill: tuple[float, ...],
        step: int,
        lost: dict[str, str],
        stop: Callable[[], bool],
    ) -> None:
        self.samples, self.learner, self.stage, self.stop = samples, learner, stage, stop
        self.batch, self.accumulate, self.void, self.fill = batch, accumulate, void, fill
        self.workers, self.most_workers, self.lost = workers, most_workers, lost
        self.waited_s = 0.0
        self._lost_now: dict[str, str] = {}
        self._deaths = 0
        self._waits: deque[float] = deque(maxlen=WATCHED)
        self._stream = self._from(step)

    def take(self, step: int) -> Generator[Event, None, list[Batch]]:
        """The batches of the step after so many; tells what went wrong on the way.

        Raises:
            DatasetError: too many pictures cannot be read, or those that read them die again and again.
            KeyboardInterrupt: a worker has died since all were asked to stop.
        """
        begun = time.monotonic()
        held: list[Batch] = []
        lost: dict[str, str] = {}
        missing = ""
        while len(held) < self.accumulate:
            try:
                with _serial():
                    batch, found = next(self._stream)
            except WorkerDied as died:
                yield from self._anew(step, str(died))
                held = []
                continue
            lost |= found
            if isinstance(batch, str):
                missing = batch
                break
            held.append(batch)
        yield from self._report(step, lost)
        if missing:
            raise DatasetError(missing)
        self.waited_s = time.monotonic() - begun
        return held

    def watch(self, step: int, seconds: float) -> Iterator[Event]:
        """Note how long a step took in all, and read by more processes where too much of it went by waiting."""
        self._waits.append(self.waited_s / seconds)
        waiting = sum(self._waits) / WATCHED
        if len(self._waits) == WATCHED and self.workers < self.most_workers and waiting > WAITING:
            self.workers = min(max(1, 2 * self.workers), self.most_workers)
            self._stream = self._from(step)
            self._waits.clear()
            yield Said(
                f"{self.stage}: {100 * waiting:.0f} % of the time went by waiting for pictures; {self.workers} "
                f"worker{'s' if self.workers > 1 else ''} from now on"
            )

    def summary(self) -> str:
        """What could not be read, in words; "" where all could."""
        if not self.lost:
            return ""
        named = ", ".join(list(self.lost)[:5]) + (", ..." if len(self.lost) > 5 else "")
        return (
            f"{_pictures(len(self.lost))} of {len(self.samples.data)} could not be read while training, and others "
            f"were learnt from in {'its' if len(self.lost) == 1 else 'their'} place: {named}"
        )

    def _from(self, step: int) -> Iterator[tuple[Batch | str, Lost]]:
        positions = Positions(
            start=step * self.batch * self.accumulate,
            batch=self.batch,
            rank=self.learner.rank,
            processes=self.learner.processes,
        )
        return batches(self.samples, positions, workers=self.workers, void=self.void, fill=self.fill)

    def _anew(self, step: int, died: str) -> Iterator[Event]:
        if self.stop():
            # A signal to the whole group of processes has ended those that read before it reached the loop.
            raise KeyboardInterrupt(f"{self.stage}: stopped after step {step}; resume to go on from there")
        self._deaths += 1
        if self._deaths > DEATHS:
            raise DatasetError(
                f"processes that read pictures died {self._deaths} times ({died}); is memory short? --workers 0 reads "
                "without any"
            )
        yield Alarm(self.stage, step, "worker", f"a process that reads pictures has died, others take over ({died})")
        self._stream = self._from(step)

    def _report(self, step: int, lost: Lost) -> Iterator[Event]:
        lost = self.learner.pooled(lost)
        for name in sorted(lost.keys() - self.lost.keys()):
            yield Alarm(self.stage, step, "skipped", f"{lost[name]}; left out, another is learnt from instead")
        self.lost |= lost
        self._lost_now |= lost
        if len(self._lost_now) > self.samples.most:
            raise DatasetError(
                f"{_pictures(len(self._lost_now))} of {len(self.samples.data)} can no longer be read, "
                f"more than {100 * UNREADABLE:g} %: {next(iter(self._lost_now.values()))}; bring them back"
            )


def may_be_lost(pictures: int) -> int:
    """How many of so many pictures may become unreadable before training ends."""
    return math.ceil(UNREADABLE * pictures)


def default_workers(device: torch.device, *, decoded: bool) -> int:
    """Processes that read pictures. Where the net computes on the same cores, they had better be few."""
    cores = os.cpu_count() or 1
    if device.type != "cpu":
        return max(1, min(8, cores - 1))
    return min(4, max(cores // 4, 0 if decoded else 1))


def most_workers(device: torch.device) -> int:
    """How many there may be where pictures are waited for."""
    cores = os.cpu_count() or 1
    return cores if device.type == "cpu" else max(1, cores - 1)


@contextmanager
def _serial() -> Iterator[None]:
    """One thread for torch, as in the processes that read.

    Transforms are made of operations so small that threads wait for each other longer than they compute, by far where
    other programs want the cores too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"
