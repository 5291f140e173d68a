"""How a container came to its end: by itself, or because something outside stopped it.

An engine that is told to end asks its containers to end first. A model that does as it is asked may exit with any code,
0 among them, and would pass for one that failed, or even for one that is done.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flows_engine.errors import EngineUnavailableError, ModelInterruptedError

if TYPE_CHECKING:
    import docker

# The engine tells of an end at about the moment at which it tells the exit code.
_PATIENCE_SECONDS: Final = 10.0


class ContainerEnd:
    """Listens, on a connection of its own, to what an engine says of one container. For before the container starts."""

    def __init__(self, client: docker.DockerClient, name: str) -> None:
        self._events = client.api.events(decode=True, filters={"container": name, "event": ["kill", "die"]})
        self._was_killed = False
        self._is_told = False
        self._is_over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def confirm(self) -> None:
        """Return if the container, which has ended, did so by itself.

        Raises ``ModelInterruptedError`` where it was stopped, and ``EngineUnavailableError`` where the engine that ran
        it is gone: one that was started again since knows only that the container does not run.
        """
        if not self._is_over.wait(_PATIENCE_SECONDS):
            return
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
        # The stream ends with the engine, or with ``close``; neither is told by it.
        with suppress(Exception):
            for event in self._events:
                if event.get("Action") == "kill":
                    self._was_killed = True
                elif event.get("Action") == "die":
                    self._is_told = True
                    break
        self._is_over.set()
