"""Ollama, by its native API: how it is found, what it lists, and which translation a request takes.

Facts: its sources (0.33.0 and tags back to 0.1) and the recordings in tests/golden/engines (0.11.4, 0.24.0, 0.34.4).
The native API is used because Ollama's own OpenAI layer loses errors, tool choices and several parameters. Models that
run on Ollama's cloud are not listed: FLM serves what runs here.

Does not know the formats of requests and answers (see `ollama_request`, `ollama_answer` and `ollama_generate`), nor
where it may be installed or listen (see `ollama_places`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Generator, Mapping
from typing import Final

import msgspec

from flm.engines import ollama_places, ollama_request
from flm.engines.base import Answer, DialectDefaults, Identifying, Identity, Listing, Probe, Translation, Verdict
from flm.engines.call import Call, Endpoint
from flm.engines.capabilities import older
from flm.engines.closed import ClosedRoute
from flm.engines.ollama_answer import ChatAnswer, ChatStream, EmbeddingAnswer
from flm.engines.ollama_generate import TextAnswer, TextStream, generate
from flm.engines.ollama_table import CHAT_TABLE, COMPLETION_TABLE, EMBEDDING_TABLE
from flm.engines.probing import MAX_MODELS, RECOGNISED, body_of, dismissed, foreign, listed, server, shaped
from flm.engines.requests import check_task
from flm.snapshot import Model

MAX_SHOWN: Final = 64  # models asked about one by one, on versions whose list does not say enough
DEFAULT_TAG: Final = ":latest"
UNKNOWN_VERSION: Final = "0.0.0"  # what self-built ones say
ONLY_EMBEDDERS_EMBED_SINCE: Final = (0, 30, 0)  # before, every model made embeddings, whatever its capabilities


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Error(msgspec.Struct, frozen=True):
    error: str


class _Details(msgspec.Struct, frozen=True):
    context_length: int | None = None


class _Tag(msgspec.Struct, frozen=True):
    name: str
    digest: str
    modified_at: str = ""
    details: _Details | None = None
    capabilities: list[str] | None = None
    remote_model: str | None = None
    remote_host: str | None = None


class _Tags(msgspec.Struct, frozen=True):
    models: list[_Tag] | None


class _Loaded(msgspec.Struct, frozen=True):
    name: str
    context_length: int | None = None


class _Running(msgspec.Struct, frozen=True):
    models: list[_Loaded] | None


class _Shown(msgspec.Struct, frozen=True):
    capabilities: list[str] | None = None
    model_info: dict[str, msgspec.Raw] | None = None
    parameters: str | None = None


_version = msgspec.json.Decoder(_Version)
_error = msgspec.json.Decoder(_Error)
_tags = msgspec.json.Decoder(_Tags)
_running = msgspec.json.Decoder(_Running)
_shown = msgspec.json.Decoder(_Shown)
_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,9})\s*$", re.MULTILINE)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


# server/routes.go of 0.33.0-rc2, compared with the routes in the program of 0.34.4. Not closed, since their paths also
# serve prompts: a request's own `keep_alive`, which loads and unloads its model, and models that run on Ollama's cloud.
CLOSED: Final = (
    ClosedRoute("/api/pull", "downloads a model"),
    ClosedRoute("/api/push", "uploads a model"),
    ClosedRoute("/api/create", "creates a model"),
    ClosedRoute("/api/copy", "copies a model"),
    ClosedRoute("/api/delete", "deletes a model"),
    ClosedRoute("/api/blobs/*", "uploads the files of a model"),
    ClosedRoute("/api/me", "shows the machine's account at ollama.com"),
    ClosedRoute("/api/signin", "changes the machine's account at ollama.com"),
    ClosedRoute("/api/signout", "changes the machine's account at ollama.com"),
    ClosedRoute("/api/user/*", "changes the machine's account at ollama.com"),
    ClosedRoute("/api/experimental/*", "searches and fetches from the web in the machine's name"),
)


class Ollama(DialectDefaults):
    kind = "ollama"
    label = "Ollama"
    closed_routes = CLOSED
    chat_table = CHAT_TABLE
    completion_table = COMPLETION_TABLE
    embedding_table = EMBEDDING_TABLE
    idle_seconds = 60.0  # seen alive beyond that; the server has no idle timeout of its own

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        return ollama_places.addresses(environment, files)

    def settings(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return ollama_places.settings(system, environment, home)

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return ollama_places.binaries(system, environment, home)

    def identify(self) -> Identifying:
        """`/api/version`, which others have too, then `/` or the model list, which only Ollama has like this."""
        answer = yield Probe("/api/version")
        out = dismissed(answer)
        if out is not None:
            return out
        if answer.status in (429, 503) and body_of(answer, _error) is not None:
            return Identity(Verdict.BUSY, detail=f"/api/version answered {answer.status}")
        found = shaped(answer, _version)
        if found is None or server(answer) == b"llama.cpp":
            return foreign(f"/api/version answered {answer.status} without a version")
        root = yield Probe("/")
        if root.status == 200 and root.body.startswith(b"Ollama is running"):
            return Identity(RECOGNISED, version=found.version)
        tags = yield Probe("/api/tags")
        if shaped(tags, _tags) is not None and tags.body != answer.body:  # not one answer to everything
            return Identity(RECOGNISED, version=found.version)
        return foreign("it has a version but no model list like Ollama's")

    def models(self) -> Listing:
        tags = listed((yield Probe("/api/tags")), _tags, "/api/tags").models or []
        running = shaped((yield Probe("/api/ps")), _running)
        loaded = None if running is None else {entry.name: entry for entry in running.models or []}
        local = [tag for tag in tags if not is_cloud(tag.name, tag.remote_model, tag.remote_host)][:MAX_MODELS]
        shown = yield from _show([tag.name for tag in local if not _says_enough(tag)])
        # By name: models of the same second come in another order each time, and the list would seem to have changed.
        return tuple(_model(tag, shown.get(tag.name), loaded) for tag in sorted(local, key=lambda tag: tag.name))

    def begin(self, call: Call) -> Translation:
        version = call.engine_version
        check_task(
            call, embeds_unlisted=version in (None, UNKNOWN_VERSION) or older(version, ONLY_EMBEDDERS_EMBED_SINCE)
        )
        if call.endpoint is Endpoint.EMBEDDINGS:
            request, changes, wanted = ollama_request.embed(call)
            return EmbeddingAnswer(request, changes, call, wanted)
        if call.endpoint is Endpoint.COMPLETIONS:
            request, changes, top = generate(call)
            return (TextStream if call.peek.stream else TextAnswer)(request, changes, call, top)
        request, changes = ollama_request.chat(call)
        if call.peek.stream:
            return ChatStream(request, changes, call)
        return ChatAnswer(request, changes, call)


def _says_enough(tag: _Tag) -> bool:
    return tag.capabilities is not None and tag.details is not None and tag.details.context_length is not None


def _show(names: list[str]) -> Generator[Probe, Answer, dict[str, _Shown]]:
    """What `/api/show` says about each model; asking ends when it is not answered in time."""
    found = {}
    for name in names[:MAX_SHOWN]:
        answer = yield Probe("/api/show", "POST", msgspec.json.encode({"model": name}))
        if answer.status == 0:
            break
        shown = shaped(answer, _shown)
        if shown is not None:
            found[name] = shown
    return found


def _model(tag: _Tag, shown: _Shown | None, loaded: Mapping[str, _Loaded] | None) -> Model:
    running = loaded.get(tag.name) if loaded is not None else None
    trained = tag.details.context_length if tag.details is not None else None
    capabilities = tag.capabilities
    asked_for = None
    if shown is not None:
        capabilities = capabilities if capabilities is not None else shown.capabilities
        trained = trained or _trained(shown)
        match = _NUM_CTX.search(shown.parameters or "")
        asked_for = int(match[1]) if match else None
    return Model(
        tag.name,
        # The window in force is known while the model is loaded; before, only if its Modelfile sets it.
        context_length=(running.context_length if running is not None else None) or asked_for,
        trained_context_length=trained,
        loaded=None if loaded is None else running is not None,
        capabilities=tuple(capabilities or ()),
        created=_seconds(tag.modified_at),
        other_names=(tag.name.removesuffix(DEFAULT_TAG),) if tag.name.endswith(DEFAULT_TAG) else (),
        any_case=True,  # seen on 0.11.4 and 0.34.4, for names and tags
    )


def _trained(shown: _Shown) -> int | None:
    """`<architecture>.context_length` of the flat GGUF keys."""
    info = shown.model_info or {}
    try:
        architecture = msgspec.json.decode(info["general.architecture"], type=str)
        return msgspec.json.decode(info[f"{architecture}.context_length"], type=int)
    except (KeyError, msgspec.DecodeError):
        return None


def _seconds(time: str) -> int:
    """An RFC 3339 time as Unix seconds; 0 if it is none."""
    match = _TIME.fullmatch(time)
    if match is None:
        return 0
    try:
        return max(0, int(datetime.datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp()))
    except ValueError:
        return 0


def is_cloud(name: str, remote_model: str | None = None, remote_host: str | None = None) -> bool:
    """Whether a model runs on Ollama's cloud: its tag is `cloud` or ends in `-cloud`, or it names a remote host."""
    tag = name.rpartition(":")[2] if ":" in name else ""
    return bool(remote_model or remote_host) or tag == "cloud" or name.endswith("-cloud")


DIALECT = Ollama()
