"""From a conversation to a request: what it asks for is checked, rendered and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.chat import ChatTemplate
from qtool_runtime.checks import check_max_tokens
from qtool_runtime.conversation import encode_conversation
from qtool_runtime.request import AnswerOptions, ChatForm, Request
from qtool_runtime.text import Tokenizer
from qtool_runtime.thinking import CLOSING, check_thinking, close_thinking, is_closed, is_opened
from qtool_runtime.tools import check_tool_choice, check_tools
from qtool_runtime.turns import Shortener


@dataclass(frozen=True)
class ChatRequests:
    """Makes requests for one model.

    Attributes:
        template: the model's chat template.
        tokenizer: its tokenizer.
        context: longest prompt and answer together, in tokens.
        default: its sampling options.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    context: int
    default: Mapping[str, Any]

    def make(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: AnswerOptions,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: str | None,
        enable_thinking: bool | None,
        thinking_budget: int | None,
    ) -> Request:
        """Returns the request for an answer to a conversation; see `Model.chat`.

        Raises:
            ContextLimitError: not even the last turn leaves room for an answer.
            GenerationError: an option, message or tool is invalid.
        """
        check_tools(tools)
        tool_choice = check_tool_choice(tool_choice, tools)
        enable_thinking = check_thinking(thinking_budget, enable_thinking)

        def encode(messages: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], str]:
            tokens, text = encode_conversation(
                self.template, self.tokenizer, messages, tools=tools, enable_thinking=enable_thinking
            )
            if is_opened(text) and thinking_budget == 0:  # the template cannot be told not to think
                return close_thinking(tokens, self.tokenizer), text + CLOSING
            return tokens, text

        prompt, text = encode(messages)
        opened = is_opened(text)
        form = ChatForm(
            opened,
            thinking_budget,
            may_reason=opened or (enable_thinking is not False and not is_closed(text)),
            tools=tools or (),
            tool_choice=tool_choice,
        )
        shortener = None
        if options.get("when_full") == "drop_oldest":
            max_tokens = check_max_tokens(options.get("max_tokens"))
            shortener = Shortener(messages, lambda kept: encode(kept)[0], self.context, max_tokens)
            prompt = shortener.first_prompt()
        return Request.from_options(
            prompt,
            options,
            default=self.default,
            chat=form,
            make_room=shortener.make_room if shortener else None,
        )
