"""Model lists over real sockets: what an engine says is bounded where it enters, and a key that is missing is named."""

from __future__ import annotations

import json
import logging

import msgspec
import pytest

from flm.engines.base import ListingError, Verdict
from flm.engines.bounds import MAX_LIST_BYTES
from flm.engines.registry import DIALECTS
from flm.snapshot import Engine, Model
from flm.upstream.detect import WANTS_KEY, KeyWantedError, identify, list_models
from flm.upstream.health import HEALTHY, WRONG, Thresholds, advance
from tests.support.engine import ScriptedEngine, Step, answer, serve
from tests.upstream.conftest import Run

ABSURD = 2**64
LONG = "c" * 600_000
LISTS: dict[str, dict[str, object]] = {
    "openai": {"/v1/models": {"data": [{"id": "m", "context_length": ABSURD, "created": ABSURD}, {"id": LONG}]}},
    "vllm": {
        "/v1/models": {"data": [{"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": ABSURD}]},
        "/openapi.json": {"paths": {}},
    },
    "llamacpp": {
        "/v1/models": {"data": [{"id": "m", "aliases": [LONG], "meta": {"n_ctx": ABSURD, "n_ctx_train": ABSURD}}]}
    },
    "ollama": {
        "/api/tags": {
            "models": [{"name": "m", "digest": "a", "details": {"context_length": ABSURD}, "capabilities": [LONG]}]
        },
        "/api/ps": {"models": [{"name": "m", "context_length": ABSURD}]},
    },
    "lmstudio": {
        "/api/v1/models": {
            "models": [{"key": "m", "type": "llm", "loaded_instances": [], "max_context_length": ABSURD}]
        }
    },
}


def engine(answers: dict[str, object]) -> ScriptedEngine:
    said = {path: answer(200, json.dumps(body).encode(), b"server: uvicorn") for path, body in answers.items()}
    return ScriptedEngine([serve(said)])


@pytest.mark.parametrize("kind", LISTS)
def test_absurd_numbers_and_names_of_every_kind_are_left_out(run: Run, kind: str) -> None:
    async def main() -> None:
        async with engine(LISTS[kind]) as absurd:
            (model,) = await list_models(absurd.url, DIALECTS[kind], remark=lambda _: None)
            plain = msgspec.structs.replace(model, loaded=None, any_case=False)
            assert plain == Model("m", capabilities=model.capabilities)
            assert LONG not in model.capabilities
            msgspec.msgpack.encode(Engine("a", kind, absurd.url, HEALTHY, models=(model,)))

    run(main())


def test_every_kind_is_in_the_table() -> None:
    assert LISTS.keys() == DIALECTS.keys()


def test_a_list_is_cut_and_the_log_says_so(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "flm.engines")
    names = [f"{number:0500d}" for number in range(2_500)]

    async def main() -> None:
        async with engine({"/v1/models": {"data": [{"id": name} for name in names]}}) as long:
            models = await list_models(long.url, DIALECTS["openai"], probe_timeout=10)
            assert 0 < len(models) < 2_500
            assert [model.name for model in models] == names[: len(models)]
            assert len(msgspec.msgpack.encode(models)) <= MAX_LIST_BYTES + 8
            (line,) = (each.getMessage() for each in caplog.records)
            assert line == f"{long.url}: {2_500 - len(models)} models left out: the list is longer than 1048576 bytes"

    run(main())


def test_a_version_is_bounded(run: Run) -> None:
    async def main() -> None:
        told = {"/api/version": {"version": "v" * 1_000}, "/api/tags": {"models": []}}
        async with engine(told) as strange:
            seen = await identify(strange.url, DIALECTS["ollama"])
            assert (seen.verdict, seen.version) == (Verdict.RECOGNISED, None)

    run(main())


# --- a key that FLM has not ------------------------------------------------------------------------------------------

REFUSED = answer(401, b'{"error":"Unauthorized"}', b"server: uvicorn")
GUARDED: dict[str, Step] = {
    "vllm": serve({"/version": answer(200, b'{"version":"0.32.0"}'), "/health": answer(200, b"")}, REFUSED),
    "openai": serve({}, REFUSED),
    "lmstudio": serve({"/lmstudio-greeting": answer(200, b'{"lmstudio":true}')}, REFUSED),
}


@pytest.mark.parametrize("kind", GUARDED)
def test_an_engine_that_wants_a_key_and_gets_none_says_how_to_give_it_one(run: Run, kind: str) -> None:
    async def main() -> None:
        async with ScriptedEngine([GUARDED[kind]]) as guarded:
            with pytest.raises(KeyWantedError, match="it wants a key: `flm engines add … --api-key-env NAME`"):
                await list_models(guarded.url, DIALECTS[kind])
            with pytest.raises(ListingError, match="refused FLM's credentials") as refused:
                await list_models(guarded.url, DIALECTS[kind], credential="wrong")
            assert not isinstance(refused.value, KeyWantedError)

    run(main())


@pytest.mark.parametrize(("kind", "status"), [("vllm", HEALTHY), ("openai", WRONG)])
def test_its_check_says_so_too(run: Run, kind: str, status: str) -> None:
    async def main() -> None:
        async with ScriptedEngine([GUARDED[kind]]) as guarded:
            for credential, said in ((None, True), ("wrong", False)):
                seen = await identify(guarded.url, DIALECTS[kind], credential=credential)
                state = advance(None, seen, Thresholds(), 1.0)
                assert (state.status, state.last_error == WANTS_KEY) == (status, said)

    run(main())
