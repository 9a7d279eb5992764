"""Ctrl-C outside a run's own care: while things load, and while a command comes to its end."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import Interrupted


class Interrupts:
    """Whether Ctrl-C was pressed, whatever the code that it came upon made of it, and what to do about another."""

    asked = False

    def meaning(self, error: BaseException) -> BaseException:
        """The error as it is to be told: an Interrupted after Ctrl-C, as code that it breaks into may fail in any way."""
        if not self.asked and not isinstance(error, (Interrupted, KeyboardInterrupt)):
            return error
        self.deafen()
        if isinstance(error, Interrupted):
            return error
        return Interrupted("interrupted; what was finished is kept, and the same command does the rest")

    def deafen(self) -> None:
        """From now on the command only ends: another Ctrl-C would cut its one line short, and change its exit code."""
        signal.signal(signal.SIGINT, lambda *_: None)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def raised(self, number: int, frame: Any) -> None:
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[Interrupts]:
    """Take note of Ctrl-C inside, which is a KeyboardInterrupt there as it always is."""
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    old = signal.signal(signal.SIGINT, found.raised)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, old)
