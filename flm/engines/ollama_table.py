"""What Ollama makes of each parameter of a request: its column of docs/parameters.md, and the rules that decide.

What is not named here has no counterpart in the native API and is dropped, which the caller is told.
Does not know how the native request is written (`ollama_request`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from flm.engines import completion_cases
from flm.engines.capabilities import Act, Rule, Table
from flm.engines.chat_cases import CHAT_CASES, COMMON, FUNCTIONS_ONLY, NO_SPEECH
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES, NO_DIMENSIONS
from flm.engines.requests import named_in_tools, without_tools
from flm.errors import ErrorKind

Raw = msgspec.Raw
LOGPROBS_SINCE: Final = (0, 12, 11)
DIMENSIONS_SINCE: Final = (0, 11, 11)
MAX_EFFORT_SINCE: Final = (0, 22, 0)
LEVELS_SINCE: Final = (0, 12, 0)  # before, a level was refused for every model but one family

_MODALITY = ErrorKind.UNSUPPORTED_MODALITIES


def _only_named(choice: Raw, fields: Mapping[str, Raw]) -> dict[str, Any]:
    return {"tools": [named_in_tools(choice, fields)], "tool_choice": msgspec.UNSET}


def _option(name: str) -> tuple[Rule, ...]:
    return (Rule(Act.REWORD, at=f"options.{name}"),)


def _no(what: str) -> tuple[Rule, ...]:
    return (Rule(Act.REFUSE, f"this engine takes no {what} input", kind=_MODALITY),)


_NO_LEVEL = (
    Rule(Act.DROP, lacking="thinking"),
    Rule(Act.CHANGE, "it only knew whether to think", value="true", before=LEVELS_SINCE),
)
_NO_MAX = Rule(Act.CHANGE, value="high", before=MAX_EFFORT_SINCE)
_NO_LOGPROBS = Rule(Act.DROP, before=LOGPROBS_SINCE)
CHAT_TABLE: Final = Table(
    CHAT_CASES,
    {
        **COMMON,
        "temperature": _option("temperature"),
        "top_p": _option("top_p"),
        "max_tokens": (Rule(Act.DROP, beside="max_completion_tokens"), *_option("num_predict")),
        "max_completion_tokens": _option("num_predict"),
        "n > 1": (Rule(Act.CHANGE, value=1),),
        "stop": _option("stop"),
        "seed": _option("seed"),
        "presence_penalty": _option("presence_penalty"),
        "frequency_penalty": _option("frequency_penalty"),
        "logprobs": (_NO_LOGPROBS, Rule(Act.REWORD, at="logprobs")),
        "top_logprobs": (_NO_LOGPROBS, Rule(Act.REWORD, at="top_logprobs")),
        "stream_options": (Rule(Act.REWORD, "FLM writes the usage chunk"),),
        "tools of another type": FUNCTIONS_ONLY,
        "tools with strict: true": (Rule(Act.IGNORED, "a call need not follow its schema", value="strict"),),
        "tools": (Rule(Act.REWORD, at="tools"),),
        "tools: []": (Rule(Act.REWORD, "without tools"),),
        'tool_choice "none"': (Rule(Act.REWORD, "without the tools", make=without_tools),),
        'tool_choice "auto"': (Rule(Act.REWORD, "it knows no other way"),),
        'tool_choice "required"': (Rule(Act.CHANGE, "cannot be enforced", value="auto"),),
        "tool_choice of one function": (
            Rule(Act.CHANGE, "cannot be enforced; only that tool is offered", value="auto", make=_only_named),
        ),
        "response_format text": (Rule(Act.REWORD, "without a format"),),
        "response_format json_object with a schema": (Rule(Act.REWORD, at="format"),),
        "response_format json_object": (Rule(Act.REWORD, at="format"),),
        "response_format json_schema": (Rule(Act.REWORD, at="format"),),
        'reasoning_effort "none"': (
            Rule(Act.REWORD, "nothing is sent", lacking="thinking"),
            Rule(Act.REWORD, at="think"),
        ),
        'reasoning_effort "minimal"': (*_NO_LEVEL, Rule(Act.CHANGE, value="low")),
        'reasoning_effort "xhigh"': (*_NO_LEVEL, _NO_MAX, Rule(Act.CHANGE, value="max")),
        'reasoning_effort "max"': (*_NO_LEVEL, _NO_MAX, Rule(Act.REWORD, at="think")),
        "reasoning_effort": (*_NO_LEVEL, Rule(Act.REWORD, at="think")),
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

COMPLETION_TABLE: Final = Table(
    COMPLETION_CASES,
    {
        **completion_cases.COMMON,
        "prompt of token ids": (Rule(Act.REFUSE, "this engine reads texts only, not token ids"),),
        "prompt of several texts": (
            Rule(Act.REFUSE, "this engine takes one prompt at a time: send a request for each of them"),
        ),
        "prompt": (Rule(Act.REWORD, at="prompt"),),
        "suffix": (
            Rule(Act.REFUSE, "this model cannot fill in between two texts (`suffix`)", lacking="insert"),
            Rule(Act.REWORD, "by the model's template for it", at="suffix"),
        ),
        "temperature": _option("temperature"),
        "top_p": _option("top_p"),
        "max_tokens": _option("num_predict"),
        "n > 1": (Rule(Act.CHANGE, value=1),),
        "best_of > 1": (Rule(Act.CHANGE, value=1),),
        "echo: true": (Rule(Act.REFUSE, "this engine does not repeat the prompt: `echo` must be false"),),
        "logprobs: 0": (_NO_LOGPROBS, Rule(Act.REWORD, at="logprobs")),
        "logprobs": (_NO_LOGPROBS, Rule(Act.REWORD, at="top_logprobs")),
        "stop": _option("stop"),
        "seed": _option("seed"),
        "presence_penalty": _option("presence_penalty"),
        "frequency_penalty": _option("frequency_penalty"),
        "stream_options": (Rule(Act.REWORD, "FLM writes the usage chunk"),),
    },
    otherwise=Act.DROP,
    own=("top_k", "min_p", "repeat_penalty", "num_ctx", "keep_alive"),
)

EMBEDDING_TABLE: Final = Table(
    EMBEDDING_CASES,
    {
        "input of token ids": (Rule(Act.REFUSE, "this engine embeds texts only, not token ids"),),
        "input": (Rule(Act.REWORD, at="input"),),
        'encoding_format "base64"': (Rule(Act.REWORD, "FLM packs the vectors"),),
        "encoding_format": (Rule(Act.REWORD, "it knows no other"),),
        "dimensions": (
            msgspec.structs.replace(NO_DIMENSIONS[0], before=DIMENSIONS_SINCE),
            Rule(Act.REWORD, at="dimensions"),
        ),
    },
    otherwise=Act.DROP,
    own=("truncate", "keep_alive"),
)
