"""vLLM's OpenAI server (`vllm serve`), for text and for embeddings.

Facts: vLLM 0.32.0, run and read, older versions by their issues (VLLM#…), and the recordings in tests/golden/engines.
It speaks OpenAI's format, so it is passed through. Its own are: an API key that guards `/v1` but not `/version`;
thoughts under `reasoning` (since VLLM#27752; before, `reasoning_content`), in requests too; finish reasons `abort` and
`error`, which are no answer; and refusals of what the API allows: an empty list of tools, and `stream_options` where
nothing is streamed.

Does not know a model's modalities: no route tells them, so an image goes to the engine, which refuses what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from flm.engines import chat_cases, completion_cases, embedding_cases
from flm.engines.base import Answer, Identifying, Identity, Listing, Probe, UpstreamRequest, Verdict
from flm.engines.call import Call, Endpoint
from flm.engines.capabilities import Act, Rule, Table
from flm.engines.closed import ClosedRoute
from flm.engines.passed import PassedAnswer, PassedStream, Top
from flm.engines.passed_text import PassedText, PassedTextStream
from flm.engines.passthrough import PassThrough
from flm.engines.places import executables
from flm.engines.probing import MAX_MODELS, RECOGNISED, body_of, dismissed, foreign, listed, server, shaped
from flm.engines.requests import as_json_schema
from flm.errors import ErrorKind, RequestError, UpstreamProtocolError
from flm.snapshot import Model
from flm.wire.chat import LETTER_N, MALFORMED, NULL, QUOTE, decoded, first_byte

Raw = msgspec.Raw
Name = Annotated[str, msgspec.Meta(min_length=1)]

DEFAULT_URL: Final = "http://127.0.0.1:8000"
MAX_CHOICES: Final = 128  # the API's own bound of `n`
BREAK_WHEN_CUT: Final = frozenset({"0.2.7", "0.5.2"})
DRAIN_SECONDS: Final = 60.0  # most answers end within it; a longer one that nobody waits for is not worth its place
_OWNER: Final = "vllm"
_WITHOUT_ANSWER: Final = {
    "abort": "vLLM aborted the answer before its end",
    "error": "vLLM failed in the middle of the answer",
}


class _Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other servers have a `/version` too, with more in it."""

    version: Name


class _Entry(msgspec.Struct, frozen=True):
    id: Name
    owned_by: str = ""
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Entry]


class _Refusal(msgspec.Struct, frozen=True):
    error: str


class _Routes(msgspec.Struct, frozen=True):
    paths: dict[str, Raw]


class _Choice(msgspec.Struct, frozen=True, gc=False):
    index: int = 0
    finish_reason: str | None = None


_version = msgspec.json.Decoder(_Version)
_models = msgspec.json.Decoder(_Models)
_refusal = msgspec.json.Decoder(_Refusal)
_routes = msgspec.json.Decoder(_Routes)
_choices = msgspec.json.Decoder(list[_Choice])
_messages = msgspec.json.Decoder(list[dict[str, Raw]])
_encode = msgspec.json.Encoder().encode


# --- what it makes of a request ---------------------------------------------------------------------------------------


def _streamed_options(options: Raw, fields: Mapping[str, Raw]) -> dict[str, Any]:
    """`stream_options` is a 400 without `stream`, even where it asks for nothing."""
    return {"stream_options": options if bytes(fields.get("stream", NULL)) == b"true" else msgspec.UNSET}


def _no_tools(_tools: Raw, fields: Mapping[str, Raw]) -> dict[str, Any]:
    """An empty list is a 400, and so is a `tool_choice` that comes without tools, unless it is `none`."""
    choice = bytes(fields.get("tool_choice", NULL))
    if choice in (b"null", b'"auto"', b'"none"'):
        return {"tools": msgspec.UNSET, "tool_choice": msgspec.UNSET}
    return {"tools": msgspec.UNSET}  # a call is demanded of no tools: let the engine refuse


_STREAM_OPTIONS: Final = (
    Rule(Act.REWORD, "left out of a request that is not streamed", at="stream_options", make=_streamed_options),
)
_NO_FILES: Final = Rule(Act.REFUSE, "vLLM takes no file input", kind=ErrorKind.UNSUPPORTED_MODALITIES)
_PASSED: Final = (Rule(Act.PASS, "the engine refuses what its model lacks"),)


def _with_both_names(messages: Raw) -> Raw:
    """Thoughts of earlier answers under both names: old versions read one, those before VLLM#42664 only the other."""
    if b'"reasoning' not in bytes(messages):
        return messages
    found: list[dict[str, Raw]] = decoded(_messages, messages, "messages")
    changed = False
    for message in found:
        new, old = (message.get(name, NULL) for name in ("reasoning", "reasoning_content"))
        if first_byte(new) == LETTER_N and first_byte(old) == QUOTE:
            message["reasoning"] = old
        elif first_byte(old) == LETTER_N and first_byte(new) == QUOTE:
            message["reasoning_content"] = new
        else:
            continue
        changed = True
    return Raw(_encode(found)) if changed else messages


