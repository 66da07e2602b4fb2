"""What is checked in a request for every engine, and rewordings that several engines need.

Knows the API's own bounds; what only one engine lacks stands in its own file, in its capability table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from flm.engines.call import Call, Endpoint
from flm.errors import ErrorKind, RequestError, shown
from flm.wire.chat import ChatParameters, Tool, decoded, invalid, named_tool, tool_name

Raw = msgspec.Raw

_choice = msgspec.json.Decoder(dict[str, Raw])
_tools = msgspec.json.Decoder(tuple[Raw, ...] | None)
_tool = msgspec.json.Decoder(Tool)


def check_task(call: Call, *, embeds_unlisted: bool) -> None:
    """Raises UNSUPPORTED_PARAMETER (param `model`) for a model that is known to do only the other kind of work.

    `embeds_unlisted`: whether a model may make embeddings that is not known to have the capability.
    """
    known = call.capabilities
    if call.endpoint is Endpoint.EMBEDDINGS:
        if embeds_unlisted or "embedding" in known or "completion" not in known:
            return
        message = f"the model {shown(call.peek.model)} makes no embeddings"
    elif "embedding" in known and "completion" not in known:
        message = f"the model {shown(call.peek.model)} makes embeddings only (POST {Endpoint.EMBEDDINGS.value})"
    else:
        return
    message += "; GET /v1/models lists what each model can do"
    raise RequestError(ErrorKind.UNSUPPORTED_PARAMETER, message, param="model")


def check_chat(parameters: ChatParameters) -> None:
    """Raises INVALID_REQUEST for a `tool_choice` string the API does not have, functions without a name, and
    `top_logprobs` without `logprobs`.
    """
    choice = parameters.tool_choice
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        message = f"`tool_choice` must be none, auto, required or an object, not {shown(choice)}"
        raise invalid(message, "tool_choice")
    for tool in parameters.tools or ():
        tool_name(tool)
    if parameters.top_logprobs and not parameters.logprobs:
        raise invalid("`top_logprobs` is only allowed together with `logprobs: true`", "top_logprobs")


def only_named_tool(choice: Raw, fields: Mapping[str, Raw]) -> dict[str, Any]:
    """A `tool_choice` of one function, for engines that cannot read it: `required`, with that function alone.

    Raises INVALID_REQUEST if it is not among the tools.
    """
    return {"tools": [named_in_tools(choice, fields)], "tool_choice": "required"}


def as_json_schema(wanted: Raw, _fields: Mapping[str, Raw]) -> dict[str, Any]:
    """A `response_format` json_object with a schema, for engines that read a schema only of a json_schema."""
    schema = _choice.decode(wanted)["schema"]
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "object", "schema": schema}}}


def without_tools(_choice: Raw, _fields: Mapping[str, Raw]) -> dict[str, Any]:
    """A `tool_choice` of none, for engines that call a tool all the same once they have seen it."""
    return {"tools": msgspec.UNSET, "tool_choice": msgspec.UNSET}


def named_in_tools(choice: Raw, fields: Mapping[str, Raw]) -> Raw:
    """The tool that a `tool_choice` of one function names. Raises INVALID_REQUEST if it is not among the tools."""
    name = named_tool(_choice.decode(choice))
    tools: tuple[Raw, ...] = decoded(_tools, fields.get("tools", Raw(b"null")), "tools") or ()
    for tool in tools:
        if tool_name(decoded(_tool, tool, "tools")) == name:
            return tool
    raise invalid(f"`tool_choice` names {shown(name)}, which is not among `tools`", "tool_choice")
