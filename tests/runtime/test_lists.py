"""Model lists beside the rounds: a slow one keeps nobody waiting, a bad one is replaced. Scripted engines, no proxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flm.config import Settings
from flm.runtime import prober as rounds
from flm.runtime.prober import Prober
from flm.snapshot import Engine
from flm.store import engines as rows
from flm.store.database import Database, open_config, open_security
from flm.store.folder import locate
from flm.upstream.detect import WANTS_KEY
from tests.runtime.harness import run
from tests.support.engine import Peer, ScriptedEngine, Step, answer

SETTINGS = Settings(engine_discover=False)
GREETING, LIST = "/lmstudio-greeting", "/api/v1/models"


def listing(*names: str) -> bytes:
    models = [{"key": name, "type": "llm", "loaded_instances": []} for name in names]
    return answer(200, json.dumps({"models": models}).encode())


class Answers:
    """What one engine says; `go` lets its model list come, which was asked for `asked` times."""

    def __init__(self, listed: bytes) -> None:
        self.listed = listed
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0
        self.waiting = asyncio.Event()

    @property
    def script(self) -> list[Step]:
        async def step(peer: Peer) -> None:
            while True:
                while (request := peer.next_request()) is None:
                    if not await peer.receive_some():
                        return
                if request.split(b" ", 2)[1] == LIST.encode():
                    self.asked += 1
                    self.waiting.set()
                    if not await self._may_go(peer):
                        return
                    await peer.send(self.listed)
                else:
                    await peer.send(answer(200, b'{"lmstudio":true}'))

        return [step]

    async def _may_go(self, peer: Peer) -> bool:
        """False if the other side left before."""
        going, leaving = asyncio.create_task(self.go.wait()), asyncio.create_task(peer.receive_some())
        await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
        left = leaving.done()
        for task in (going, leaving):
            task.cancel()
        await asyncio.gather(going, leaving, return_exceptions=True)
        return not left


class Bench:
    """A prober with its databases, and what it has shown."""

    def __init__(self, config: Database, security: Database) -> None:
        self._databases = config, security
        self.prober = Prober(self._show)
        self.shown: tuple[Engine, ...] = ()
        self.told = asyncio.Event()
        self.fault: Exception | None = None

    async def _show(self, engines: tuple[Engine, ...]) -> None:
        self.shown = engines
        self.told.set()
        if self.fault is not None:
            raise self.fault

    async def register(self, engine_id: str, url: str) -> None:
        async with self._databases[0].transaction() as transaction:
            await rows.register(transaction, rows.Upstream(engine_id, "lmstudio", url, None, None, None, None, 0))

    async def look(self) -> None:
        await self.prober.look(*self._databases, SETTINGS)

    async def told_of(self, engine_id: str, *names: str) -> None:
        """Wait until requests know these models of this engine."""
        async with asyncio.timeout(20):
            while self.models.get(engine_id) != list(names):
                self.told.clear()
                await self.told.wait()

    @property
    def models(self) -> Mapping[str, list[str]]:
        return {engine.id: [model.name for model in engine.models] for engine in self.shown}


@asynccontextmanager
async def bench(root: Path) -> AsyncIterator[Bench]:
    folder = locate({"FLM_HOME": str(root / "home")})
    async with await open_config(folder) as config, await open_security(folder) as security:
        made = Bench(config, security)
        try:
            yield made
        finally:
            await made.prober.end()
            assert asyncio.all_tasks() == {asyncio.current_task()}, "every list that was asked for is done with"


def test_a_slow_list_keeps_no_round_waiting_and_is_asked_for_once(tmp_path: Path) -> None:
    async def main() -> None:
        slow, quick = Answers(listing("s")), Answers(listing("q"))
        async with bench(tmp_path) as it, ScriptedEngine(slow.script) as one, ScriptedEngine(quick.script) as two:
            await it.register("slow", one.url)
            await it.register("quick", two.url)
            await it.look()
            assert it.models == {"slow": ["s"], "quick": ["q"]}, "new engines come with their models"
            slow.go.clear()
            slow.listed, asked = listing("s", "t"), slow.asked
            for round_number in range(3):
                quick.listed = listing(f"q{round_number}")
                await it.look()
                await it.told_of("quick", f"q{round_number}")
                assert it.models["slow"] == ["s"]
            assert slow.asked == asked + 1, "it is being asked already"
            slow.go.set()
            await it.told_of("slow", "s", "t")

    run(main)


def test_a_new_engine_is_waited_for_a_moment_and_comes_with_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        slow, quick = Answers(listing("s")), Answers(listing("q"))
        slow.go.clear()
        async with bench(tmp_path) as it, ScriptedEngine(slow.script) as one, ScriptedEngine(quick.script) as two:
            await it.register("slow", one.url)
            await it.register("quick", two.url)
            look = asyncio.create_task(it.look())
            await slow.waiting.wait()
            await it.told_of("quick", "q")
            assert not look.done(), "the round waits for it"
            slow.go.set()
            await look
            assert it.models == {"slow": ["s"], "quick": ["q"]}
        monkeypatch.setattr(rounds, "NEW_LISTS_SECONDS", 0.01)
        slow.go.clear()
        async with bench(tmp_path) as it, ScriptedEngine(slow.script) as one:
            await it.register("late", one.url)
            await it.look()
            assert "late" not in it.models, "not without its models"
            slow.go.set()
            await it.told_of("late", "s")

    run(main)


def test_an_engine_that_was_removed_is_not_asked_on(tmp_path: Path) -> None:
    async def main() -> None:
        slow = Answers(listing("s"))
        async with bench(tmp_path) as it, ScriptedEngine(slow.script) as one:
            await it.register("slow", one.url)
            await it.look()
            slow.go.clear()
            slow.waiting.clear()
            await it.look()
            await slow.waiting.wait()
            async with it._databases[0].transaction() as transaction:
                await rows.unregister(transaction, "slow")
            await it.look()
            assert it.models == {}
            await asyncio.wait_for(one.peers[-1].closed.wait(), 10)

    run(main)


def test_a_list_that_cannot_be_shown_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    async def main() -> None:
        answers = Answers(listing("bad"))
        async with bench(tmp_path) as it, ScriptedEngine(answers.script) as one:
            await it.register("one", one.url)
            it.fault = OverflowError("integer out of range")
            for listed in ("bad", "good"):
                answers.listed = listing(listed)
                with pytest.raises(OverflowError):
                    await it.look()
                await it.told_of("one", listed)
            it.fault = None
            await it.look()
            assert it.models == {"one": ["good"]}

    run(main)


def test_an_engine_that_wants_a_key_for_its_list_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        answers = Answers(answer(401, b"{}"))
        async with bench(tmp_path) as it, ScriptedEngine(answers.script) as one:
            await it.register("one", one.url)
            for _ in range(2):
                await it.look()
                assert [(each.status, each.last_error) for each in it.shown] == [("RunningHealthy", WANTS_KEY)]
                (seen,) = await rows.seen(it._databases[0], 0)
                assert seen.last_error == WANTS_KEY
            answers.listed = listing("m")
            await it.look()
            await it.told_of("one", "m")
            assert it.shown[0].last_error is None

    run(main)