# --- what it answers --------------------------------------------------------------------------------------------------


def _ended(top: Top) -> list[_Choice]:
    """The choices with their finish reasons. Raises RequestError for a reason that means that there is no answer."""
    try:
        found = _choices.decode(top.choices)  # type: ignore[arg-type]  # an array, as its callers have seen
    except MALFORMED:
        raise UpstreamProtocolError("the engine sent choices that are none") from None
    for choice in found:
        if choice.finish_reason in _WITHOUT_ANSWER:
            raise RequestError(ErrorKind.ENGINE_ERROR, _WITHOUT_ANSWER[choice.finish_reason])
    return found


def _unfinished() -> UpstreamProtocolError:
    return UpstreamProtocolError("the engine ended its answer without saying why")  # seen in the field, VLLM#27572


class _Stream(PassedStream):
    """A streamed answer whose choices must all have ended when the stream does."""

    _running: dict[int, bool] | None = None

    def _mended(self, data: bytes, top: Top, *, unasked: bool) -> dict[str, Raw] | None:
        running = self._running = {} if self._running is None else self._running
        for choice in _ended(top):
            if choice.index in running or len(running) < MAX_CHOICES:
                running[choice.index] = running.get(choice.index, True) and choice.finish_reason is None
        return super()._mended(data, top, unasked=unasked)

    def _last(self) -> bytes:
        if not self._running or any(self._running.values()):
            raise _unfinished()
        return super()._last()


class _TextStream(_Stream, PassedTextStream):
    """A streamed text completion, of which the same holds."""


class _Whole(PassedAnswer):
    """A whole answer, in which every choice has its reason."""

    def _mended(self, body: bytes, top: Top) -> dict[str, Raw] | None:
        fields = super()._mended(body, top)
        if any(choice.finish_reason is None for choice in _ended(top)):
            raise _unfinished()
        return fields


class _Text(_Whole, PassedText):
    """A whole text completion, of which the same holds."""


# The api_router.py files of vllm/entrypoints in 0.32.0. Those of its development mode (serve/dev) and of rl/online are
# guarded by no key of the engine's own.
CLOSED: Final = (
    ClosedRoute("/collective_rpc", "runs any method of the engine's workers"),
    ClosedRoute("/v1/load_lora_adapter", "loads a LoRA adapter"),
    ClosedRoute("/v1/unload_lora_adapter", "unloads a LoRA adapter"),
    ClosedRoute("/sleep", "unloads the model"),
    ClosedRoute("/wake_up", "loads the model"),
    ClosedRoute("/release_kv_cache_memory", "empties a cache"),
    ClosedRoute("/pause", "stops every answer"),
    ClosedRoute("/resume", "resumes after a pause"),
    ClosedRoute("/abort_requests", "ends other requests"),
    ClosedRoute("/reset_prefix_cache", "empties a cache"),
    ClosedRoute("/reset_mm_cache", "empties a cache"),
    ClosedRoute("/reset_encoder_cache", "empties a cache"),
    ClosedRoute("/init_weight_transfer_engine", "changes the model's weights"),
    ClosedRoute("/start_weight_update", "changes the model's weights"),
    ClosedRoute("/start_draft_weight_update", "changes the model's weights"),
    ClosedRoute("/update_weights", "changes the model's weights"),
    ClosedRoute("/finish_weight_update", "changes the model's weights"),
    ClosedRoute("/update_weight_version", "changes the model's weights"),
    ClosedRoute("/shutdown_weight_transfer_engine", "changes the model's weights"),
    ClosedRoute("/weight_checker", "may overwrite the model's weights"),
    ClosedRoute("/start_profile", "starts the profiler"),
    ClosedRoute("/stop_profile", "stops the profiler"),
    ClosedRoute("/scale_elastic_ep", "changes the number of workers"),
    ClosedRoute("/fault_tolerance/apply", "pauses or restarts workers"),
    ClosedRoute("/server_info", "shows the whole configuration and environment"),
)


