"""What a key is made with, and keys that take another's place."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import pytest

from flm._native import generate_key
from flm.errors import CommandCode, CommandError
from flm.services import security
from flm.services.engines import EngineService
from flm.services.grants import LONGEST_PATTERN, MOST_PATTERNS, open_nothing
from flm.services.security import CreatedKey, Key, RotatedKey, SecurityService
from flm.snapshot import Engine, Model
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.store.keys import StoredKey, all_keys
from tests.support.demo import demo_engine

NOW = 1_800_000_000.5  # 2027-01-15T08:00:00Z
DAY = 86_400


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(folder: Folder, clock: Clock) -> SecurityService:
    return SecurityService(folder, clock)


def create(service: SecurityService, label: str = "k", **more: Any) -> CreatedKey:
    return asyncio.run(service.create_key(label, **more))


def rotate(service: SecurityService, name: str, grace: str | None = None) -> RotatedKey:
    return asyncio.run(service.rotate_key(name, grace=grace))


def listed(service: SecurityService) -> dict[str, Key]:
    return {key.id: key for key in asyncio.run(service.list_keys())}


def stored(folder: Folder) -> list[StoredKey]:
    async def main() -> list[StoredKey]:
        async with await open_security(folder) as database:
            return await all_keys(database)

    return asyncio.run(main())


def refusal(service: SecurityService, label: str = "k", **more: Any) -> str:
    with pytest.raises(CommandError) as refused:
        create(service, label, **more)
    assert refused.value.code is CommandCode.USAGE
    assert len(refused.value.message) < 400
    return refused.value.message


class TestMaking:
    def test_without_a_word_it_never_ends_and_may_do_all_that_clients_do(self, service: SecurityService) -> None:
        made = create(service)
        assert (made.scopes, made.models, made.engines) == (("inference", "passthrough"), (), ())
        assert (made.expires_at, made.last_used_at, made.replaced_by) == (None, None, None)

    def test_all_that_can_be_said_is_stored_and_listed(self, service: SecurityService, folder: Folder) -> None:
        said = {"scopes": ["models", "chat", "chat"], "models": ["llama*", "flm://e/a b"], "engines": ["e", "f-1"]}
        made = create(service, expires="30d", **said)
        shown = listed(service)[made.id]
        for key in (made, shown):
            assert key.scopes == ("models", "chat")
            assert key.models == ("llama*", "flm://e/a b")
            assert key.engines == ("e", "f-1")
            assert key.expires_at == "2027-02-14T08:00:00Z"
        (row,) = stored(folder)
        assert (row.expires_at, row.models, row.engines) == (int(NOW) + 30 * DAY, made.models, made.engines)

    def test_a_key_for_some_models_does_not_pass_through(self, service: SecurityService) -> None:
        assert create(service, models=["a*"]).scopes == ("inference",)
        assert create(service, engines=["e"]).scopes == ("inference", "passthrough")
        assert "does not read which model" in refusal(service, models=["a*"], scopes=["chat", "passthrough"])

    @pytest.mark.parametrize("scope", ["", "Chat", "chat ", "admin", "*", "inference,chat", "x" * 10_000])
    def test_scopes_that_there_are_not(self, service: SecurityService, scope: str) -> None:
        assert "embeddings, passthrough, metrics, timing" in refusal(service, scopes=["chat", scope])

    @pytest.mark.parametrize("pattern", ["", " a", "a ", "a\nb", "\x1b[1m", "a" * (LONGEST_PATTERN + 1)])
    def test_patterns_that_cannot_be(self, service: SecurityService, folder: Folder, pattern: str) -> None:
        refusal(service, models=["a", pattern])
        assert not folder.root.exists()

    @pytest.mark.parametrize("engine", ["", "a,b", "a b", "flm://e", "e*", "\n", "e" * 129])
    def test_engines_that_cannot_be(self, service: SecurityService, engine: str) -> None:
        refusal(service, engines=[engine])

    def test_as_many_patterns_as_a_request_can_be_held_against(self, service: SecurityService) -> None:
        patterns = [f"m{number}" for number in range(MOST_PATTERNS)]
        assert len(create(service, models=patterns).models) == MOST_PATTERNS
        assert str(MOST_PATTERNS) in refusal(service, models=[*patterns, "more"])

    @pytest.mark.parametrize("expires", ["", "0s", "yesterday", "2020-01-01T00:00:00Z"])
    def test_an_end_that_is_none(self, service: SecurityService, expires: str) -> None:
        assert "the expiry must be" in refusal(service, expires=expires)

    def test_a_label_that_holds_a_key_is_refused_and_not_repeated(self, service: SecurityService) -> None:
        key, _ = generate_key()
        for label in (key, key[:64], f"mine: {key[:30]}"):
            assert key[17:21] not in refusal(service, label)
        assert create(service, "flm_production_server").label == "flm_production_server"

    def test_labels_need_not_differ(self, service: SecurityService) -> None:
        assert create(service, "same").id != create(service, "same").id


class TestRotating:
    def test_the_new_key_is_what_the_old_one_was_and_the_old_one_is_dead(
        self, service: SecurityService, clock: Clock
    ) -> None:
        old = create(service, "laptop", expires="30d", scopes=["chat"], models=["a*"], engines=["e"])
        clock.now += DAY
        new = rotate(service, old.id)
        assert new.key != old.key
        assert new.id != old.id
        same = ("label", "scopes", "models", "engines", "expires_at")
        assert [getattr(new, name) for name in same] == [getattr(old, name) for name in same]
        assert (new.created_at, new.replaces, new.replaced_valid_until) == ("2027-01-16T08:00:00Z", old.id, None)
        gone = listed(service)[old.id]
        assert (gone.revoked_at, gone.replaced_by) == ("2027-01-16T08:00:00Z", new.id)
        assert gone.expires_at == old.expires_at

    def test_with_a_grace_the_old_one_ends_later(self, service: SecurityService) -> None:
        old = create(service, "laptop")
        new = rotate(service, "laptop", "24h")
        assert new.replaced_valid_until == "2027-01-16T08:00:00Z"
        kept = listed(service)[old.id]
        assert (kept.revoked_at, kept.expires_at, kept.replaced_by) == (None, "2027-01-16T08:00:00Z", new.id)
        assert new.expires_at is None

    def test_a_grace_does_not_make_a_key_live_longer(self, service: SecurityService) -> None:
        old = create(service, expires="1h")
        new = rotate(service, old.id, "24h")
        assert new.replaced_valid_until == old.expires_at == listed(service)[old.id].expires_at
        assert new.expires_at == old.expires_at

    def test_by_label_the_newest_is_meant(self, service: SecurityService) -> None:
        first = create(service, "laptop")
        second = rotate(service, "laptop", "24h")
        third = rotate(service, "laptop", "24h")
        assert (second.replaces, third.replaces) == (first.id, second.id)
        with pytest.raises(CommandError, match="3 keys have the label"):
            asyncio.run(service.revoke_key("laptop"))

    def test_what_cannot_be_rotated(self, service: SecurityService, clock: Clock, folder: Folder) -> None:
        replaced, revoked, expired = create(service, "a"), create(service, "b"), create(service, "c", expires="1h")
        newer = rotate(service, replaced.id, "24h")
        asyncio.run(service.revoke_key(revoked.id))
        clock.now += 3600
        before = stored(folder)
        for name, why in (
            (replaced.id, f"replaced by {newer.id}"),
            (revoked.id, "is revoked"),
            ("b", "is revoked"),
            (expired.id, "has expired"),
            ("nobody", "no key has"),
        ):
            with pytest.raises(CommandError, match=why) as refused:
                rotate(service, name)
            assert refused.value.code is CommandCode.KEY_NOT_FOUND
        assert stored(folder) == before

    @pytest.mark.parametrize("grace", ["", "0s", "1", "2030-01-31T12:00:00Z", "soon", "500000w"])
    def test_a_grace_is_a_duration(self, service: SecurityService, grace: str) -> None:
        create(service, "a")
        with pytest.raises(CommandError, match="the grace must be") as refused:
            rotate(service, "a", grace)
        assert refused.value.code is CommandCode.USAGE
        assert len(listed(service)) == 1

    def test_an_end_that_no_date_can_say_leaves_the_list_readable(
        self, service: SecurityService, folder: Folder
    ) -> None:
        """As another program, or an FLM that knew no bound of a grace, may have stored it."""
        late, early = create(service, "a"), create(service, "b")
        with contextlib.closing(sqlite3.connect(folder.security)) as database, database:
            change = "UPDATE api_keys SET expires_at = ? WHERE id = ?"
            database.executemany(change, [(1 << 62, late.id), (-(1 << 62), early.id)])
        found = listed(service)
        assert [found[key.id].expires_at for key in (late, early)] == ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]

    def test_of_many_at_once_one_rotates(self, service: SecurityService) -> None:
        old = create(service, "a")

        async def main() -> list[RotatedKey | BaseException]:
            return await asyncio.gather(*(service.rotate_key(old.id) for _ in range(10)), return_exceptions=True)

        done = asyncio.run(main())
        assert sum(isinstance(each, RotatedKey) for each in done) == 1
        assert sum(isinstance(each, CommandError) for each in done) == 9
        assert len(listed(service)) == 2

    def test_its_secret_is_not_in_its_words(self, service: SecurityService) -> None:
        create(service, "a")
        new = rotate(service, "a")
        assert new.key not in repr(new)


KNOWN = (
    Engine("gpu1", "openai", "http://x", "RunningHealthy", models=(Model("llama3:8b"), Model("small"))),
    Engine("gpu2", "openai", "http://y", "ErrorNetwork"),
)


@pytest.mark.parametrize(
    ("models", "engines", "told"),
    [
        ([], [], []),
        (["llama3*", "flm://gpu1/*", "small"], ["gpu1", "gpu2"], []),
        ([], ["gpu3"], ["no engine 'gpu3' now (there are gpu1, gpu2)"]),
        (["llama9*"], [], ["like 'llama9*' (there are flm://gpu1/llama3:8b, flm://gpu1/small)"]),
        (["nope", "small"], ["gpu1", "gpu9"], ["no engine 'gpu9'", "like 'nope'"]),
        (["small"], ["gpu2"], ["both like --model and of --engine"]),
    ],
)
def test_restrictions_that_open_nothing_are_told_with_what_there_is(
    models: list[str], engines: list[str], told: list[str]
) -> None:
    said = open_nothing(models, engines, KNOWN)
    assert len(said) == len(told)
    for expected, warning in zip(told, said, strict=True):
        assert expected in warning


def test_what_there_is_may_be_nothing_or_much() -> None:
    assert "(there are no engines)" in open_nothing([], ["a"], ())[0]
    assert "(there are no models)" in open_nothing(["a"], [], ())[0]
    many = Engine("e", "openai", "http://x", "RunningHealthy", models=tuple(Model(f"m{n:02}") for n in range(40)))
    (warning,) = open_nothing(["nope"], [], [many])
    assert "flm://e/m11 and 28 more" in warning
    assert "m12" not in warning


def test_a_key_for_what_is_not_there_is_made_and_told_of(
    folder: Folder, service: SecurityService, caplog: pytest.LogCaptureFixture
) -> None:
    with demo_engine("openai") as engine:
        asyncio.run(EngineService(folder).add("here", "openai", engine.url))
        good = create(service, models=["flm://here/*"], engines=["here"])
        assert good.warnings == ()
        typo = create(service, engines=["hree"])
    (warning,) = typo.warnings
    assert "there is no engine 'hree' now (there are here)" in warning
    assert warning in caplog.text
    assert typo.key not in caplog.text
    assert listed(service)[typo.id].engines == ("hree",)
    assert create(service).warnings == ()


def test_a_key_is_made_though_nobody_can_look(service: SecurityService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_PROXY_PORT", "x")  # no settings, no look
    created = create(service, engines=["gpu1"])
    (warning,) = created.warnings
    assert "could not be seen: environment variable FLM_PROXY_PORT" in warning
    monkeypatch.delenv("FLM_PROXY_PORT")
    monkeypatch.setattr(security, "LOOK_SECONDS", 0)
    (slow,) = create(service, engines=["gpu1"]).warnings
    assert "could not be seen: an engine took over 0 s" in slow
