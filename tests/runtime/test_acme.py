"""When the keeper of `https-acme` asks whom, what it does with a no, and what a restart remembers.

The authority is a list of outcomes, time is a number: what an attempt itself does is tested in tests/acme.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flm.config import Settings, resolve
from flm.disk.private import write_atomically
from flm.errors import CommandCode, CommandError
from flm.runtime.acme import TRIES_AT_START, AcmeKeeper
from flm.runtime.issuance import Looks, Refused
from flm.runtime.loglines import timestamp
from flm.store import certificates as rows
from flm.store.database import open_security
from flm.store.folder import Folder, locate
from flm.tls import schedule
from flm.tls.allowance import DAMAGED_FILES, FAILED_REHEARSALS, FAILED_VALIDATIONS, Instant
from flm.tls.files import folder_of, read_pair
from flm.tls.pair import Pair, moment, read
from flm.tls.plain import Site
from flm.tls.way import LETS_ENCRYPT, LETS_ENCRYPT_STAGING
from flm.tls.words import Ask
from tests.tls.issuing import DAY, NOW, make

NAME = "llm.example.com"
Outcome = Pair | Refused
Window = tuple[float, float, float] | None


def settings(**flags: str) -> Settings:
    chosen = {"proxy.mode": "https-acme", "acme.domain": NAME}
    return resolve({}, {}, chosen | {key.replace("__", "."): value for key, value in flags.items()}).settings


def pair(name: str = NAME, *, begins: float = NOW - DAY, ends: float = NOW + 89 * DAY) -> Pair:
    issued = make(name, (name,), by=make("CA", ca=True), begins=begins, ends=ends)
    return read(issued.key_pem + issued.chain)


def no(kind: str = "network", message: str = "nobody answers", retry_after: float = 0.0) -> Refused:
    return Refused(kind, message, retry_after)  # type: ignore[arg-type]


class Bench:
    """A keeper whose authority answers with `outcomes`, in order; `asked` is what it was asked."""

    def __init__(self, root: Path, *outcomes: Outcome) -> None:
        self.folder: Folder = locate({"FLM_HOME": str(root)})
        self.outcomes = list(outcomes)
        self.windows: list[Window | Refused] = []
        self.asked: list[Ask] = []
        self.asked_for_windows = 0
        self.failing: tuple[str, ...] = (NAME,)  # the names of a validation that fails
        self.steps: list[str] = []
        self.slept: list[float] = []
        self.now = NOW
        self.boot, self.up = "one", 1000.0 - NOW  # `up`: what the wall clock has to be moved by
        self.keeper = self.another()

    def another(self) -> AcmeKeeper:
        """As after a restart."""
        self.site = Site((NAME,), 443, {})
        return AcmeKeeper(
            self.folder,
            self.site,
            issue=self._issue,
            window=self._window,
            clock=lambda: self.now,
            instant=lambda: Instant(self.now, self.boot, self.now + self.up),
            sleep=self._sleep,
            chance=lambda: 0.5,
        )

    async def _issue(self, ask: Ask, step: Any, publish: Any, retract: Any, looks: Looks) -> Pair:
        self.asked.append(ask)
        outcome = self.outcomes.pop(0)
        failed = self.failing if isinstance(outcome, Refused) and outcome.kind == "validation" else ()
        for name in ask.names:
            await looks.look(name)
            if name not in failed:
                await looks.spared(name)
        publish("token", "answer")
        assert self.site.tokens == {"token": "answer"}
        retract("token")
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    async def _window(self, _ask: Ask) -> Window:
        self.asked_for_windows += 1
        outcome = self.windows.pop(0) if self.windows else None
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def obtain(self, **flags: str) -> Pair:
        return await self.keeper.obtain(settings(**flags), lambda step, detail: self.steps.append(f"{step}: {detail}"))

    async def look(self, **flags: str) -> None:
        await self.keeper.look(settings(**flags))

    def stored(self, directory: str = LETS_ENCRYPT) -> Path:
        return self.folder.certs / "acme" / folder_of(directory) / "current.pem"

    async def row(self) -> rows.CertificateRow:
        async with await open_security(self.folder) as database:
            found = await rows.read(database, "acme")
        assert found is not None
        return found

    @property
    def directories(self) -> list[str]:
        return [ask.directory for ask in self.asked]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_the_first_certificate_is_rehearsed(tmp_path: Path) -> None:
    async def main() -> None:
        rehearsed, wanted = pair(), pair()
        bench = Bench(tmp_path, rehearsed, wanted)
        assert await bench.obtain() == wanted
        assert bench.directories == [LETS_ENCRYPT_STAGING, LETS_ENCRYPT]
        assert read_pair(bench.stored()) == wanted
        row = await bench.row()
        assert (row.fingerprint, row.trusted, row.failures, row.last_error) == (wanted.fingerprint, True, 0, None)
        line = bench.keeper.line()
        assert line is not None
        assert (line.trusted, line.domains, line.hint) == (True, [NAME], None)
        bench.outcomes = [renewed := pair()]
        bench.now = wanted.not_after - 10 * DAY
        await bench.look()
        assert bench.directories[2:] == [LETS_ENCRYPT]  # a renewal needs no rehearsal
        assert bench.keeper.pair == renewed

    run(main)


def test_a_record_from_a_backup_spares_nobody_the_rehearsal(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), pair())
        await bench.obtain()
        bench.stored().unlink()  # as on a new machine
        bench.keeper, bench.outcomes = bench.another(), [pair(), wanted := pair()]
        assert await bench.obtain() == wanted
        assert bench.directories[2:] == [LETS_ENCRYPT_STAGING, LETS_ENCRYPT]

    run(main)


def test_a_rehearsal_that_fails_leaves_production_alone(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, no("validation", "port 80 is closed"), no("validation", "port 80 is closed"))
        with pytest.raises(CommandError, match=r"in the rehearsal at .*: port 80 is closed") as refused:
            await bench.obtain()
        assert refused.value.code is CommandCode.PROXY_ACME_ERROR
        assert bench.directories == [LETS_ENCRYPT_STAGING] * TRIES_AT_START

    run(main)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"acme__staging": "true"}, [LETS_ENCRYPT_STAGING]),
        ({"acme__directory": "https://ca.example/dir"}, ["https://ca.example/dir"]),
        (
            {"acme__directory": "https://ca.example/dir", "acme__staging_directory": "https://ca.example/test"},
            ["https://ca.example/test", "https://ca.example/dir"],
        ),
        ({"acme__directory": "https://ca.example/dir", "acme__staging": "true"}, ["https://ca.example/dir"]),
    ],
)
def test_whom_to_ask(tmp_path: Path, flags: dict[str, str], expected: list[str]) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, *(pair() for _ in expected))
        await bench.obtain(**flags)
        assert bench.directories == expected
        line = bench.keeper.line()
        assert line is not None
        assert line.trusted == ("acme__staging" not in flags)
        assert ("acme.staging false" in (line.hint or "")) == ("acme__staging" in flags)

    run(main)


def test_two_failures_at_start_are_enough(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, no(), no(message="the CA's own words"))
        with pytest.raises(CommandError, match="the CA's own words"):
            await bench.obtain()
        assert bench.outcomes == []
        assert len(bench.slept) == 1
        assert (await bench.row()).failures == 2

    run(main)


def test_a_second_try_may_succeed(tmp_path: Path) -> None:
    async def main() -> None:
        wanted = pair()
        bench = Bench(tmp_path, no(), pair(), wanted)
        assert await bench.obtain() == wanted
        assert any(step.startswith("again: ") for step in bench.steps)

    run(main)


@pytest.mark.parametrize("kind", ["rejected", "local"])
def test_what_is_refused_for_good_is_not_asked_again(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, no(kind))
        with pytest.raises(CommandError):
            await bench.obtain()
        assert bench.slept == []

    run(main)


def test_a_wait_that_the_ca_asks_for_outlives_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, no("rate_limited", "too many certificates", 3600.0))
        with pytest.raises(CommandError, match="too many certificates"):
            await bench.obtain()
        bench.keeper = bench.another()
        with pytest.raises(CommandError, match=r"too many certificates.*not before"):
            await bench.obtain()
        assert len(bench.asked) == 1
        bench.now += 7200
        bench.keeper, bench.outcomes = bench.another(), [pair(), pair()]
        await bench.obtain()

    run(main)


@pytest.mark.parametrize(
    "other", [{"acme.directory": "https://ca.example/dir"}, {"acme.domain": "another.example.com"}]
)
def test_a_wait_is_for_what_was_asked_and_for_nothing_else(tmp_path: Path, other: dict[str, str]) -> None:
    async def main() -> None:
        flags = {key.replace(".", "__"): value for key, value in other.items()}
        wanted = pair(other.get("acme.domain", NAME))
        bench = Bench(tmp_path, no("rate_limited", "too many certificates", 3600.0), wanted, wanted)
        with pytest.raises(CommandError, match="too many certificates"):
            await bench.obtain()
        bench.keeper = bench.another()
        assert await bench.obtain(**flags) == wanted

    run(main)


def test_a_setting_that_is_put_right_is_tried_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        both = {"acme__domain": f"{NAME}, tow.example.com"}
        bench.outcomes = [no("rejected")]
        await bench.look(**both)
        await bench.look(**both)  # too soon
        assert (bench.keeper.pair, bench.outcomes) == (first, [])
        issued = make(NAME, (NAME, "two.example.com"), by=make("CA", ca=True), begins=NOW, ends=NOW + DAY)
        bench.outcomes = [second := read(issued.key_pem + issued.chain)]
        await bench.look(acme__domain=f"{NAME}, two.example.com")
        assert bench.keeper.pair == second

    run(main)


def test_a_failure_without_a_wait_does_not_keep_a_person_from_trying_again(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, no(), no(), pair(), pair())
        with pytest.raises(CommandError):
            await bench.obtain()
        bench.keeper = bench.another()
        await bench.obtain()

    run(main)


def test_what_is_stored_is_served_without_asking(tmp_path: Path) -> None:
    async def main() -> None:
        stored = pair()
        bench = Bench(tmp_path)
        write_atomically(bench.stored(), stored.pem)
        assert await bench.obtain() == stored
        assert bench.asked == []

    run(main)


def test_a_valid_one_for_other_names_is_served_when_there_is_no_new_one(tmp_path: Path) -> None:
    async def main() -> None:
        stored = pair()
        bench = Bench(tmp_path, no(), no())
        write_atomically(bench.stored(), stored.pem)
        assert await bench.obtain(acme__domain=f"{NAME}, new.example.com") == stored
        assert len(bench.asked) == TRIES_AT_START
        assert bench.keeper.last_error is not None

    run(main)


@pytest.mark.parametrize("what", ["expired", "corrupt", "another name", "empty", "no key"])
def test_what_is_no_good_is_not_served(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        contents = {
            "expired": pair(begins=NOW - 9 * DAY, ends=NOW - DAY).pem,
            "corrupt": b"\x00nonsense",
            "another name": pair("other.example").pem,
            "empty": b"",
            "no key": pair().chain_pem,
        }
        bench = Bench(tmp_path, pair(), wanted := pair())
        write_atomically(bench.stored(), contents[what])
        assert await bench.obtain() == wanted
        assert read_pair(bench.stored()) == wanted

    run(main)


def test_it_is_renewed_when_a_third_is_left_and_not_before(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        life = first.not_after - first.not_before
        bench.now = first.not_before + life / 2
        await bench.look()
        assert len(bench.asked) == 2
        assert 0 < bench.keeper.pause() <= 600
        bench.now = first.not_after - life / 3
        bench.outcomes = [second := pair(begins=bench.now, ends=bench.now + life)]
        await bench.look()
        assert bench.keeper.pair == second
        assert bench.asked[-1].replaces.encode() == first.chain_pem

    run(main)


def test_a_failed_renewal_backs_off_and_keeps_what_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.now = first.not_after - 10 * DAY
        bench.outcomes = [no(message="the CA is down")]
        await bench.look()
        assert bench.keeper.pair == first
        assert "the CA is down" in (bench.keeper.last_error or "")
        await bench.look()  # at once: too soon
        assert bench.outcomes == []
        bench.keeper = bench.another()
        await bench.keeper.resume(first)
        await bench.look()  # a restart does not forget
        assert "the CA is down" in (bench.keeper.last_error or "")
        wait = (await bench.row()).next_attempt_at
        assert wait is not None
        assert bench.now < wait < bench.now + DAY
        bench.now = wait + 1
        bench.outcomes = [second := pair(begins=bench.now, ends=bench.now + 90 * DAY)]
        await bench.look()
        assert bench.keeper.pair == second
        assert bench.keeper.last_error is None

    run(main)


def test_after_a_failed_validation_the_rehearsal_comes_first(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.now = first.not_after - 10 * DAY
        bench.outcomes = [no("validation", "port 80 is closed")]
        await bench.look()
        bench.now += DAY
        bench.outcomes = [pair(), pair(ends=bench.now + 90 * DAY)]
        await bench.look()
        assert bench.directories[2:] == [LETS_ENCRYPT, LETS_ENCRYPT_STAGING, LETS_ENCRYPT]

    run(main)


@pytest.mark.parametrize("jump", [-400 * DAY, -3600.0, 3600.0])
def test_a_clock_that_jumps_renews_nothing_and_loses_nothing(tmp_path: Path, jump: float) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.now += jump
        await bench.look()
        assert bench.keeper.pair == first
        assert len(bench.asked) == 2
        assert 0 < bench.keeper.pause() <= 600

    run(main)


def test_a_wait_written_under_another_clock_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.now = first.not_after + 4000 * DAY  # a wrong clock: everything is expired
        bench.outcomes = [no()]
        await bench.look()
        bench.now = first.not_after - 10 * DAY  # mended
        bench.outcomes = [second := pair()]
        await bench.look()
        assert bench.keeper.pair == second

    run(main)


def test_a_failure_that_a_wrong_clock_wanted_is_forgotten_when_it_is_right(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.now = first.not_after + 400 * DAY
        bench.outcomes = [no(message="the CA's own certificate has expired")]
        await bench.look()
        assert bench.keeper.last_error is not None
        bench.now = NOW + 60
        await bench.look()
        row = await bench.row()
        assert (bench.keeper.last_error, row.last_error, row.failures, row.next_attempt_at) == (None, None, 0, None)

    run(main)


def test_a_wait_of_a_clock_that_was_ahead_keeps_no_renewal_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.now = first.not_after - 5 * DAY
        bench.outcomes = [no()]
        await bench.look()
        bench.now -= 5 * DAY  # due all the same
        bench.outcomes = [second := pair()]
        await bench.look()
        assert bench.keeper.pair == second

    run(main)


def test_a_clock_before_the_certificate_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), pair())
        await bench.obtain()
        bench.now = 0.0
        await bench.look()
        line = bench.keeper.line()
        assert line is not None
        assert "is the clock right?" in (line.last_error or "")
        assert len(bench.asked) == 2

    run(main)


def test_the_reason_of_a_failure_is_not_hidden_by_the_file_that_wanted_it(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), pair())
        await bench.obtain()
        write_atomically(bench.stored(), b"damaged")
        bench.outcomes = [no("local", "the disk is full")]
        for _ in range(3):
            await bench.look()
            assert "the disk is full" in (bench.keeper.last_error or "")

    run(main)


def test_a_record_that_could_not_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), wanted := pair())

        async def locked(_transaction: object, _row: object) -> None:
            raise CommandError(CommandCode.DB_ERROR, "database is locked")

        with monkeypatch.context() as patched:
            patched.setattr(rows, "write", locked)
            await bench.obtain()
        await bench.look()
        assert (await bench.row()).fingerprint == wanted.fingerprint

    run(main)


def test_a_new_certificate_that_this_clock_does_not_believe_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), wanted := pair())
        bench.now = 0.0
        assert await bench.obtain() == wanted
        assert "clock" in (bench.keeper.last_error or "")
        assert read_pair(bench.stored()) == wanted
        await bench.look()
        assert len(bench.asked) == 2  # and no other is asked for, again and again

    run(main)


@pytest.mark.parametrize("contents", [b"", b"nonsense", None])
def test_what_is_on_disk_and_not_what_is_served_is_renewed_at_once(tmp_path: Path, contents: bytes | None) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), pair())
        await bench.obtain()
        write_atomically(bench.stored(), pair().pem if contents is None else contents)
        bench.outcomes = [second := pair()]
        await bench.look()
        assert bench.keeper.pair == second
        assert read_pair(bench.stored()) == second

    run(main)


def test_what_is_missing_on_disk_is_written_again(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), wanted := pair())
        await bench.obtain()
        for gone in (bench.stored().unlink, lambda: shutil.rmtree(bench.folder.certs)):
            gone()
            await bench.look()
            assert read_pair(bench.stored()) == wanted
        assert len(bench.asked) == 2

    run(main)


@pytest.mark.parametrize("lost", ["all", "the last"])
def test_a_certificate_that_the_record_does_not_know_is_recorded(tmp_path: Path, lost: str) -> None:
    """As after a kill between the file and its record."""

    async def main() -> None:
        former, held = pair(), pair()
        bench = Bench(tmp_path, former, former)
        await bench.obtain()
        write_atomically(bench.stored(), held.pem)
        if lost == "all":
            bench.folder.security.unlink()
            bench.folder.config.unlink()
        bench.keeper = bench.another()
        assert await bench.obtain() == held
        row = await bench.row()
        assert (row.fingerprint, row.domains, row.directory) == (held.fingerprint, (NAME,), LETS_ENCRYPT)
        line = bench.keeper.line()
        assert line is not None
        assert (line.trusted, line.directory, line.hint) == (True, LETS_ENCRYPT, None)
        await bench.look()
        assert [each.name for each in bench.stored().parents[1].iterdir()] == [folder_of(LETS_ENCRYPT)]

    run(main)


def test_one_directory_for_rehearsals_and_for_all_else_is_trusted_once_it_is_said_to_be(tmp_path: Path) -> None:
    async def main() -> None:
        own = {"acme__directory": "https://ca.example/dir"}
        bench = Bench(tmp_path, pair())
        await bench.obtain(**own, acme__staging="true")
        for staging, trusted in (("true", False), ("false", True), ("true", False)):
            await bench.look(**own, acme__staging=staging)
            line = bench.keeper.line()
            assert line is not None
            assert (line.trusted, line.hint is None) == (trusted, trusted)
        bench.keeper = bench.another()
        await bench.obtain(**own)
        assert (await bench.row()).trusted

    run(main)


def test_a_name_that_is_added_is_in_the_next_one_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), pair())
        await bench.obtain()
        bench.outcomes = [no(), no()]
        await bench.look(acme__domain=f"{NAME}, new.example.com")
        assert bench.asked[-1].names == [NAME, "new.example.com"]

    run(main)


def test_the_window_of_the_ca_is_obeyed_and_an_absurd_one_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.windows = [(NOW - 2, NOW - 1, 600.0)]
        bench.outcomes = [second := pair()]
        await bench.look()
        assert bench.keeper.pair == second
        assert bench.asked_for_windows == 1
        bench.windows = [(first.not_after + DAY, first.not_after + 2 * DAY, 600.0)]
        bench.now = second.not_after - 20 * DAY
        bench.outcomes = [third := pair()]
        await bench.look()
        assert bench.keeper.pair == third

    run(main)


@pytest.mark.parametrize("jump", [0.0, 70 * DAY])
def test_a_ca_or_a_clock_that_says_now_each_time_is_not_followed_each_time(tmp_path: Path, jump: float) -> None:
    """`jump`: the clock is set forward, so that each new certificate looks old."""

    async def main() -> None:
        bench = Bench(tmp_path, pair(), pair())
        await bench.obtain()
        bench.now += jump
        bench.windows = [] if jump else [(NOW - 2, NOW - 1, 60.0)] * 1000
        bench.outcomes = [pair() for _ in range(1000)]
        began, asked = bench.now, len(bench.asked)
        while bench.now < began + DAY:
            await bench.look()
            pause = bench.keeper.pause()
            assert 0 < pause <= 600
            bench.now += pause
        assert 1 < len(bench.asked) - asked <= 10
        await bench.look(acme__domain=f"{NAME}, new.example.com")  # what a person changes holds at once
        assert bench.asked[-1].names == [NAME, "new.example.com"]

    run(main)


def test_a_window_that_cannot_be_had_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), first := pair())
        await bench.obtain()
        bench.windows = [no()]
        await bench.look()
        await bench.look()
        assert (bench.keeper.pair, bench.keeper.last_error, bench.asked_for_windows) == (first, None, 1)

    run(main)


def test_a_full_disk_does_not_cost_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, pair(), wanted := pair())

        def full(_path: Path, _data: bytes) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("flm.runtime.stored.write_atomically", full)
            assert await bench.obtain() == wanted
            assert "No space left" in (bench.keeper.last_error or "")
            await bench.look()
            assert bench.keeper.pair == wanted
        await bench.look()
        assert read_pair(bench.stored()) == wanted
        assert bench.keeper.last_error is None

    run(main)


class TestFailedValidations:
    """Five an hour of a name at a directory, whoever starts it again and again; more where rehearsals are held."""

    OWN = "https://ca.example/dir"

    def test_a_start_in_a_loop_makes_five_and_says_when_there_is_another(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, *(no("validation", "port 80 is closed") for _ in range(100)))
            began = bench.now
            reasons = set()
            while bench.now < began + 3500:
                bench.keeper = bench.another()
                with pytest.raises(CommandError) as refused:
                    await bench.obtain(acme__directory=self.OWN)
                reasons.add(refused.value.message)
                bench.now += 100
            assert bench.directories == [self.OWN] * FAILED_VALIDATIONS.most
            assert all("port 80 is closed" in reason for reason in reasons)
            told = next(reason for reason in reasons if "within an hour" in reason)
            assert f"FLM asks there again not before {moment(began + 3600)}, however often it is started" in told
            assert "meanwhile see that http://llm.example.com leads to port 80 of this machine" in told
            assert "--fallback dev-selfsigned" in told
            assert "--acme-staging" not in told  # which is where it has failed
            bench.now = began + 3601
            bench.keeper, bench.outcomes = bench.another(), [wanted := pair()]
            assert await bench.obtain(acme__directory=self.OWN) == wanted

        run(main)

    def test_who_opens_a_port_step_by_step_may_rehearse_often(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, *(no("validation", "port 80 is closed") for _ in range(100)))
            reasons = []
            for _ in range(FAILED_REHEARSALS.most):
                bench.keeper = bench.another()
                with pytest.raises(CommandError) as refused:
                    await bench.obtain()
                reasons.append(refused.value.message)
            assert bench.directories == [LETS_ENCRYPT_STAGING] * FAILED_REHEARSALS.most
            assert "60 validations of llm.example.com have failed" in reasons[-1]

        run(main)

    def test_one_that_runs_asks_again_when_it_may_and_status_says_when(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, *(no("validation", "port 80 is closed") for _ in range(5)))
            began = bench.now
            for _ in range(3):
                bench.keeper = bench.another()
                with pytest.raises(CommandError):
                    await bench.obtain(proxy__fallback="dev-selfsigned", acme__directory=self.OWN)
            bench.outcomes = [wanted := pair()]
            other = {"proxy__fallback": "dev-selfsigned", "acme__directory": self.OWN}
            other["acme__email"] = "ops@example.com"  # which is tried at once
            looks = 0
            while bench.keeper.pair is None:
                assert bench.now <= began + 3600 + schedule.LOOK_SECONDS
                await bench.look(**other)
                looks += 1
                line = bench.keeper.line()
                assert line is not None
                if bench.keeper.pair is None:
                    assert line.next_attempt_at == timestamp((await bench.row()).next_attempt_at or 0.0)
                    assert f"not before {moment(began + 3600)}" in (line.last_error or "")
                    assert "--fallback" not in (line.last_error or "")
                bench.now += bench.keeper.pause()
            assert bench.now >= began + 3600
            assert looks < 10
            assert bench.keeper.pair == wanted
            line = bench.keeper.line()
            assert line is not None
            assert (line.next_attempt_at, line.last_error) == (None, None)

        run(main)

    def test_those_in_the_rehearsal_leave_production_its_own(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path)
            flags = {"acme__directory": "https://ca.example/dir"}
            bench.outcomes = [no("validation") for _ in range(5)]
            for _ in range(4):
                bench.keeper = bench.another()
                with pytest.raises(CommandError):
                    await bench.obtain(**flags)
            assert len(bench.asked) == 5
            rehearsing = flags | {"acme__staging_directory": "https://ca.example/test"}
            bench.keeper = bench.another()
            with pytest.raises(CommandError, match="rehearse with --acme-staging"):
                await bench.obtain(**rehearsing)
            assert len(bench.asked) == 5  # production would come after the rehearsal, and must not be asked
            bench.keeper, bench.outcomes = bench.another(), [rehearsed := pair()]
            assert await bench.obtain(acme__staging="true", **rehearsing) == rehearsed

        run(main)

    def test_names_that_did_not_fail_are_free_of_those_that_did(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path)
            bench.failing = ("new.example.com",)
            bench.outcomes = [no("validation") for _ in range(5)]
            for _ in range(4):
                bench.keeper = bench.another()
                with pytest.raises(CommandError):
                    await bench.obtain(acme__domain=f"{NAME}, new.example.com", acme__directory=self.OWN)
            assert len(bench.asked) == 5
            bench.keeper, bench.outcomes = bench.another(), [wanted := pair()]
            assert await bench.obtain(acme__directory=self.OWN) == wanted

        run(main)

    def test_other_failures_and_those_that_end_well_cost_none(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path)
            for _ in range(20):
                bench.keeper, bench.outcomes = bench.another(), [no(), no("server")]
                with pytest.raises(CommandError):
                    await bench.obtain()
            bench.keeper, bench.outcomes = bench.another(), [pair(), wanted := pair()]
            assert await bench.obtain() == wanted

        run(main)

    def test_a_success_takes_none_back_for_the_ca_takes_none_back_either(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path)
            flags = {"acme__directory": "https://ca.example/dir"}
            bench.outcomes = [no("validation"), no("validation"), no("validation"), pair()]
            with pytest.raises(CommandError):
                await bench.obtain(**flags)
            bench.keeper = bench.another()
            await bench.obtain(**flags)
            bench.stored("https://ca.example/dir").unlink()
            bench.outcomes = [no("validation") for _ in range(5)]
            for _ in range(3):
                bench.keeper = bench.another()
                with pytest.raises(CommandError):
                    await bench.obtain(**flags)
            assert len(bench.asked) == 4 + 2

        run(main)

    @pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
    def test_a_clock_that_jumps_opens_nothing_and_bars_for_an_hour_at_most(self, tmp_path: Path, jump: float) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, *(no("validation") for _ in range(5)))
            for _ in range(4):
                bench.keeper = bench.another()
                with pytest.raises(CommandError):
                    await bench.obtain(acme__directory=self.OWN)
            bench.now, bench.up = bench.now + jump, bench.up - jump  # the wall clock alone
            bench.keeper = bench.another()
            with pytest.raises(CommandError, match=f"not before {moment(bench.now + 3600)}"):
                await bench.obtain(acme__directory=self.OWN)
            bench.now += 3601
            bench.keeper = bench.another()
            bench.outcomes = [wanted := pair(begins=bench.now, ends=bench.now + 90 * DAY)]
            assert await bench.obtain(acme__directory=self.OWN) == wanted

        run(main)

    def test_a_certificate_of_before_is_served_meanwhile(self, tmp_path: Path) -> None:
        async def main() -> None:
            stored, both = pair(), f"{NAME}, new.example.com"
            bench = Bench(tmp_path, *(no("validation") for _ in range(5)))
            write_atomically(bench.stored(self.OWN), stored.pem)
            for _ in range(6):
                bench.keeper = bench.another()
                assert await bench.obtain(acme__domain=both, acme__directory=self.OWN) == stored
            assert len(bench.asked) == 5
            assert "not before" in (bench.keeper.last_error or "")

        run(main)


class TestDamagedFiles:
    """A new certificate in the place of one whose file was damaged: at once, and not again and again."""

    def damage(self, bench: Bench, contents: bytes = b"damaged") -> None:
        write_atomically(bench.stored(), contents)

    def test_a_running_one_gets_two_a_week_and_writes_what_is_served_again_otherwise(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, pair(), pair())
            await bench.obtain()
            for number in range(1, DAMAGED_FILES.most + 1):
                self.damage(bench)
                bench.outcomes = [wanted := pair()]
                await bench.look()
                assert (bench.keeper.pair, bench.keeper.last_error) == (wanted, None), number
            for contents in (b"damaged", b"", pair().pem, pair().chain_pem):
                self.damage(bench, contents)
                await bench.look()
                assert bench.keeper.pair == read_pair(bench.stored()) == wanted
                assert "find out what writes to that file" in (bench.keeper.last_error or "")
                bench.now += 600
            await bench.look()
            assert bench.keeper.last_error is None
            assert len(bench.asked) == 2 + DAMAGED_FILES.most
            bench.now += DAMAGED_FILES.seconds
            self.damage(bench)
            bench.outcomes = [wanted := pair(ends=bench.now + 90 * DAY)]
            await bench.look()
            assert bench.keeper.pair == wanted

        run(main)

    def test_what_is_served_is_on_disk_while_the_ca_says_no(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, pair(), first := pair())
            await bench.obtain()
            self.damage(bench)
            bench.outcomes = [no()]
            await bench.look()
            assert read_pair(bench.stored()) == first
            bench.now += 60
            bench.outcomes = [second := pair()]
            await bench.look()  # and the damage is not forgotten
            assert bench.keeper.pair == read_pair(bench.stored()) == second

        run(main)

    @pytest.mark.parametrize("contents", [b"damaged", None], ids=["damaged", "another's"])
    def test_a_start_in_a_loop_gets_two_a_week_until_the_file_is_away(
        self, tmp_path: Path, contents: bytes | None
    ) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, pair(), pair())
            await bench.obtain()
            rehearsed = [pair()] if contents else []
            for _ in range(DAMAGED_FILES.most):
                self.damage(bench, contents or pair("other.example").pem)
                bench.keeper, bench.outcomes = bench.another(), [*rehearsed, wanted := pair()]
                assert await bench.obtain() == wanted
            assert bench.outcomes == []
            asked = len(bench.asked)
            for _ in range(3):
                self.damage(bench, contents or pair("other.example").pem)
                bench.keeper = bench.another()
                with pytest.raises(CommandError, match=rf"no other before .*`rm {bench.stored()}` and start again"):
                    await bench.obtain()
            line = bench.keeper.line()
            assert line is not None
            assert line.next_attempt_at == timestamp(bench.now + DAMAGED_FILES.seconds)
            await bench.look()  # as behind a fallback: it still lies there
            assert len(bench.asked) == asked
            bench.stored().unlink()
            bench.outcomes = [*rehearsed, wanted := pair()]
            await bench.look()
            assert bench.keeper.pair == wanted

        run(main)

    def test_the_one_of_another_directory_or_of_names_of_before_is_no_damage(self, tmp_path: Path) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, pair(), pair())
            await bench.obtain()
            own = {"acme__directory": "https://ca.example/dir"}
            for number in range(2 * DAMAGED_FILES.most):
                rehearsed = [pair()] if number % 2 else []
                bench.keeper, bench.outcomes = bench.another(), [*rehearsed, wanted := pair()]
                assert await bench.obtain(**({} if number % 2 else own)) == wanted
            two = make(NAME, (NAME, "two.example.com"), by=make("CA", ca=True), begins=NOW, ends=NOW + DAY)
            bench.keeper, bench.outcomes = bench.another(), [wanted := read(two.key_pem + two.chain)]
            assert await bench.obtain(acme__domain=f"{NAME}, two.example.com") == wanted
            async with await open_security(bench.folder) as database:
                assert await database.rows("SELECT * FROM allowances") == []

        run(main)
