"""What is put right in the choices of an answer in OpenAI's own format, whichever engine wrote them.

Two deviations are common. Thoughts come as `reasoning` (vLLM since VLLM#27752, LM Studio) or as `reasoning_content`
(llama.cpp, vLLM before); clients of FLM find them under `reasoning_content`, whatever engine stands behind it. And a
delta may hold several pieces of one tool call (vLLM 0.32 sends name and arguments so): the official clients take the
list of the first delta as it is and would see two calls, so such pieces become one.

Does not know which engine spoke. What is not one of these two stays as it came, raw.
"""

from __future__ import annotations

from typing import Any

import msgspec

from flm.wire.chat import LETTER_N, MALFORMED, NULL, QUOTE, first_byte

Raw = msgspec.Raw

_Fields = dict[str, Raw]

_encode = msgspec.json.Encoder().encode
_choices = msgspec.json.Decoder(list[dict[str, Raw]])
_fields = msgspec.json.Decoder(dict[str, Raw])
_pieces = msgspec.json.Decoder(list[dict[str, Raw]])
_text = msgspec.json.Decoder(str)
_EMPTY = Raw(b'""')


def deviates(data: bytes) -> bool:
    """Whether the choices in `data` may hold something to put right; false costs nothing more.

    A quote inside a JSON string has a backslash before it, so these bytes are keys wherever they stand.
    """
    return b'"tool_calls":' in data or b'"reasoning":' in data


def mended(choices: Raw) -> Raw | None:
    """The array of choices, put right; None where it can stay as it is, or is no array of choices."""
    try:
        found = _choices.decode(choices)
        changes = [_mend(choice) for choice in found]
    except (*MALFORMED, KeyError):
        return None
    return Raw(_encode(found)) if any(changes) else None


def _mend(choice: _Fields) -> bool:
    for name in ("delta", "message"):
        if name in choice and first_byte(choice[name]) != LETTER_N:
            said = _fields.decode(choice[name])
            again = _with_one_name(said)
            if name == "delta" and "tool_calls" in again:
                again = {**again, "tool_calls": _joined(again["tool_calls"])}
            if again != said:
                choice[name] = Raw(_encode(again))
                return True
    return False


def _with_one_name(said: _Fields) -> _Fields:
    """Thoughts under `reasoning_content`, once."""
    if first_byte(said.get("reasoning", NULL)) != QUOTE:
        return said
    if first_byte(said.get("reasoning_content", NULL)) == QUOTE:
        return {name: value for name, value in said.items() if name != "reasoning"}
    kept = {name: value for name, value in said.items() if name != "reasoning_content"}
    return {"reasoning_content" if name == "reasoning" else name: value for name, value in kept.items()}


def _joined(calls: Raw) -> Raw:
    """The pieces of tool calls in one delta: one for each call, the first piece of a call with its `arguments`."""
    if first_byte(calls) == LETTER_N:
        return calls
    pieces = _pieces.decode(calls)
    by_index: dict[bytes, dict[str, Any]] = {}
    changed = False
    for piece in pieces:
        function = _fields.decode(piece.get("function", Raw(b"{}")))
        known = by_index.get(bytes(piece["index"]))
        if known is None:
            if "name" in function and "arguments" not in function:
                function["arguments"] = _EMPTY
                changed = True
            by_index[bytes(piece["index"])] = {**piece, "function": function}
            continue
        changed = True
        more = {name: value for name, value in function.items() if name != "arguments"}
        text = _argument(known["function"]) + _argument(function)
        known["function"] = {**known["function"], **more, "arguments": text}
        known.update({name: value for name, value in piece.items() if name not in known})
    return Raw(_encode(list(by_index.values()))) if changed else calls


def _argument(function: dict[str, Any]) -> str:
    value = function.get("arguments", _EMPTY)
    if isinstance(value, str):
        return value
    return "" if first_byte(value) == LETTER_N else _text.decode(value)
