"""Decoding: the policy is sampled at other temperatures, greedily and from its nucleus, and the responses are measured."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from harness.api import Decoding, Probed, Reading, Settings

WAYS = {
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1.3": {"temperature": 1.3},
    "greedy": {"temperature": 0.0},
    "top-p 0.9": {"top_p": 0.9},
}


class DecodeSettings(Settings):
    samples: int = Field(4, ge=2, description="responses per test prompt at each reading")


class Decode:
    """Other decodings than that of the task."""

    version = 1
    Settings = DecodeSettings
    unit = "decoding"
    number = "worst"

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        yield Reading(0, probed.measure(probed.policy, self.settings.samples), "as in training")
        for i, (name, told) in enumerate(WAYS.items(), 1):
            decoding = Decoding(max_new_tokens=probed.task.decoding.max_new_tokens, **told)
            yield Reading(i, probed.measure(probed.policy, self.settings.samples, decoding), name)


class NoPrefixSettings(Settings):
    samples: int = Field(4, ge=2, description="responses per test prompt at each reading")


class NoPrefix:
    """The policy without the control token that it reads before each prompt: what a method left in the weights themselves."""

    version = 1
    Settings = NoPrefixSettings
    unit = "prefix"
    number = "worst"

    def __init__(self, settings: NoPrefixSettings) -> None:
        self.settings = settings

    def run(self, probed: Probed) -> Iterator[Reading]:
        bare = probed.policy.copy()
        yield Reading(0, probed.measure(bare, self.settings.samples), "as deployed")
        if not bare.prefix:
            return
        bare.prefix = ()
        yield Reading(1, probed.measure(bare, self.settings.samples), "without")
