from __future__ import annotations

import contextvars
import threading

import pytest

from flows_engine.halting import is_halted, threads_halted_on_error


def test_a_thread_with_the_context_of_a_run_sees_that_it_was_left_by_an_error() -> None:
    seen: list[bool] = []
    go = threading.Event()

    def work() -> None:
        go.wait()
        seen.append(is_halted())

    def run() -> None:
        with threads_halted_on_error():
            thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
            threads.append(thread)
            thread.start()
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    go.set()
    threads[0].join()
    assert seen == [True]
    assert not is_halted()


def test_a_run_that_ends_well_halts_nobody() -> None:
    with threads_halted_on_error():
        context = contextvars.copy_context()
    assert context.run(is_halted) is False


def test_whoever_works_for_no_run_is_never_halted() -> None:
    assert not is_halted()
