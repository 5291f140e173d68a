"""How a container came to its end: by itself, or because something outside stopped it.

An engine that is told to end asks its containers to end first. A model that does as it is asked may exit with any code,
0 among them, and would pass for one that failed, or even for one that is done.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from docker.errors import APIError, DockerException

from flows_engine.docker_connection import explanation
from flows_engine.ending_signals import ending_signals, signal_number
from flows_engine.errors import EngineMisconfiguredError, EngineUnavailableError, ModelInterruptedError

if TYPE_CHECKING:
    import docker

# The engine tells of an end at about the moment at which it tells the exit code.
_PATIENCE_SECONDS: Final = 10.0


class ContainerEnd:
    """Listens, on a connection of its own, to what an engine says of one container. For before the container starts.

    Raises ``EngineMisconfiguredError`` where nobody may listen, and ``EngineUnavailableError`` where that cannot be
    had now. It takes as long as any other question to the engine, at most.
    """

    def __init__(self, client: docker.DockerClient, name: str, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._client = client
        self._patience_seconds = patience_seconds
        found = client.api.inspect_container(name)
        # Not the name: the engine takes one for the beginning of others, and an earlier attempt had the same.
        self._id = str(found["Id"])
        self._ending_signals = ending_signals(found["Config"].get("StopSignal"))
        self._was_killed = False
        self._is_told = False
        self._is_over = threading.Event()
        try:
            self._events = client.api.container_events(self._id)
        except APIError as error:
            raise _not_heard(error) from error
        threading.Thread(target=self._listen, daemon=True).start()

    def confirm(self) -> None:
        """Return if the container, which has ended, did so by itself.

        Raises ``ModelInterruptedError`` where it was stopped, and ``EngineUnavailableError`` where the engine that ran
        it is gone: one that was started again since knows only that the container does not run.
        """
        self._is_over.wait(self._patience_seconds)
        if not self._is_told and not self._was_killed:
            self._ask_again()
        if self._was_killed:
            raise ModelInterruptedError(
                "it was stopped by the Docker engine, which ends or was told to stop it (docker stop, docker kill);"
                " a retry runs it again"
            )
        if not self._is_told:
            raise EngineUnavailableError("the Docker engine went away while it ran; see that it runs again")

    def close(self) -> None:
        """Listen no longer. May be called twice."""
        with suppress(Exception):  # docker-py takes the response apart; whatever it says, nobody listens any more
            self._events.close()

    def _listen(self) -> None:
        # The stream ends with the engine, with ``close``, or by something on the way; none of these is told by it.
        with suppress(Exception):
            self._hear(self._events)
        self._is_over.set()

    def _ask_again(self) -> None:
        """Ask the engine what it remembers: one that ran on knows of the end, also where our connection was cut."""
        with suppress(DockerException, OSError, ValueError):
            state = self._client.api.inspect_container(self._id)["State"]
            # The engine's clock, which need not agree with ours.
            ended_at = datetime.fromisoformat(state["FinishedAt"]).timestamp()
            events = self._client.api.container_events(self._id, until=math.ceil(ended_at + self._patience_seconds))
            try:
                self._hear(events)
            finally:
                with suppress(Exception):  # as in ``close``
                    events.close()

    def _hear(self, events: Iterable[Mapping[str, Any]]) -> None:
        # An engine that was started again tells of the end of what it finds dead as well, with a code of its own
        # making, or with the one of a model that the engine before had asked to end. It knows of no start.
        is_of_this_engine = False
        for event in events:
            if event["Action"] == "start":
                is_of_this_engine = True
            elif event["Action"] == "kill" and self._is_to_end_it(event):
                self._was_killed = True
            elif event["Action"] == "die":
                self._is_told = is_of_this_engine
                return

    def _is_to_end_it(self, event: Mapping[str, Any]) -> bool:
        # Any signal is told as a kill; a model may well be sent one that it only takes note of.
        number = signal_number(str(event["Actor"]["Attributes"].get("signal", "")))
        return number is None or number in self._ending_signals


def _not_heard(error: APIError) -> EngineMisconfiguredError | EngineUnavailableError:
    reason = explanation(error)
    if error.is_client_error():
        return EngineMisconfiguredError(
            "what the Docker engine tells of containers may not be listened to, so that none that was stopped could be"
            f" told from one that is done: GET /events is refused ({reason}); allow it, in the engine's authorisation"
            " plugin or in a socket proxy (EVENTS=1)"
        )
    return EngineUnavailableError(f"the Docker engine does not tell what becomes of containers: {reason}")
