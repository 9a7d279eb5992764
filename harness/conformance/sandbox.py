"""Context managers that isolate a check: global random generators, progress bars, the network."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def own_randomness() -> Iterator[None]:
    """Context manager that restores the global random generators afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


@contextmanager
def no_bars() -> Iterator[None]:
    """Context manager that hides the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Context manager that refuses network connections and yields the list of attempts, caught errors included."""
    attempts: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*args: Any, **options: Any) -> Any:
            where = [a for a in args if not isinstance(a, socket.socket)]
            attempts.append(f"{name} {where[0] if where else ''}".strip())
            raise OSError("the conformance kit allows no connection")

        return refused

    places: list[tuple[Any, str]] = [(socket.socket, n) for n in ("connect", "connect_ex", "sendto")]
    places += [(socket, "getaddrinfo")]
    whole = [(owner, name, owner.__dict__.get(name)) for owner, name in places]
    for owner, name in places:
        setattr(owner, name, refuse(name))
    try:
        yield attempts
    finally:
        for owner, name, value in whole:
            if value is None:  # inherited from the C class
                delattr(owner, name)
            else:
                setattr(owner, name, value)
