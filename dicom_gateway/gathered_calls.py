"""Calls about one thing that are made while another is under way -> one call, made next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Subject = TypeVar("Subject", bound=Hashable)
Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class GatheredCalls(Generic[Subject, Ask, Answer]):
    """Calls of several threads, of which those on one subject are made together, and one such at a time.

    Nobody waits for company: who finds nothing under way is served at once, alone. ``make`` is given a subject and what
    is asked about it, first come first, ``most`` at once; it returns an answer to each. What it raises is raised in
    all that asked.
    """

    def __init__(self, make: Callable[[Subject, Sequence[Ask]], Sequence[Answer]], *, most: int) -> None:
        self._make = make
        self._most = most
        self._changed = threading.Condition()
        self._waiting: dict[Subject, deque[tuple[Ask, Future[Answer]]]] = {}
        self._under_way: set[Subject] = set()

    def call(self, subject: Subject, ask: Ask) -> Answer:
        """Have it made, and return the answer."""
        own: Future[Answer] = Future()
        with self._changed:
            self._waiting.setdefault(subject, deque()).append((ask, own))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: own.done() or subject not in self._under_way)
                if own.done():
                    return own.result()
                self._under_way.add(subject)
                batch = self._next(subject)
            try:
                self._make_and_tell(subject, batch)
            finally:
                with self._changed:
                    self._under_way.discard(subject)
                    self._changed.notify_all()

    def _next(self, subject: Subject) -> list[tuple[Ask, Future[Answer]]]:
        waiting = self._waiting[subject]
        batch = [waiting.popleft() for _ in range(min(len(waiting), self._most))]
        if not waiting:
            del self._waiting[subject]
        return batch

    def _make_and_tell(self, subject: Subject, batch: list[tuple[Ask, Future[Answer]]]) -> None:
        try:
            answers = self._make(subject, [ask for ask, _ in batch])
            for (_, told), answer in zip(batch, answers, strict=True):
                told.set_result(answer)
        except BaseException as error:  # noqa: BLE001  # whatever it was, nobody is to wait for ever
            for _, told in batch:
                if not told.done():
                    told.set_exception(error)
