"""Prompts as messages to an instruct model: the chat template of its tokenizer around one message of the user."""

from __future__ import annotations

import hashlib
from typing import Any

from harness.api import BadData, BadSetting, refusing

MARK = "MESSAGE"
TODO = "use another model, or leave out task.chat"


class Chat:
    """A chat template: what it puts before and after one message, the beginning of the model's turn included.

    A template may write the date; `identity` changes with whatever it writes.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Render the template once; raises BadSetting if the tokenizer has none, BadData if it is not used as a frame."""
        if getattr(tokenizer, "chat_template", None) is None:
            raise BadSetting(
                "task.chat=true needs a tokenizer with a chat template, and the model's has none; choose an instruct model, "
                "or leave it out"
            )
        self._tokenizer = tokenizer
        parts = self.around(MARK).split(MARK)
        if len(parts) != 2:
            raise BadData(f"the chat template repeats or drops the user's message; {TODO}")
        self.identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self._before, self._after = map(self._read, parts)

    def around(self, text: str) -> str:
        """The text that the model reads for a message; raises BadData if the template fails."""
        message = [{"role": "user", "content": text}]
        with refusing("the chat template fails", TODO):
            found: str = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return found

    def within(self, text: str) -> str:
        """The message in a prompt that was decoded without special tokens."""
        return text.removeprefix(self._before).removesuffix(self._after)

    def _read(self, part: str) -> str:
        ids = self._tokenizer(part, add_special_tokens=False).input_ids
        found: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return found
