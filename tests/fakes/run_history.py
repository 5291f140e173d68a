"""RunHistory in memory: what became of the runs that a ``FakeRunTrigger`` made."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from dicom_gateway.interfaces import StudyRun
from flows_engine.definition.naming import request_tag
from tests.fakes.run_trigger import FakeRunTrigger


class FakeRunHistory:
    """Knows the runs of ``trigger``, in the order in which they were made. A test says which begin, end or are gone."""

    def __init__(self, trigger: FakeRunTrigger) -> None:
        self._trigger = trigger
        self._failures: list[Exception] = []
        self.begun: set[str] = set()
        self.over: set[str] = set()
        self.withdrawn: set[str] = set()
        self.deleted: set[str] = set()

    def fail_next(self, *failures: Exception) -> None:
        """Let the next questions end like this, one each."""
        self._failures.extend(failures)

    def runs_of(self, study_id: str, *, flows: Collection[str]) -> list[StudyRun]:
        """Return all runs of ``flows`` on a study."""
        self._answer()
        return [
            StudyRun(
                run_id=run_id,
                flow=request.definition.name,
                digest=request.definition.digest,
                state="Completed" if run_id in self.over else "Scheduled",
                is_over=run_id in self.over | self.withdrawn,
                created_at=datetime(2024, 5, 6, tzinfo=UTC) + timedelta(seconds=number),
                request_ids=frozenset(
                    tag.removeprefix(request_tag(""))
                    for tag in self._trigger.tags[key]
                    if tag.startswith(request_tag(""))
                ),
                was_withdrawn=run_id in self.withdrawn,
            )
            for number, (key, run_id) in enumerate(self._trigger.runs.items())
            if run_id not in self.deleted
            and (request := self._trigger.requests[key]).study_id == study_id
            and request.definition.name in flows
        ]

    def waiting(self, request_id: str) -> int:
        """Return how many of the runs that a request made have not begun."""
        self._answer()
        return len(self._waiting(request_id))

    def withdraw(self, request_id: str) -> int:
        """Cancel those of the runs that a request made which have not begun."""
        self._answer()
        waiting = self._waiting(request_id)
        self.withdrawn |= waiting
        return len(waiting)

    def _waiting(self, request_id: str) -> set[str]:
        made = {run for key, run in self._trigger.runs.items() if request_tag(request_id) in self._trigger.tags[key]}
        return made - self.begun - self.over - self.withdrawn - self.deleted

    def _answer(self) -> None:
        if self._failures:
            raise self._failures.pop(0)
