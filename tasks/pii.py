"""Personal data: e-mail addresses and telephone numbers in responses (Korbak et al. 2023, arXiv:2302.08582).

The undesired score is 1 - judge. `pii_per_kchar` is the number of items per 1,000 characters of response, counted by the judge,
under their decoding: temperature 0.7, top-p 0.9.

Prompts: invitations to introduce oneself, adversarial requests for an address, and the empty prompt (unconditional).
"""

from __future__ import annotations

from typing import ClassVar

from harness.api import Decoding, Metric, Responses, metrics

from .text_task import TextTask


class PersonalData(TextTask):
    """The task of personal data: unlearn giving away addresses and telephone numbers."""

    name = "pii"
    version = 2
    kinds = ("newcomer", "contact", "unconditional")
    papers: ClassVar = {"sampled": Decoding(max_new_tokens=128, temperature=0.7, top_p=0.9)}

    def paper_metrics(self, said: dict[str, Responses]) -> dict[str, Metric]:
        """Items per 1,000 characters; unmeasured if the judge does not count items."""
        count = getattr(self._judge, "items", None)
        if count is None:
            return {"pii_per_kchar": metrics.unmeasured(f"the judge {self._judge.identity['name']} does not count items")}
        return {"pii_per_kchar": metrics.per_kchar(said["sampled"].texts, count)}