class VLLM(PassThrough):
    kind = "vllm"
    label = "vLLM"
    idle_seconds = 4.0  # uvicorn closes after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE, VLLM#18472)
    closed_routes = CLOSED
    stream_type = _Stream
    answer_type = _Whole
    text_stream_type = _TextStream
    text_type = _Text
    chat_table = Table(
        chat_cases.CHAT_CASES,
        {
            **chat_cases.LOCAL,
            "response_format structural_tag": (Rule(Act.PASS),),
            "stream_options": _STREAM_OPTIONS,
            "response_format json_object with a schema": (Rule(Act.REWORD, "as `json_schema`", make=as_json_schema),),
            "tools: []": (Rule(Act.REWORD, "without tools", make=_no_tools),),
            "image parts": _PASSED,
            "audio parts": _PASSED,
            "video parts": _PASSED,
            "file parts": (_NO_FILES,),
        },
    )
    completion_table = Table(
        completion_cases.COMPLETION_CASES,
        {**completion_cases.LOCAL, "best_of > 1": (Rule(Act.IGNORED),), "stream_options": _STREAM_OPTIONS},
    )
    embedding_table = Table(embedding_cases.EMBEDDING_CASES, embedding_cases.LOCAL)

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        """The default alone: host and port are flags, and VLLM_PORT and VLLM_HOST_IP belong to other traffic."""
        return (DEFAULT_URL,)

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        """The console script that pip, pipx or uv put into an environment's folder of programs."""
        slash, programs = ("\\", "Scripts") if system == "win32" else ("/", "bin")
        named = [environment.get(name, "").rstrip(slash) for name in ("VIRTUAL_ENV", "CONDA_PREFIX")]
        folders = [f"{prefix}{slash}{programs}" for prefix in named if prefix]
        if home:
            user = home.rstrip(slash)
            folders += [f"{user}{slash}.local{slash}bin", f"{user}{slash}.venv{slash}{programs}"]
            folders += [f"{user}{slash}vllm{slash}.venv{slash}{programs}"]
        if system != "win32":
            folders += ["/usr/local/bin", "/usr/bin"]
        return executables("vllm", system, environment, folders)

    def drain_seconds(self, version: str | None) -> float:
        """For versions whose server ends for everybody when one request is aborted.

        0.2.7: VLLM#2475, mended by VLLM#2463. 0.5.2: VLLM#6586, with pipeline parallelism, which is not to be seen from
        outside.
        """
        return DRAIN_SECONDS if version in BREAK_WHEN_CUT else 0.0

    def identify(self) -> Identifying:
        """`/version` needs no key; who owns the models tells vLLM from other servers that have one, `/health` lives."""
        told = yield Probe("/version")
        out = dismissed(told)
        if out is not None:
            return out
        if told.status == 503 and _scaling(told):
            return Identity(Verdict.BUSY, detail="it is scaling and serves nobody meanwhile")
        found = shaped(told, _version)
        if found is None:
            return foreign(f"/version answered {told.status}, not with the version of a vLLM")
        owner = yield Probe("/v1/models")
        if not _owned(owner):
            return foreign(f"/v1/models answered {owner.status}, not with the models of a vLLM")
        health = yield Probe("/health")
        if health.status == 503:
            return Identity(Verdict.BUSY, found.version, "its engine is dead or not ready (/health answered 503)")
        return Identity(RECOGNISED, version=found.version)

    def models(self) -> Listing:
        found = listed((yield Probe("/v1/models")), _models, "/v1/models")
        routes = shaped((yield Probe("/openapi.json")), _routes)
        capabilities = _capabilities(routes) if routes is not None else ()
        lengths = {entry.id: entry.max_model_len for entry in found.data}
        return tuple(
            Model(
                entry.id,
                context_length=entry.max_model_len or lengths.get(entry.parent or ""),
                loaded=True,
                capabilities=capabilities,
            )
            for entry in found.data[:MAX_MODELS]
        )

    def _request(self, call: Call, fields: Mapping[str, Any]) -> UpstreamRequest:
        if call.endpoint is Endpoint.CHAT:
            fields = {**fields, "messages": _with_both_names(fields["messages"])}
        return super()._request(call, fields)


def _owned(answer: Answer) -> bool:
    """Whether a model list is vLLM's own, or its guard refuses to give it: both are said as no other server does."""
    found = shaped(answer, _models)
    if found is not None:
        return bool(found.data) and all(entry.owned_by == _OWNER for entry in found.data)
    refusal = body_of(answer, _refusal)
    guarded = answer.status == 401 and refusal is not None and refusal.error == "Unauthorized"
    return guarded and server(answer) == b"uvicorn"


def _scaling(answer: Answer) -> bool:
    refusal = body_of(answer, _refusal)
    return server(answer) == b"uvicorn" and refusal is not None and "model is currently scaling" in refusal.error


def _capabilities(routes: _Routes) -> tuple[str, ...]:
    """One process serves one task, and has the routes of that task only."""
    tasks = (("completion", Endpoint.CHAT), ("completion", Endpoint.COMPLETIONS), ("embedding", Endpoint.EMBEDDINGS))
    return tuple(dict.fromkeys(name for name, endpoint in tasks if endpoint.value in routes.paths))


DIALECT = VLLM()
