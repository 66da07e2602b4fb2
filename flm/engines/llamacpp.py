"""llama.cpp's `llama-server`, single model or router.

Facts: its sources (b10454 and later) and the recordings in tests/golden/engines. It speaks OpenAI's format, so it
is passed through; what it lacks is a `tool_choice` that names a function: it reads any object as `auto`, so FLM turns
the object into `required` with that one tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from flm.engines import completion_cases, embedding_cases
from flm.engines.base import (
    Answer,
    Identifying,
    Identity,
    Listing,
    Probe,
    Verdict,
)
from flm.engines.capabilities import Act, Rule, Table
from flm.engines.chat_cases import CHAT_CASES, FUNCTIONS_ONLY, LOCAL
from flm.engines.closed import ClosedRoute
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES, NO_DIMENSIONS
from flm.engines.passthrough import PassThrough
from flm.engines.places import dialled, executables
from flm.engines.probing import (
    MAX_MODELS,
    RECOGNISED,
    body_of,
    dismissed,
    foreign,
    listed,
    server,
    shaped,
)
from flm.engines.requests import only_named_tool, without_tools
from flm.snapshot import Model

# 9931 is announced as a later default port (LCP#26508).
DEFAULT_PORTS = (8080, 9931)


class _Health(msgspec.Struct, frozen=True):
    status: str


class _Problem(msgspec.Struct, frozen=True):
    type: str
    message: str = ""


class _Error(msgspec.Struct, frozen=True):
    error: _Problem


class _Generation(msgspec.Struct, frozen=True):
    n_ctx: int | None = None


class _Properties(msgspec.Struct, frozen=True):
    build_info: str
    default_generation_settings: _Generation = _Generation()
    modalities: dict[str, bool] = {}
    chat_template_caps: dict[str, Any] = {}
    is_sleeping: bool = False


class _Meta(msgspec.Struct, frozen=True):
    n_ctx: int | None = None
    n_ctx_train: int | None = None


class _State(msgspec.Struct, frozen=True):
    value: str


class _Architecture(msgspec.Struct, frozen=True):
    input_modalities: list[str] = []


class _Entry(msgspec.Struct, frozen=True):
    id: str
    aliases: list[str] | None = None
    meta: _Meta | None = None
    status: _State | None = None
    architecture: _Architecture | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Entry]


_health = msgspec.json.Decoder(_Health)
_error = msgspec.json.Decoder(_Error)
_properties = msgspec.json.Decoder(_Properties)
_models = msgspec.json.Decoder(_Models)


def _one_logprob(_value: msgspec.Raw, _fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    return {"logprobs": 1}


# tools/server/server.cpp (00dd081). Not closed, since its paths also serve prompts: a router loads the model that a
# request names.
CLOSED: Final = (
    ClosedRoute("/slots/*", "saves, restores or erases what slots hold", "POST"),
    ClosedRoute("/lora-adapters", "changes the LoRA adapters", "POST"),
    ClosedRoute("/props", "changes the server's properties", "POST"),
    ClosedRoute("/models/load", "loads a model"),
    ClosedRoute("/models/unload", "unloads a model"),
    ClosedRoute("/models", "adds a model", "POST"),
    ClosedRoute("/models", "deletes a model", "DELETE"),
    ClosedRoute("/tools", "runs tools on the engine's machine"),
    ClosedRoute("/cors-proxy", "fetches any address in the machine's name"),
    ClosedRoute("/v1/chat/completions/control", "interferes with another request"),
    ClosedRoute("/v1/stream/*", "reads or ends the answer to another request"),
    ClosedRoute("/v1/streams/*", "lists the answers to other requests"),
    ClosedRoute("/predict", "calls any other route of the server, closed ones too"),
)


class LlamaCpp(PassThrough):
    kind = "llamacpp"
    label = "llama.cpp"
    closed_routes = CLOSED
    idle_seconds = 4.0  # cpp-httplib's keep-alive timeout is 5 s
    embeds_unlisted = True  # a router does not say which of its models do
    chat_table = Table(
        CHAT_CASES,
        {
            **LOCAL,
            "tools of another type": FUNCTIONS_ONLY,  # 500 "Unsupported tool type"
            # With the tools still offered it writes the call as text (seen on b10573).
            'tool_choice "none"': (Rule(Act.REWORD, "without the tools", make=without_tools),),
            "tool_choice of one function": (
                Rule(Act.REWORD, 'as `tool_choice` "required" with that one tool', make=only_named_tool),
            ),
        },
    )

    completion_table = Table(
        COMPLETION_CASES,
        {
            **completion_cases.LOCAL,
            "suffix": (Rule(Act.REFUSE, "this engine takes no `suffix` here (it fills in at its own route /infill)"),),
            "echo: true": (Rule(Act.REFUSE, "this engine does not repeat the prompt: `echo` must be false"),),
            "best_of > 1": (Rule(Act.IGNORED),),
            "logprobs: 0": (Rule(Act.REWORD, "as `logprobs` 1, whose alternatives FLM leaves out", make=_one_logprob),),
        },
    )
    embedding_table = Table(EMBEDDING_CASES, {**embedding_cases.LOCAL, "dimensions": NO_DIMENSIONS})

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        """The defaults, and what LLAMA_ARG_HOST, LLAMA_ARG_PORT and LLAMA_ARG_API_PREFIX say in front of them."""
        prefix = environment.get("LLAMA_ARG_API_PREFIX", "").strip().rstrip("/")
        if prefix and not prefix.startswith("/"):
            prefix = "/" + prefix
        ports = [str(port) for port in DEFAULT_PORTS]
        own = environment.get("LLAMA_ARG_PORT", "").strip()
        if own.isascii() and own.isdigit() and len(own) <= 5 and 0 < int(own) < 65_536:
            ports.insert(0, str(int(own)))
        named = [host.strip() for host in environment.get("LLAMA_ARG_HOST", "").split(",")]
        hosts = [host for host in named if host and not host.endswith(".sock")] or ["127.0.0.1"]
        return tuple(
            dict.fromkeys(f"http://{dialled(host.strip('[]'))}:{port}{prefix}" for host in hosts for port in ports)
        )

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        folders = {
            "linux": ("/usr/local/bin", "/usr/bin", "/home/linuxbrew/.linuxbrew/bin", f"{home}/.nix-profile/bin"),
            "darwin": ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin", f"{home}/.nix-profile/bin"),
            "win32": (environment.get("LOCALAPPDATA", "") + "\\Microsoft\\WinGet\\Links",),
        }
        return executables("llama-server", system, environment, folders.get(system, ()))

    def identify(self) -> Identifying:
        """`/health`, then `/props`. The header `Server: llama.cpp` stands on every answer of newer builds."""
        health = yield Probe("/health")
        out = dismissed(health)
        if out is not None:
            return out
        marked = server(health) == b"llama.cpp"
        if health.status in (429, 503):
            return _busy(health, marked)
        if shaped(health, _health) is None:
            return foreign(f"/health answered {health.status}, not the status of a llama-server")
        properties = yield Probe("/props")
        found = shaped(properties, _properties)
        if found is not None and properties.body != health.body:  # not one answer to everything
            return Identity(RECOGNISED, version=found.build_info)
        if marked:  # /props wants the key, is off, or came too late; the mark is enough
            return Identity(RECOGNISED)
        return foreign("/props does not have the shape of a llama-server's")

    def models(self) -> Listing:
        found = listed((yield Probe("/v1/models")), _models, "/v1/models")
        if any(entry.status is not None for entry in found.data):  # a router: each model has a process of its own
            return tuple(_routed(entry) for entry in found.data[:MAX_MODELS])
        properties = shaped((yield Probe("/props")), _properties)
        embeds = None
        if properties is not None and not properties.is_sleeping:  # this one would wake it
            embeds = _embeds((yield Probe("/v1/embeddings", "POST", b"{}")))
        return tuple(_served(entry, properties, embeds) for entry in found.data[:MAX_MODELS])


def _busy(health: Answer, marked: bool) -> Identity:
    """While a model loads every path answers 503 `unavailable_error`."""
    error = body_of(health, _error)
    if error is not None and (marked or error.error.type == "unavailable_error"):
        return Identity(Verdict.BUSY, detail="it is loading its model")
    return foreign(f"/health answered {health.status}, not in the way of a llama-server")


def _embeds(answer: Answer) -> bool | None:
    """Whether a server is there for embeddings, by its answer to a request for none; None if that does not say.

    Nothing it tells of itself does: `capabilities` in its model list is always `completion`. But without `--embeddings`
    every such request is 501, and with it one without an input is 400. Pooling `none` has no route here. All seen on
    the tree in llama-cpp-python 0.3.36.
    """
    error = body_of(answer, _error)
    if answer.status == 400 and error is not None:
        return "Pooling type" not in error.error.message
    return False if answer.status in (404, 501) else None


def _served(entry: _Entry, properties: _Properties | None, embeds: bool | None) -> Model:
    meta = entry.meta or _Meta()
    capabilities: tuple[str, ...] = ()
    if embeds:
        capabilities = ("embedding",)  # `--embeddings` restricts a server to that use, says its own help
    elif embeds is not None and properties is not None:
        seen = tuple(kind for kind in ("vision", "audio", "video") if properties.modalities.get(kind))
        tools = ("tools",) if properties.chat_template_caps.get("supports_tools") else ()
        capabilities = ("completion", *tools, *seen)
    slot = properties.default_generation_settings.n_ctx if properties is not None else None
    # Without `created`: the engine always says "now", and a list that does not change would seem to.
    return Model(
        entry.id,
        context_length=slot or meta.n_ctx,
        trained_context_length=meta.n_ctx_train,
        loaded=properties is None or not properties.is_sleeping,
        capabilities=capabilities,
        other_names=tuple(name for name in entry.aliases or () if name != entry.id),
    )


def _routed(entry: _Entry) -> Model:
    meta = entry.meta or _Meta()
    kinds = entry.architecture.input_modalities if entry.architecture is not None else []
    seen = tuple(name for kind, name in (("image", "vision"), ("audio", "audio"), ("video", "video")) if kind in kinds)
    return Model(
        entry.id,
        context_length=meta.n_ctx,
        trained_context_length=meta.n_ctx_train,
        loaded=entry.status is not None and entry.status.value == "loaded",
        capabilities=("completion", *seen) if kinds else (),
    )


DIALECT = LlamaCpp()
