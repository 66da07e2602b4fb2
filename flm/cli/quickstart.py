"""`make run`: from nothing to a streamed answer, in words for a person.

Finds the engines, falls back on the demo engine where there is none, starts the proxy if it does not run, shows one
streamed answer through it, and ends with four lines: the endpoint, a key, a line to try, how to stop it.

Knows services only. The key of an earlier run cannot be shown again, so each run makes one and revokes the one that
the run before had made; no other key is touched.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from contextlib import aclosing

from flm.errors import CommandError
from flm.services import (
    ChatService,
    DemoService,
    EngineService,
    ProxyService,
    SecurityService,
    locate_folder,
)
from flm.services.engines import Engine, Model
from flm.services.proxy import Handle

LABEL = "make run"
PROMPT = "Say hello in one sentence."
DEMO_ID = "demo"
_DIM, _BOLD, _PLAIN = ("\033[2m", "\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str) -> None:
    print(text, flush=True)


async def find_models() -> tuple[Model, ...]:
    """The models to choose from; starts the demo engine where no engine serves one."""
    service = EngineService(locate_folder())
    say("looking for engines …")
    engines = await service.detect_engines(fresh=True)
    for engine in engines:
        say(f"  {engine.id}: {engine.status} at {engine.url}{_reason(engine)}")
    models = await service.models()
    if models:
        return models
    say(
        "  no engine that serves a model was found on this machine, so the built-in demo engine is used: it only\n"
        "  plays one, with fixed answers. Start an engine of your own, then run this again."
    )
    await DemoService(locate_folder()).start()
    return await service.models(DEMO_ID)


def _reason(engine: Engine) -> str:
    return f" ({engine.last_error})" if engine.last_error else ""


async def ensure_proxy() -> tuple[Handle, str]:
    """The running proxy, started if need be, and a key that works."""
    proxy, security = ProxyService(locate_folder()), SecurityService(locate_folder())
    running = await proxy.status()
    if running:
        say(f"the proxy is running already (pid {running[0].pid})")
        return running[0], await _new_key(security)
    say("starting the proxy …")
    started = await proxy.start()
    return started, started.key or await _new_key(security)


async def _new_key(security: SecurityService) -> str:
    old = [key.id for key in await security.list_keys() if key.label == LABEL and key.revoked_at is None]
    for key_id in old:
        await security.revoke_key(key_id)
    return (await security.create_key(LABEL)).key


def chosen(models: tuple[Model, ...]) -> str:
    """A model that can chat; a loaded one first, so that the answer comes at once; the demo engine last."""
    chatting = [model for model in models if not model.capabilities or "completion" in model.capabilities]
    ranked = sorted(chatting or models, key=lambda model: (model.engine_id == DEMO_ID, not model.loaded))
    return ranked[0].id


async def show_answer(model: str) -> None:
    say(f"\n{_DIM}{model} is asked: {PROMPT}{_PLAIN}")
    async with aclosing(ChatService(locate_folder()).stream(PROMPT, model)) as pieces:
        async for piece in pieces:
            sys.stdout.write("".join(char if char.isprintable() or char in "\n\t" else "�" for char in piece))
            sys.stdout.flush()
    say("\n")


def _flm() -> str:
    """How the command is called from here."""
    local = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "flm"))
    return local if os.path.exists(local) else "flm"


async def run() -> None:
    models = await find_models()
    handle, key = await ensure_proxy()
    model = chosen(models)
    try:
        await show_answer(model)
    except CommandError as error:
        say(f"\nthe engine gave no answer: {error.message}\n")
    base = handle.endpoints.localhost or handle.endpoints.local_network or handle.endpoints.external
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
    say(f"{_BOLD}endpoint{_PLAIN}  {base}/v1")
    say(f"{_BOLD}key{_PLAIN}       {key}")
    say(
        f"{_BOLD}try{_PLAIN}       curl -N {base}/v1/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    say(f"{_BOLD}stop{_PLAIN}      {_flm()} proxy stop")


def main() -> int:
    try:
        asyncio.run(run())
    except CommandError as error:
        print(f"{error.code.value}: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
