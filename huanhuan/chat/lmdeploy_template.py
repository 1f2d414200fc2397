"""The project's chat template for LMDeploy, registered under its name in the process that imports this.

LMDeploy's own template class, given the same fields, writes an empty system message before a conversation that
has none, which no record was trained with, and passes control tokens on that a client sends in a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmdeploy.model import MODELS, BaseChatTemplate, ChatTemplateConfig, get_text

from huanhuan.template import END, Message, render_prompt

NAME = "huanhuan"
ROLES = ("system", "user", "assistant")


@MODELS.register_module(name=NAME, force=True)
class HuanhuanTemplate(BaseChatTemplate):
    """Writes what :func:`huanhuan.template.render_prompt` does."""

    def __init__(self, **fields: Any) -> None:
        """``fields``: what a ``ChatTemplateConfig`` holds; the template is fixed and takes none of them."""
        super().__init__(stop_words=[END])

    def get_prompt(self, prompt: str, sequence_start: bool = True) -> str:
        """The prompt of one text of a user; the line end before it closes an earlier reply."""
        return ("" if sequence_start else "\n") + render_prompt([{"role": "user", "content": prompt}])

    def messages2prompt(
        self, messages: str | Sequence[dict[str, Any]], sequence_start: bool = True, **settings: Any
    ) -> str:
        """The prompt of a conversation.

        Raises: ValueError for a role that the template does not have; a client writes it into the prompt else.
        """
        if isinstance(messages, str):
            return self.get_prompt(messages, sequence_start)
        told: list[Message] = []
        for each in messages:
            if each["role"] not in ROLES:
                raise ValueError(f"role {each['role']!r}: must be one of {', '.join(ROLES)}")
            told.append({"role": each["role"], "content": get_text(each["content"])})
        return ("" if sequence_start else "\n") + render_prompt(told)


def chat_template_config() -> ChatTemplateConfig:
    """What LMDeploy's pipeline and server are given as their chat template."""
    return ChatTemplateConfig(model_name=NAME)
