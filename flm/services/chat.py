"""`ChatService`: one question to a model, through the running proxy like any client, the answer as it comes.

Strategy: whoever may read the data folder gets a short-lived key from the control socket; else `FLM_API_KEY`. The
connection is closed at once when the caller stops reading, which stops the engine.

Knows OpenAI's chat format; knows no engine and no terminal.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from flm.config import MAX_ANSWER_BYTES, domains, resolve
from flm.engines.base import UpstreamRequest
from flm.errors import CommandCode, CommandError, ErrorKind, RequestError
from flm.runtime.handle import Access
from flm.services.proxy import ProxyService
from flm.store.folder import Folder
from flm.upstream.pool import Pool, Response, Timeouts
from flm.wire.framing import Event, EventReader

CONNECT_SECONDS: Final = 5.0
HEALTH_SECONDS: Final = 10.0  # a proxy that serves answers /health in a millisecond, however long its engines take
ANSWER_SECONDS: Final = 86_400.0  # the proxy has its own timeouts, which say more
_JSON: Final = ((b"content-type", b"application/json"),)
_ENDPOINT: Final = "/v1/chat/completions"

# What the proxy's error codes mean to a person at the command line.
_CODES: Final[Mapping[str, CommandCode]] = {
    "invalid_api_key": CommandCode.KEY_NOT_FOUND,
    "invalid_model": CommandCode.ENGINE_NOT_FOUND,
    "model_not_found": CommandCode.ENGINE_NOT_FOUND,
    "engine_not_found": CommandCode.ENGINE_NOT_FOUND,
    "engine_timeout": CommandCode.ENGINE_TIMEOUT,
    "engine_unavailable": CommandCode.ENGINE_NETWORK_ERROR,
    "engine_error": CommandCode.ENGINE_NETWORK_ERROR,
    "overloaded": CommandCode.ENGINE_NETWORK_ERROR,
}

_MODELS: Final = "; `flm models list` shows what there is"
_HINTS: Final[Mapping[str, str]] = {
    "invalid_model": _MODELS,
    "model_not_found": _MODELS,
    "engine_not_found": _MODELS,
    "ip_not_allowed": "; this machine's own address is not in the ip_whitelist of `flm security policy show`",
}


class ChatAnswer(msgspec.Struct, frozen=True):
    """A whole answer. `usage` counts tokens, None if the engine does not."""

    model: str
    content: str
    finish_reason: str | None
    usage: dict[str, Any] | None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message = msgspec.field(default_factory=_Message)
    delta: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    message: str
    code: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    error: _Error | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_answer = msgspec.json.Decoder(_Answer)
_models = msgspec.json.Decoder(_Models)


class ChatService:
    """Asks through the proxy of one data folder."""

    def __init__(self, folder: Folder, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._environment = environment

    async def ask(self, prompt: str, model: str | None = None) -> ChatAnswer:
        """The whole answer of `model`, or of the only model there is. Raises as `stream`."""
        async with self._connection() as pool:
            chosen = model or await _only_model(pool)
            async with _exchange(pool, _question(chosen, prompt, stream=False)) as response:
                found = _decoded(await _whole(response))
        first = found.choices[0] if found.choices else _Choice()
        return ChatAnswer(chosen, first.message.content or "", first.finish_reason, found.usage)

    async def stream(self, prompt: str, model: str | None = None) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece as it comes. Closing the iterator stops the engine.

        Raises PROXY_NOT_RUNNING (it hangs, too), KEY_NOT_FOUND, or what was wrong with the request or the engine:
        ENGINE_NOT_FOUND, ENGINE_NETWORK_ERROR, ENGINE_TIMEOUT, ENGINE_API_ERROR; USAGE if there is a choice of models.
        """
        async with self._connection() as pool:
            chosen = model or await _only_model(pool)
            async with _exchange(pool, _question(chosen, prompt, stream=True)) as response:
                async for piece in _pieces(response):
                    yield piece

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Pool]:
        access = await self._access()
        await _must_answer(access)
        timeouts = Timeouts(CONNECT_SECONDS, ANSWER_SECONDS, ANSWER_SECONDS, 0)
        try:
            pool = _pool(access, access.key, timeouts)
        except ValueError:
            raise CommandError(CommandCode.KEY_NOT_FOUND, "FLM_API_KEY does not hold a key") from None
        try:
            yield pool
        finally:
            await pool.close(running=True)

    async def _access(self) -> Access:
        """Raises PROXY_NOT_RUNNING, KEY_NOT_FOUND."""
        proxy = ProxyService(self._folder)
        try:
            handles = await proxy.status()
            if handles:
                return await proxy.access()
        except (CommandError, PermissionError):
            if "FLM_API_KEY" not in self._environment:
                raise
        key = self._environment.get("FLM_API_KEY")
        if key is None:
            raise CommandError(
                CommandCode.PROXY_NOT_RUNNING,
                f"no proxy runs in {self._folder.root}; start one with `flm proxy start` (for another user's proxy on "
                "this machine, put a key of it into the environment variable FLM_API_KEY)",
            )
        settings = resolve({}, self._environment).settings
        if settings.proxy_mode == "local-http":
            return Access(f"http://127.0.0.1:{settings.proxy_port}", key)
        host = (*domains(settings), "localhost")[0]
        return Access(f"https://{host}:{settings.proxy_https_port}", key)


