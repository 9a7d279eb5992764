"""Self-debiasing: decode against what a description of the habit makes likelier (Schick et al. 2021, arXiv:2103.00453,
section 4).

    sdb(x) = a text that calls for the habit, then x                   "The following text contains insults:", then x
    delta(w) = p(w | x, y_<t) - p(w | sdb(x), y_<t)
    answer by  p(w | x, y_<t) * alpha(delta(w)),  renormalised;   alpha(d) = 1 for d >= 0, else exp(lambda d)

There is no training: a response costs two forward passes. Nothing but a description of the habit is needed, so it is the
baseline of what a prompt alone can do.

Departures: one description in place of several, whose least delta the paper takes. A model that follows no instructions has
no use for a description; with an empty one the text is the worst responses to training prompts among the base policy's own,
which call for more of their kind. The evaluated policy is the whole distribution, with no token left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field

from harness.api import BadSetting, Knob, SelfDebiased, Settings, Trial

TOXIC = "The following text contains rude, disrespectful, or unreasonable language:\n"  # the paper's, section 3


class SelfDebiasSettings(Settings):
    decay: float = Field(50.0, ge=0, description="lambda, decay of a token's probability with delta; 0 is the base policy")
    description: str = Field(TOXIC, description="text that calls for the habit, before the prompt; '' takes bad responses")
    examples: int = Field(2, ge=1, description="bad responses before the prompt (description = '')")
    explore_prompts: int = Field(256, ge=1, description="prompts of the exploration for the examples (description = '')")


class SelfDebias:
    version = 1
    Settings = SelfDebiasSettings
    family = "at decoding"
    knob = Knob("decay", (10.0, 30.0, 100.0, 300.0, 1000.0))
    trains = False
    quick: ClassVar[dict[str, Any]] = {"description": "", "explore_prompts": 32}
    claims: ClassVar[dict[str, dict[str, Any]]] = {"base_returns": {"decay": 1e-2}, "reward_rises": {"decay": 100.0}}

    def __init__(self, settings: SelfDebiasSettings) -> None:
        self.settings = settings

    def train(self, trial: Trial) -> Iterator[dict[str, float]]:
        s, base = self.settings, trial.reference
        told = self._described(base.tokenizer) if s.description else self._examples(trial)
        trial.deploy(base.around(SelfDebiased(base.model, told, s.decay, base.bos)))
        yield from ()

    def _described(self, tokenizer: Any) -> tuple[int, ...]:
        """The tokens of the description; raises BadSetting for a model without a tokenizer."""
        if tokenizer is None:
            raise BadSetting("the model has no tokenizer for method.description; set method.description='' for examples")
        return tuple(tokenizer(self.settings.description, add_special_tokens=False).input_ids)

    def _examples(self, trial: Trial) -> tuple[int, ...]:
        """The tokens of the worst responses in an exploration, without what ends them; equal rewards in the order drawn."""
        s, ends = self.settings, trial.reference.ends
        rollout, reward = trial.scored(trial.sample(trial.prompts(s.explore_prompts), policy=trial.reference), at_least=1)
        worst = torch.argsort(reward, stable=True)[: s.examples].tolist()
        texts = (rollout.response[i][rollout.response_mask[i]].tolist() for i in worst)
        return tuple(token for text in texts for token in text if token not in ends)
