"""One turn of a conversation, before any dialect: the request's text, what is said to it, tool calls, counts.

Pure. Reads OpenAI and native messages alike, because both are `role` and `content`; it knows no field of an answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from flm.demo import script
from flm.demo.directives import Directives, find

FLOOD_PIECE = "flood " * 10923  # 65,538 characters: large against any buffer, small against any limit of a line
MEBIBYTE = 1 << 20


class Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class Message(msgspec.Struct):
    role: str = ""
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text or "" for part in self.content)
        return self.content or ""


class Function(msgspec.Struct):
    name: str = ""
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    function: Function = msgspec.field(default_factory=Function)


class Call(msgspec.Struct, frozen=True):
    """A tool call; `arguments` is the decoded object, dialects write it their own way."""

    name: str
    arguments: dict[str, Any]


class Asked(msgspec.Struct, kw_only=True):
    """What a chat request asks for, whatever dialect it came in. `think` None: the model's own habit."""

    model: str
    messages: Sequence[Message]
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    tools: Sequence[Tool] = ()
    tool: str | None = None  # the one tool that must be called
    schema: dict[str, Any] | None = None  # the reply must be JSON of this shape; {} is any object
    think: bool | None = None


class Turn(msgspec.Struct):
    """What is said. `pieces` may be endless; then `completion_tokens` means nothing."""

    model: str
    thinking: tuple[str, ...]
    pieces: Iterable[str]
    calls: tuple[Call, ...]
    finish: str
    prompt_tokens: int
    completion_tokens: int
    directives: Directives

    def text(self) -> str:
        return "".join(self.pieces)


def directives_of(model: str, messages: Sequence[Message]) -> Directives:
    """From the model's name, else from the first system message. Raises DirectiveError."""
    return find([model, next((message.text for message in messages if message.role in ("system", "developer")), None)])


def prompt_of(messages: Sequence[Message]) -> str:
    """The text that is answered: the last message of the user or of a tool."""
    return next((message.text for message in reversed(messages) if message.role in ("user", "tool")), "")


def turn(asked: Asked, preset: Directives | None = None) -> Turn:
    """Decide what to say. `preset`: directives set from outside, which win. Raises DirectiveError."""
    directives = preset or directives_of(asked.model, asked.messages)
    prompt = prompt_of(asked.messages)
    counted = script.prompt_tokens([message.text for message in asked.messages])
    thinking = script.reasoning(asked.model, prompt, directives.think or (3 if asked.think else 0))
    calls = _calls(asked, prompt, directives)
    if calls:
        return Turn(asked.model, thinking, (), calls, directives.finish or "tool_calls", counted, 2, directives)
    reply = _reply(asked, prompt, directives)
    pieces = _unbounded(reply.pieces, directives)
    spoken = len(reply.pieces) + len(thinking)
    return Turn(asked.model, thinking, pieces, (), directives.finish or reply.finish, counted, spoken, directives)


def _reply(asked: Asked, prompt: str, directives: Directives) -> script.Reply:
    if asked.schema is not None:
        value = script.example(asked.schema, prompt) if asked.schema else {"answer": prompt}
        return script.Reply((msgspec.json.encode(value).decode(),), "stop")
    return script.reply(asked.model, prompt, asked.max_tokens, count=directives.words, stop=asked.stop)


def _calls(asked: Asked, prompt: str, directives: Directives) -> tuple[Call, ...]:
    """The tool calls: of the tool that was named, else of the first. After a tool's result the model talks again."""
    if not asked.tools or (asked.messages and asked.messages[-1].role == "tool"):
        return ()
    functions = [tool.function for tool in asked.tools]
    function = next((one for one in functions if one.name == asked.tool), functions[0])
    arguments = script.example({"type": "object", **(function.parameters or {})}, prompt)
    return tuple(Call(function.name, arguments) for _ in range(directives.calls))


def _unbounded(pieces: tuple[str, ...], directives: Directives) -> Iterable[str]:
    if directives.endless:
        return itertools.chain(pieces, itertools.cycle([" on", " and"]))
    if directives.flood:
        return itertools.chain(pieces, _flood(directives.flood))
    return pieces


def _flood(mebibytes: int) -> Iterator[str]:
    return itertools.repeat(FLOOD_PIECE, mebibytes * MEBIBYTE // len(FLOOD_PIECE) + 1)


def oversized(directives: Directives) -> Iterator[bytes] | None:
    """The body of an unstreamed answer that is asked to be huge or endless: one JSON string that goes on and on."""
    if not (directives.endless or directives.flood):
        return None
    block = b"x" * 65536
    padding = itertools.repeat(block) if directives.endless else itertools.repeat(block, directives.flood * 16)
    return itertools.chain([b'{"padding":"'], padding, [b'"}'])
