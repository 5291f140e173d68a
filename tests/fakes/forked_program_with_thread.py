"""The program of ``forked_program.py``, with a thread that begins when it is imported."""

import threading

from tests.fakes.forked_program import main

__all__ = ["main"]

threading.Thread(target=threading.Event().wait, daemon=True).start()
