"""The keeper of `https-acme`: a certificate of a public authority, got at start and renewed while serving.

Strategy: what is on disk and still good is served at once, and what is due is renewed meanwhile. The first certificate
of a folder is rehearsed at the CA's staging directory, and so is the first after a failed validation, because the
production directory counts failures. Each outcome is stored, so that a restart neither forgets a wait that the CA has
asked for nor begins to count anew. A finished pair is kept even where it cannot be stored, or this machine's clock
says that it is not valid: another one would be no better.

Knows when to ask which directory, and what to do with the answer. Asking is `issuance`; the arithmetic of time is
`flm.tls.schedule`; who serves the pair is `front`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from flm.config import Mode, Settings, domains
from flm.errors import CommandCode, CommandError
from flm.runtime import acme_words, allowance, issuance
from flm.runtime.allowance import Allowance, CountedLooks
from flm.runtime.front import Step
from flm.runtime.handle import CertificateLine
from flm.runtime.issuance import Looks, Refused
from flm.runtime.loglines import timestamp
from flm.runtime.stored import StoredPair
from flm.store import certificates as rows
from flm.store.certificates import CertificateRow
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.tls import schedule
from flm.tls.allowance import DAMAGED_FILES, FAILED_REHEARSALS, FAILED_VALIDATIONS, Instant
from flm.tls.pair import Pair, check, covers, moment
from flm.tls.plain import Site
from flm.tls.way import LETS_ENCRYPT_STAGING, Stop, way
from flm.tls.words import Ask

TRIES_AT_START: Final = 2
BETWEEN_TRIES_SECONDS: Final = 2.0  # a CA that was busy, a name server that was slow
LONGEST_WAIT_SECONDS: Final = schedule.LONGEST_BACKOFF_SECONDS + 1.0  # longer on record: written under another clock
WINDOW_SECONDS: Final = 21_600.0  # between two questions for the CA's renewal window (RFC 9773 §4.3.2)
SHORTEST_WINDOW_SECONDS: Final = 60.0
_ROW: Final = "acme"
_SAME_CLOCK_SECONDS: Final = 60.0  # what clocks are set by in passing
_DUE: Final = "it is due"
_SPOILT: Final = "the one on disk was not the one that is served"
_HOPELESS: Final = frozenset({"rejected", "local"})  # the same question gets the same answer

log = logging.getLogger("flm.supervisor")


class Issue(Protocol):
    """`issuance.issue`."""

    def __call__(
        self,
        ask: Ask,
        step: Step,
        publish: Callable[[str, str], None],
        retract: Callable[[str], None],
        looks: Looks,
        /,
    ) -> Awaitable[Pair]: ...


AskWindow = Callable[[Ask], Awaitable[tuple[float, float, float] | None]]


class AcmeKeeper:
    """The certificate of one folder. `clock`: Unix seconds; `instant`: the same, by every clock; `sleep` and `chance`:
    as asyncio's and random's."""

    mode: Mode = "https-acme"

    def __init__(
        self,
        folder: Folder,
        site: Site,
        *,
        issue: Issue = issuance.issue,
        window: AskWindow = issuance.window,
        clock: Callable[[], float] = time.time,
        instant: Callable[[], Instant] = allowance.instant,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._folder = folder
        self._site = site
        self._issue = issue
        self._window = window
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._row = CertificateRow(id=_ROW)
        self._known = False  # whether the row on disk was read
        self._unrecorded = False
        self._file = StoredPair(folder)
        self._spoilt = False  # whether it is for a file that was damaged, or another's, that there is to be a new one
        self._told: str | None = None  # that such a file was mended
        self._held = False  # whether this folder has, or had, a certificate: a record alone may come from a backup
        self._brief = 0  # certificates in a row that were due again as soon as they were there
        self._apart_until = 0.0
        self._validations = Allowance(
            folder, "validation", FAILED_VALIDATIONS, instant, apart={LETS_ENCRYPT_STAGING: FAILED_REHEARSALS}
        )
        self._damages = Allowance(folder, "damaged file", DAMAGED_FILES, instant)
        self._held_until = 0.0  # when there may be another attempt, as far as these two are concerned
        self.pair: Pair | None = None
        self.last_error: str | None = None

    # --- at start ----------------------------------------------------------------------------------------------

    async def obtain(self, settings: Settings, step: Step) -> Pair:
        """Raises PROXY_ACME_ERROR with the last reason, in the CA's own words."""
        await self._recall()
        stored = await self._stored(settings)
        self._held = stored is not None
        self.last_error = self._file.unread or self.last_error
        if stored is not None and self._serves(stored, settings):
            step("certificate", f"the one of before is valid until {moment(stored.not_after)}")
            self._spoilt = False
            await self._adopt(stored, settings)
            return stored
        refused = await self._try(settings, step)
        if refused is None and self.pair is not None:
            return self.pair
        if stored is not None and stored.not_after > self._clock() and self._covers_any(stored, settings):
            log.warning("the certificate of before is served: %s", self.last_error)
            step("certificate", f"no new one; the one of before is valid until {moment(stored.not_after)}")
            self._spoilt = False
            await self._adopt(stored, settings)
            return stored
        raise CommandError(CommandCode.PROXY_ACME_ERROR, self.last_error or "no certificate, and no reason for it")

    async def _try(self, settings: Settings, step: Step) -> Refused | None:
        """As often as a start tries; the last refusal, None if there is a new pair."""
        wait = self._wait_asked_for(self._clock(), settings)
        if wait > 0:
            self.last_error = f"{self._row.last_error}; not before {moment(self._clock() + wait)}"
            return Refused("rate_limited", self.last_error, wait)
        refused: Refused | None = None
        for attempt in range(1, TRIES_AT_START + 1):
            refused = await self._attempt(settings, step)
            if refused is None or refused.kind in _HOPELESS or refused.retry_after > BETWEEN_TRIES_SECONDS:
                break
            if attempt < TRIES_AT_START:
                step("again", refused.message)
                await self._sleep(BETWEEN_TRIES_SECONDS)
        return refused

    def _wait_asked_for(self, now: float, settings: Settings) -> float:
        """Seconds that the CA has asked to wait before it is asked the same again, and that are not over."""
        if not self._is_refused(settings):
            return 0.0
        return self._wait_left(now) if self._row.wait_asked else 0.0

    def _wait_left(self, now: float) -> float:
        """Seconds until the end of the wait on record, 0 for none. One that a clock wrote which was ahead is none."""
        if (self._row.last_attempt_at or 0.0) > now + _SAME_CLOCK_SECONDS:
            return 0.0
        wait = (self._row.next_attempt_at or 0.0) - now
        return wait if 0 < wait <= LONGEST_WAIT_SECONDS else 0.0

    def _serves(self, pair: Pair, settings: Settings) -> bool:
        """Whether a stored pair can be served without asking anybody first."""
        fits = all(covers(pair, name) for name in domains(settings))
        return fits and pair.not_after > self._clock() and self._row.directory in ("", self._directory(settings))

    def _covers_any(self, pair: Pair, settings: Settings) -> bool:
        return any(covers(pair, name) for name in domains(settings))

    async def resume(self, pair: Pair) -> None:
        self.pair, self._held = pair, True
        await self._recall()

    # --- while serving -----------------------------------------------------------------------------------------

    async def look(self, settings: Settings) -> None:
        """Renew if it is due: a third of the life is left, the CA's window says so, the names have changed, or what is
        on disk is not what is served."""
        await self._recall()
        if self._unrecorded:
            await self._record()
        if self.pair is not None and self._row.directory in ("", self._directory(settings)):
            await self._adopt(self.pair, settings)
        now = self._clock()
        await self._ask_for_window(settings, now)
        reason = await self._reason(settings, now)
        if reason is None:
            await self._forget_failures(now)
            return
        if self._backing_off(now, settings):
            return
        log.info("the certificate is renewed: %s", reason)
        former = self.pair
        refused = await self._attempt(settings, _log_step)
        if refused is not None:
            log.error("the certificate was not renewed: %s", self.last_error)
        elif former is not None and self.pair is not None and reason == _DUE:
            self._keep_apart(former, self.pair, now)

    async def _forget_failures(self, now: float) -> None:
        """Nothing is due any more: what failed was wanted by a clock that was wrong, or a setting of before. A wait
        that the CA asked for stays."""
        row, pair = self._row, self.pair
        fits = pair is not None and pair.not_before <= now <= pair.not_after
        if self._file.unsaved or not fits or (row.last_error is None and row.failures == 0):
            return
        self.last_error = None
        wait = row.next_attempt_at if row.wait_asked else None
        await self._record(last_error=None, failures=0, next_attempt_at=wait)

    def _keep_apart(self, former: Pair, pair: Pair, now: float) -> None:
        """Bother no CA with one renewal after the other because it, or the clock here, says that each one is due."""
        briefly = schedule.lived_briefly(former.not_before, pair.not_before, pair.not_after)
        self._brief = self._brief + 1 if briefly else 0
        self._apart_until = now + schedule.apart(self._brief, pair.not_before, pair.not_after)

    async def _reason(self, settings: Settings, now: float) -> str | None:
        if self.pair is None:
            await self._stored(settings)
            return "there is none"
        await self._compare(self.pair)
        if self._spoilt:
            return _SPOILT
        missing = [name for name in domains(settings) if not covers(self.pair, name)]
        if missing:
            return f"it is not for {', '.join(missing)}"
        if self._row.directory not in ("", self._directory(settings)):
            return "another directory is set"
        apart = 0 < self._apart_until - now <= schedule.LONGEST_APART_SECONDS
        return _DUE if now >= self._due() and not apart else None

    def _backing_off(self, now: float, settings: Settings) -> bool:
        return self._is_refused(settings) and self._wait_left(now) > 0

    def _is_refused(self, settings: Settings) -> bool:
        """Whether the last failure was an answer to what would be asked now, or is not known to be one to else."""
        questions = {acme_words.question(stop, settings) for stop in way(settings, proven=False)}
        return self._row.refused in ("", *questions)

    def _due(self) -> float:
        """When the pair is to be renewed (Unix seconds): the same for one pair at each call and in each process."""
        assert self.pair is not None
        row, pair = self._row, self.pair
        window = (row.window_start, row.window_end) if row.window_start and row.window_end else None
        chance = int(pair.fingerprint[:8], 16) / (1 << 32)
        return schedule.due(pair.not_before, pair.not_after, window, chance)

    async def _ask_for_window(self, settings: Settings, now: float) -> None:
        """RFC 9773. What cannot be had changes nothing."""
        row, pair = self._row, self.pair
        next_time = row.window_next_at or 0.0
        if pair is None or pair.not_after <= now or not (now >= next_time or next_time > now + LONGEST_WAIT_SECONDS):
            return
        ask = msgspec.structs.replace(self._ask(settings, self._directory(settings)), op="window")
        try:
            found = await self._window(ask)
        except Refused as refused:
            log.warning("the renewal window could not be asked for: %s", refused.message)
            await self._record(window_next_at=now + WINDOW_SECONDS)
            return
        start, end, again = found or (None, None, WINDOW_SECONDS)
        pause = min(max(again or WINDOW_SECONDS, SHORTEST_WINDOW_SECONDS), LONGEST_WAIT_SECONDS)
        await self._record(window_start=start, window_end=end, window_next_at=now + pause)

    def pause(self) -> float:
        now = self._clock()
        if self.pair is None:
            return schedule.next_check(now, self._next_attempt_at() or now)
        wanted = max(self._due(), self._next_attempt_at() or 0.0, self._apart_until)
        return schedule.next_check(now, min(wanted, self._row.window_next_at or wanted))

    def _next_attempt_at(self) -> float | None:
        return max(self._row.next_attempt_at or 0.0, self._held_until) or None

    # --- one attempt -------------------------------------------------------------------------------------------

    async def _attempt(self, settings: Settings, step: Step) -> Refused | None:
        """Ask every directory on the way; the pair of the last one is `pair` then, else why not is returned."""
        began = self._clock()
        proven = self._held and bool(self._row.fingerprint) and not self._row.next_on_staging
        proven = proven and self._row.directory == self._directory(settings)
        self._held_until = 0.0
        if (held := await self._spared(settings)) is not None:
            return held
        for at in (stops := list(way(settings, proven=proven))):
            if (held := await self._held_back(at, settings)) is not None:
                return held
        for at in stops:
            step("rehearsal" if at.rehearsal else "order", f"{', '.join(domains(settings))} at {at.directory}")
            looks = CountedLooks(self._validations, at.directory)
            ask = self._ask(settings, at.directory)
            try:
                pair = await self._issue(ask, step, self._publish, self._retract, looks)
            except Refused as refused:
                await looks.settle()
                await self._note(refused, at, settings, began)
                return refused
            if not at.rehearsal:
                await self._take(pair, at.directory, settings, began)
        return None

    async def _held_back(self, at: Stop, settings: Settings) -> Refused | None:
        """Why the CA must not be told to look at the names once more now, if it must not."""
        wait, name = await self._validations.wait(at.directory, domains(settings))
        if wait <= 0:
            return None
        self._held_until = self._clock() + wait
        reason = self._row.last_error or f"no certificate for {', '.join(domains(settings))} yet"
        self.last_error = f"{reason}; {self._held_words(name, at, settings)}"
        return Refused("rate_limited", self.last_error, wait)

    def _held_words(self, name: str, at: Stop, settings: Settings) -> str:
        most = self._validations.limit(at.directory).most
        return acme_words.held(most, name, at, self._held_until, settings)

    def _directory(self, settings: Settings) -> str:
        """Whose certificate is served in the end."""
        *_, last = way(settings, proven=True)
        return last.directory

    def _ask(self, settings: Settings, directory: str) -> Ask:
        return Ask(
            op="issue",
            directory=directory,
            ca_bundle=self._path(settings.acme_ca_bundle),
            names=list(domains(settings)),
            email=settings.acme_email,
            profile=settings.acme_profile,
            eab_kid=settings.acme_eab_kid,
            eab_key_file=self._path(settings.acme_eab_file),
            accept_terms=settings.acme_accept_terms,
            folder=str(self._file.place(directory)),
            replaces=self.pair.chain_pem.decode("ascii") if self.pair is not None else "",
        )

    def _path(self, text: str) -> str:
        return os.path.join(self._folder.root, os.path.expanduser(text)) if text else ""

    def _publish(self, token: str, answer: str) -> None:
        self._site.tokens[token] = answer

    def _retract(self, token: str) -> None:
        self._site.tokens.pop(token, None)

    async def _take(self, pair: Pair, directory: str, settings: Settings, began: float) -> None:
        self.pair, self.last_error, self._held, self._told = pair, None, True, None
        if self._spoilt:
            await self._count_damage(directory)
        await self._file.write(pair, directory)
        await self._record(
            **acme_words.described(pair, directory, settings),
            last_attempt_at=began,
            last_error=None,
            failures=0,
            next_attempt_at=None,
            wait_asked=False,
            next_on_staging=False,
            refused="",
        )
        self.last_error = self._file.unsaved
        try:
            check(pair, self._clock())
        except CommandError as error:  # the CA has just issued it: it is this machine's clock that is wrong
            await self._keep_in_mind(f"the new certificate does not fit this machine's clock: {error.message}")

    async def _adopt(self, pair: Pair, settings: Settings) -> None:
        """Go on with a pair of the directory that is set. The record knows another one, or none, where FLM was killed
        between the two, or a database was put back; and whom clients trust may have been set anew."""
        self.pair = pair
        known = acme_words.described(pair, self._directory(settings), settings)
        if any(getattr(self._row, name) != known[name] for name in ("directory", "fingerprint", "trusted")):
            await self._record(**known)

    async def _keep_in_mind(self, message: str) -> None:
        log.error("%s", message)
        self.last_error = message
        await self._record(last_error=message, next_attempt_at=self._clock() + WINDOW_SECONDS)

    async def _note(self, refused: Refused, at: Stop, settings: Settings, began: float) -> None:
        where = "in the rehearsal at" if at.rehearsal else "at"
        self.last_error = f"no certificate for {', '.join(domains(settings))} {where} {at.directory}: {refused.message}"
        failures = self._row.failures + 1
        wait = schedule.backoff(failures, refused.kind, refused.retry_after, self._chance())
        held, _ = await self._validations.wait(at.directory, domains(settings))
        await self._record(
            last_attempt_at=began,
            last_error=self.last_error,
            failures=failures,
            next_attempt_at=self._clock() + max(wait, held),
            wait_asked=refused.retry_after > 0,
            next_on_staging=refused.kind == "validation" or self._row.next_on_staging,
            refused=acme_words.question(at, settings),
        )
        if held > 0:
            await self._held_back(at, settings)

    # --- what is on disk ---------------------------------------------------------------------------------------

    async def _stored(self, settings: Settings) -> Pair | None:
        """The pair on disk. If there is none to be had from what lies there, `_spoilt` says so."""
        directory = self._directory(settings)
        stored, row = await self._file.read(directory), self._row
        others = stored is not None and row.fingerprint not in (None, stored.fingerprint) and row.directory == directory
        self._spoilt = self._file.unread is not None or others
        return stored

    async def _compare(self, pair: Pair) -> None:
        """What is served is on disk afterwards. A file that was damaged or another's is a reason for a new certificate
        as well, since nobody knows who else has a hand in it: but not again and again, since CAs count those."""
        unsaved = self._file.unsaved
        state = await self._file.mend(pair, self._row.directory)
        if unsaved != self._file.unsaved:
            self.last_error = self._file.unsaved or self._row.last_error
        if unsaved is not None:  # what lay there is not what was to be there
            return
        if state == "spoilt" and not self._spoilt:
            await self._judge_damage()
        elif state == "whole" and self._told is not None:
            self._told, self.last_error = None, self._row.last_error

    async def _judge_damage(self) -> None:
        """Whether what was found to be spoilt, and is mended, is a reason for a new certificate."""
        wait, _ = await self._damages.wait(self._row.directory, [""])
        self._spoilt = wait <= 0
        if wait > 0:
            self.last_error = self._told = (
                f"{self._file.path(self._row.directory)} is damaged again and again, or replaced by another one; the "
                f"certificate that is served was written there again, and there is no new one for it before "
                f"{moment(self._clock() + wait)}, since CAs count them; find out what writes to that file"
            )

    async def _spared(self, settings: Settings) -> Refused | None:
        """Why there is no new certificate in the place of a file that is spoilt, if there must be none now."""
        directory = self._directory(settings)
        wait, _ = await self._damages.wait(directory, [""] if self._spoilt else [])
        if wait <= 0:
            return None
        self._held_until = self._clock() + wait
        path = self._file.path(directory)
        self.last_error = (
            f"{self._file.unread or f'{path} holds a certificate that FLM did not put there'}; within a week "
            f"{DAMAGED_FILES.most} new ones were got for that reason, and CAs count those for the same names: so there "
            f"is no other before {moment(self._held_until)}, or before the file is away: find out what writes to it, "
            f"then `rm {path}` and start again"
        )
        return Refused("rate_limited", self.last_error, wait)

    async def _count_damage(self, directory: str) -> None:
        self._spoilt = False
        try:
            await self._damages.note(directory)
        except CommandError as error:
            log.warning("that a damaged file cost a certificate cannot be written now: %s", error.message)

    async def _recall(self) -> None:
        if self._known:
            return
        try:
            async with await open_security(self._folder) as database:
                self._row = await rows.read(database, _ROW) or self._row
            self._known = True
            self.last_error = self._row.last_error
        except CommandError as error:
            log.warning("what is known of the certificate cannot be read now: %s", error.message)

    async def _record(self, **changes: object) -> None:
        """Change the row. What cannot be written holds in this process all the same, and is written later."""
        self._row = msgspec.structs.replace(self._row, **changes)
        renew_after = self._due() if self.pair is not None else None
        self._row = msgspec.structs.replace(self._row, renew_after=renew_after, updated_at=self._clock())
        try:
            async with await open_security(self._folder) as database, database.transaction() as transaction:
                await rows.write(transaction, self._row)
            self._unrecorded = False
        except CommandError as error:
            self._unrecorded = True
            log.warning("what is known of the certificate cannot be written now: %s", error.message)

    def line(self) -> CertificateLine | None:
        row, pair = self._row, self.pair
        return CertificateLine(
            mode=self.mode,
            domains=list(pair.domains if pair is not None else row.domains),
            issuer=pair.issuer if pair is not None else None,
            not_before=timestamp(pair.not_before) if pair is not None else None,
            not_after=timestamp(pair.not_after) if pair is not None else None,
            renew_after=timestamp(self._due()) if pair is not None else None,
            last_attempt_at=timestamp(row.last_attempt_at) if row.last_attempt_at else None,
            next_attempt_at=timestamp(next_attempt_at) if (next_attempt_at := self._next_attempt_at()) else None,
            last_error=self.last_error or self._too_early(),
            trusted=pair is not None and row.trusted,
            fingerprint=pair.fingerprint if pair is not None else None,
            directory=row.directory or None,
            hint=None if row.trusted or pair is None else acme_words.UNTRUSTED,
        )

    def _too_early(self) -> str | None:
        """What to say where this machine's clock is before the beginning of what is served."""
        if self.pair is None or self._clock() >= self.pair.not_before:
            return None
        return acme_words.too_early(self.pair, self._clock())

    async def close(self) -> None:
        """Nothing is under way: whoever awaits `obtain` or `look` has been cancelled."""


def _log_step(step: str, detail: str) -> None:
    log.info("certificate, %s: %s", step, detail)
