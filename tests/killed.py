"""A run that dies at a place of the test's choosing, in a process of its own."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from harness.measure import evaluator
from harness.records import write
from harness.runs import session

OWNERS = {"store": write.RunStore, "evaluator": evaluator.Evaluator, "trial": session.Trial}


def killed(place: tuple[str, str, int], run: Callable[[], object]) -> None:
    """Fork, run, and die by SIGKILL right after the n-th call of a method: ("store", "append", 3)."""
    child = os.fork()
    if child == 0:
        try:
            _die_after(*place)
            run()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(1)  # not reached by a run that died as it should
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the run did not die at {place}"


def _die_after(owner: str, name: str, call: int) -> None:
    whole, calls = getattr(OWNERS[owner], name), 0

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = whole(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(OWNERS[owner], name, dies)
