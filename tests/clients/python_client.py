"""The operations of `drivers`, done by the official OpenAI Python client; outcomes are plain JSON.

Knows the API and this client only. The twin of node/run.js: what one returns the other returns too.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import openai
from pydantic import BaseModel


class City(BaseModel):
    """What the structured outputs are."""

    city: str
    visits: float


Asked = dict[str, Any]


def problem(error: openai.APIError) -> dict[str, Any]:
    body = error.body if isinstance(error.body, dict) else {}
    header_id = error.request_id if isinstance(error, openai.APIStatusError) else None
    return {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": error.code,
        "param": error.param,
        "type": error.type,
        "request_id": body.get("request_id") or header_id,
        "header_id": header_id,
        "message": body.get("message", error.message),
    }


def counts(usage: Any) -> list[int] | None:
    return [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens] if usage else None


def parsed(text: str) -> Any:
    """The arguments of a call; the text itself where the model was cut off in the middle of it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def named(logprobs: Any) -> list[list[Any]]:
    return [[token.token, token.logprob] for token in getattr(logprobs, "content", None) or []]


def reply(whole: Any) -> dict[str, Any]:
    choices = []
    for choice in whole.choices:
        message = choice.message
        calls = message.tool_calls or []
        choices.append(
            {
                "content": message.content or "",
                "reasoning": getattr(message, "reasoning_content", None) or "",
                "calls": [[call.function.name, parsed(call.function.arguments)] for call in calls],
                "ids": [call.id for call in calls],
                "finish": choice.finish_reason,
                "tokens": named(choice.logprobs),
            }
        )
    return {"model": whole.model, "usage": counts(whole.usage), "choices": choices}


def streamed() -> dict[str, Any]:
    names = ("finishes", "roles", "usages", "ids", "created", "models", "tokens", "pieces")
    lists: dict[str, Any] = {name: [] for name in names}
    return {"content": "", "reasoning": "", "chunks": 0, **lists}


def add(found: dict[str, Any], chunk: Any) -> None:
    found["chunks"] += 1
    for name, value in (("ids", chunk.id), ("created", chunk.created), ("models", chunk.model)):
        if value not in found[name]:
            found[name].append(value)
    if chunk.usage:
        found["usages"].append(counts(chunk.usage))
    for choice in chunk.choices:
        delta = getattr(choice, "delta", None)
        found["content"] += (delta.content if delta else choice.text) or ""
        found["reasoning"] += getattr(delta, "reasoning_content", None) or ""
        if delta and delta.role:
            found["roles"].append(delta.role)
        if choice.finish_reason:
            found["finishes"].append(choice.finish_reason)
        found["tokens"] += named(choice.logprobs)
        for call in getattr(delta, "tool_calls", None) or []:
            function = call.function
            told = [function.name, function.arguments] if function else [None, None]
            found["pieces"].append([call.index, call.id, *told])


class Running:
    """One operation; `run` blocks its thread, `abort` may come from another."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._found = streamed()

    def abort(self) -> None:
        self._ready.wait()
        assert self._loop is not None
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)

    def run(self) -> dict[str, Any]:
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, Any]:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._operation())
        self._ready.set()
        try:
            return {"ok": await self._task}
        except openai.APIError as error:
            return {"error": problem(error), "before": self._found["content"]}
        except asyncio.CancelledError:
            return {"error": {"class": "APIUserAbortError"}, "before": self._found["content"]}

    async def _operation(self) -> Any:
        asked = self._asked
        http = openai.DefaultAsyncHttpxClient(trust_env=False, verify=False)  # plain HTTP: no authorities to load
        async with openai.AsyncOpenAI(
            base_url=asked["base"],
            api_key=asked["key"],
            max_retries=asked["retries"],
            timeout=asked["timeout"],
            default_headers=asked["headers"],
            http_client=http,
        ) as client:
            return await getattr(self, f"_{asked['op']}")(client, **asked["args"])

    async def _chat(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        return reply(await client.chat.completions.create(**args))

    async def _stream(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        async with await client.chat.completions.create(**args, stream=True) as stream:
            async for chunk in stream:
                add(self._found, chunk)
        return self._found

    async def _gather(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        async with client.chat.completions.stream(**args) as stream:
            return reply(await stream.get_final_completion())

    async def _parse(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        whole = await client.chat.completions.parse(**args, response_format=City)
        parsed = whole.choices[0].message.parsed
        assert parsed is not None
        return parsed.model_dump()

    async def _embed(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        answer = await client.embeddings.create(**args)
        vectors = [item.embedding for item in answer.data]
        return {"model": answer.model, "usage": [answer.usage.prompt_tokens], "vectors": vectors}

    async def _complete(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        whole = await client.completions.create(**args)
        texts = [[choice.text, choice.finish_reason] for choice in whole.choices]
        return {"model": whole.model, "usage": counts(whole.usage), "texts": texts}

    async def _complete_stream(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        async with await client.completions.create(**args, stream=True) as stream:
            async for chunk in stream:
                add(self._found, chunk)
        return self._found

    async def _models(self, client: openai.AsyncOpenAI) -> Any:
        return [model.id async for model in client.models.list()]

    async def _model(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        return (await client.models.retrieve(args["id"])).id

    async def _leave(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        chunks = 0
        stream = await client.chat.completions.create(**args, stream=True)
        async for chunk in stream:
            chunks += len(chunk.choices)
            if chunks >= self._asked["after"]:
                break
        await stream.close()
        return {"chunks": chunks >= self._asked["after"]}

    async def _warned(self, client: openai.AsyncOpenAI, **args: Any) -> Any:
        raw = await client.chat.completions.with_raw_response.create(**args)
        return {"warnings": raw.headers.get("x-flm-warnings"), "request_id": raw.headers.get("x-request-id")}