def _question(model: str, prompt: str, *, stream: bool) -> UpstreamRequest:
    """Raises USAGE for text that holds bytes which are no UTF-8."""
    question = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream}
    try:
        return UpstreamRequest(_ENDPOINT, msgspec.json.encode(question), "POST", _JSON)
    except UnicodeEncodeError:
        message = "the prompt or the model's name is no valid text in UTF-8; convert it first (iconv does)"
        raise CommandError(CommandCode.USAGE, message) from None


@asynccontextmanager
async def _exchange(pool: Pool, request: UpstreamRequest) -> AsyncIterator[Response]:
    """One answer with status 200; leaving early closes its connection. Raises CommandError for any other."""
    try:
        response = await pool.send(request)
        try:
            if response.status != 200:
                _decoded(await _whole(response))
                raise CommandError(CommandCode.ENGINE_API_ERROR, f"{pool.origin} answered {response.status}")
            yield response
            response.release()
        finally:
            response.abort()
    except RequestError as error:
        if error.kind in (ErrorKind.ENGINE_UNAVAILABLE, ErrorKind.ENGINE_TIMEOUT):
            raise CommandError(
                CommandCode.PROXY_NOT_RUNNING, f"no proxy answers at {pool.origin}; start it with `flm proxy start`"
            ) from None
        raise CommandError(
            CommandCode.PROXY_NOT_RUNNING,
            f"the proxy at {pool.origin} broke off: it ended, or "
            "something else listens there; `flm proxy status` says whether it runs",
        ) from None


def _pool(access: Access, key: str | None, timeouts: Timeouts) -> Pool:
    return Pool(
        access.url,
        credential=key,
        ca=access.ca,
        server_name=access.server_name,
        idle_seconds=5.0,
        timeouts=timeouts,
        max_in_flight=0,
    )


async def _must_answer(access: Access) -> None:
    """Raises PROXY_NOT_RUNNING where a proxy listens and says nothing: an answer would be waited for without end."""
    timeouts = Timeouts(CONNECT_SECONDS, HEALTH_SECONDS, HEALTH_SECONDS, HEALTH_SECONDS)
    pool = _pool(access, None, timeouts)
    try:
        (await pool.send(UpstreamRequest("/health", b"", "GET", ()))).abort()
    except RequestError as error:
        if error.kind is ErrorKind.ENGINE_TIMEOUT:
            raise CommandError(
                CommandCode.PROXY_NOT_RUNNING,
                f"{access.url} is listened to, and nothing was answered within {HEALTH_SECONDS:g} s; "
                "`flm proxy restart` starts a proxy anew that hangs, and its log says more",
            ) from None
    finally:
        await pool.close(running=True)


async def _only_model(pool: Pool) -> str:
    async with _exchange(pool, UpstreamRequest("/v1/models", b"", "GET", ())) as response:
        body = await _whole(response)
    try:
        names = [model.id for model in _models.decode(body).data]
    except msgspec.MsgspecError:
        raise CommandError(CommandCode.ENGINE_API_ERROR, f"{pool.origin} gave no model list; is it FLM?") from None
    if len(names) == 1:
        return names[0]
    if not names:
        raise CommandError(
            CommandCode.ENGINE_NOT_FOUND,
            "no engine serves a model at the moment; `flm engines detect --fresh` looks for "
            "engines and says what is wrong with them, `flm engines demo` starts one to try",
        )
    shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    raise CommandError(CommandCode.USAGE, f"there are {len(names)} models; choose one with --model: {shown}")


async def _whole(response: Response) -> bytes:
    body = bytearray()
    while piece := await response.read():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise CommandError(CommandCode.ENGINE_API_ERROR, f"the answer has over {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


async def _pieces(response: Response) -> AsyncIterator[str]:
    reader = EventReader()
    while data := await response.read():
        for event in reader.feed(data):
            if not isinstance(event, Event):
                continue
            if bytes(event.data).strip() == b"[DONE]":
                return
            for choice in _decoded(bytes(event.data)).choices:
                if choice.delta.content:
                    yield choice.delta.content
    raise CommandError(CommandCode.ENGINE_NETWORK_ERROR, "the answer ended before it was complete")


def _decoded(body: bytes) -> _Answer:
    """A JSON answer or event. Raises the error that it is, if it is one."""
    try:
        found = _answer.decode(body)
    except msgspec.MsgspecError:
        raise CommandError(CommandCode.ENGINE_API_ERROR, "what came is no chat answer; is it FLM?") from None
    if found.error is not None:
        code = _CODES.get(found.error.code or "", CommandCode.ENGINE_API_ERROR)
        message = found.error.message.partition("; GET /v1/models")[0]  # a route is of no use at a command line
        raise CommandError(code, message + _HINTS.get(found.error.code or "", ""))
    return found
