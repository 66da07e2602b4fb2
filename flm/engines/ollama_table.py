"""What Ollama makes of each parameter of a chat request: its row of docs/parameters.md, and the rules that decide.

What is not named here has no counterpart in the native API and is dropped, which the caller is told.
Does not know how the native request is written (`ollama_request`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from flm.engines.capabilities import Act, Rule, Table
from flm.engines.chat_cases import CHAT_CASES, COMMON, NO_SPEECH
from flm.engines.requests import named_in_tools, without_tools
from flm.errors import ErrorKind

Raw = msgspec.Raw
LOGPROBS_SINCE: Final = (0, 12, 11)

_MODALITY = ErrorKind.UNSUPPORTED_MODALITIES


def _only_named(choice: Raw, fields: Mapping[str, Raw]) -> dict[str, Any]:
    return {"tools": [named_in_tools(choice, fields)], "tool_choice": msgspec.UNSET}


def _option(name: str) -> tuple[Rule, ...]:
    return (Rule(Act.REWORD, at=f"options.{name}"),)


def _no(what: str) -> tuple[Rule, ...]:
    return (Rule(Act.REFUSE, f"this engine takes no {what} input", kind=_MODALITY),)


_NO_LOGPROBS = Rule(Act.DROP, before=LOGPROBS_SINCE)
CHAT_TABLE: Final = Table(
    CHAT_CASES,
    {
        **COMMON,
        "temperature": _option("temperature"),
        "top_p": _option("top_p"),
        "max_tokens": _option("num_predict"),
        "max_completion_tokens": _option("num_predict"),
        "n > 1": (Rule(Act.CHANGE, value=1),),
        "stop": _option("stop"),
        "seed": _option("seed"),
        "presence_penalty": _option("presence_penalty"),
        "frequency_penalty": _option("frequency_penalty"),
        "logprobs": (_NO_LOGPROBS, Rule(Act.REWORD, at="logprobs")),
        "top_logprobs": (_NO_LOGPROBS, Rule(Act.REWORD, at="top_logprobs")),
        "stream_options": (Rule(Act.REWORD, "FLM writes the usage chunk"),),
        "tools": (Rule(Act.REWORD, at="tools"),),
        "tools: []": (Rule(Act.REWORD, "without tools"),),
        'tool_choice "none"': (Rule(Act.REWORD, "without the tools", make=without_tools),),
        'tool_choice "auto"': (Rule(Act.REWORD, "it knows no other way"),),
        'tool_choice "required"': (Rule(Act.CHANGE, "cannot be enforced", value="auto"),),
        "tool_choice of one function": (
            Rule(Act.CHANGE, "cannot be enforced; only that tool is offered", value="auto", make=_only_named),
        ),
        "response_format text": (Rule(Act.REWORD, "without a format"),),
        "response_format json_object": (Rule(Act.REWORD, at="format"),),
        "response_format json_schema": (Rule(Act.REWORD, at="format"),),
        'reasoning_effort "none"': (
            Rule(Act.REWORD, "nothing is sent", lacking="thinking"),
            Rule(Act.REWORD, at="think"),
        ),
        "reasoning_effort": (
            Rule(Act.DROP, lacking="thinking"),
            Rule(Act.REWORD, at="think"),
        ),
        "modalities with audio": NO_SPEECH,
        "image parts": (*COMMON["image parts"], Rule(Act.REWORD, at="messages.0.images")),
        "role developer": (Rule(Act.REWORD, "as `system`", at="messages.0.role"),),
        "audio parts": _no("audio"),
        "video parts": _no("video"),
        "file parts": _no("file"),
    },
    otherwise=Act.DROP,
    own=("top_k", "min_p", "repeat_penalty", "num_ctx", "keep_alive"),
)
