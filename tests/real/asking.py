"""How the tests put a question with the official client and take the answer apart.

Knows the OpenAI API only: neither FLM nor any engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

HELLO = "Hello from the scripted model."
"""What the plain script answers to anything."""

WEATHER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def messages(script: str | None = None) -> list[ChatCompletionMessageParam]:
    """A question; `script` names the reply that the scripted model shall give instead of its usual one."""
    system: list[ChatCompletionMessageParam] = [{"role": "system", "content": f"script:{script}"}] if script else []
    return [*system, {"role": "user", "content": "Hi"}]


@dataclass(slots=True)
class Streamed:
    """What the chunks of one stream add up to."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    """Index -> [id, name, arguments], joined from the pieces."""
    finish_reasons: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    usages: list[Any] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    created: set[int] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    chunks: int = 0


def _add_choice(streamed: Streamed, choice: Any) -> None:
    delta = choice.delta
    streamed.content += delta.content or ""
    streamed.reasoning += getattr(delta, "reasoning_content", None) or ""
    if delta.role:
        streamed.roles.append(delta.role)
    for call in delta.tool_calls or []:
        joined = streamed.calls.setdefault(call.index, ["", "", ""])
        joined[0] += call.id or ""
        joined[1] += call.function.name or ""
        joined[2] += call.function.arguments or ""
    if choice.finish_reason:
        streamed.finish_reasons.append(choice.finish_reason)


def gather(stream: Iterable[ChatCompletionChunk], streamed: Streamed) -> Streamed:
    """Read a stream to its end into `streamed`; whatever the client raises on the way goes through."""
    for chunk in stream:
        streamed.chunks += 1
        streamed.ids.add(chunk.id)
        streamed.created.add(chunk.created)
        streamed.models.add(chunk.model)
        if chunk.usage:
            assert chunk.choices == []
            streamed.usages.append(chunk.usage)
        for choice in chunk.choices:
            _add_choice(streamed, choice)
    return streamed


def ask_streamed(client: openai.OpenAI, model: str, script: str | None = None, /, **more: Any) -> Streamed:
    """Ask for a stream and read it to its end."""
    with client.chat.completions.create(model=model, messages=messages(script), stream=True, **more) as stream:
        return gather(stream, Streamed())


def ask(client: openai.OpenAI, model: str, script: str | None = None, /, **more: Any) -> Any:
    """Ask for one whole answer."""
    return client.chat.completions.create(model=model, messages=messages(script), **more)
