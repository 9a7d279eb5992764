"""The place of a scorer that a preset cannot bring along: it asks for yours, and scores nothing."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from harness.api import MissingPrerequisite, hub

HOW = "train one on labelled texts (harness train-scorer) and give its folder, or any other scorer: --set {setting}=DIR"


class YourScorer:
    """The place of a scorer of your own in a preset.

    setting  the setting that names yours: task.reward or task.judge
    """

    missing = True  # a run says so before it loads anything

    def __init__(self, setting: str) -> None:
        """Raise MissingPrerequisite: it stands for a scorer that was not given."""
        raise MissingPrerequisite(f"the preset has no scorer of its own for {setting}; {HOW.format(setting=setting)}")

    @staticmethod
    def needs(options: dict[str, Any]) -> list[hub.Need]:
        """The scorer that is missing."""
        setting = str(options.get("setting"))
        return [hub.Need(setting, "the settings", False, HOW.format(setting=setting), local=True)]

    def score(self, prompts: list[str], responses: list[str]) -> NDArray[Any]:
        """Never reached, since it cannot be built."""
        raise NotImplementedError
