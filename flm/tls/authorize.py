"""Showing a CA that names are ours: the authorizations of an order, by http-01 (RFC 8555 §7.5, §8.3).

Strategy: what is valid already is left alone. For the others the answers to all challenges are published first, then
the CA is told to look, then its verdicts are awaited; a challenge that a killed attempt has set going is only awaited.
All answers are taken back at the end, whatever it is.

Knows no key but through the account, and serves nothing: publishing is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from flm.tls.account import Account
from flm.tls.deadline import Deadline, polls
from flm.tls.network import Network
from flm.tls.refusal import Identifier, Problem, ProblemError, Refused, of_validation, quoted

CHALLENGE: Final = "http-01"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")  # RFC 8555 §8.3; those of CAs are 43 characters
_NAMES_SHOWN: Final = 5


class Challenge(msgspec.Struct, frozen=True):
    """RFC 8555 §7.1.5; other kinds than http-01 may lack all but the type."""

    type: str
    url: str = ""
    status: str = "pending"
    token: str = ""
    error: Problem | None = None


class Authorization(msgspec.Struct, frozen=True):
    """RFC 8555 §7.1.4."""

    identifier: Identifier
    status: str
    challenges: list[Challenge] = []

    @property
    def name(self) -> str:
        """The name it is about, fit to be shown."""
        return quoted(self.identifier.value, 253).strip('"')

    @property
    def http(self) -> Challenge | None:
        return next((each for each in self.challenges if each.type == CHALLENGE), None)

    @property
    def problem(self) -> Problem:
        """Why it is not valid."""
        said = (each.error for each in self.challenges if each.error is not None)
        return next(said, Problem(title=f"the authorization is {self.status}"))


class Caller(Protocol):
    """Who wants the certificate: hears of each step, and serves answers on the plain port."""

    def step(self, step: str, detail: str) -> None:
        """`step`: a word for programs; `detail`: what is done now, or a warning, for people."""

    def publish(self, token: str, answer: str) -> None:
        """Returns when `answer` is served for `token`. Raises Refused if it cannot be."""

    def retract(self, token: str) -> None:
        """`token` is served no longer. Raises Refused if that cannot be."""

    def look(self, name: str) -> None:
        """Called before the CA is told to look at `name`, which counts as failed from then on: whoever is killed
        meanwhile cannot tell. Raises Refused if it must not be told."""

    def spared(self, name: str) -> None:
        """The last `look` at `name` has not failed, or the CA was not told. Raises Refused if that cannot be noted."""


class Authorizing:
    """The authorizations of one order."""

    def __init__(self, network: Network, account: Account, caller: Caller, deadline: Deadline) -> None:
        self._network = network
        self._account = account
        self._caller = caller
        self._deadline = deadline
        self._read: dict[str, Authorization] = {}

    def run(self, urls: Sequence[str], caa_issuer: str) -> None:
        """Let the CA see that every name is ours. Raises Refused if it could not, and ProblemError.

        `caa_issuer`: what a CAA record that allows this CA says.
        """
        for url in urls:
            self._look(url)
        waiting = [url for url, each in self._read.items() if each.status == "pending"]
        tokens = [self._challenge(url).token for url in waiting]
        try:
            for token in tokens:
                self._caller.publish(token, self._account.key_authorization(token))
            for url in waiting:
                self._answer(url)
            self._await(waiting)
        finally:
            for token in tokens:
                self._caller.retract(token)
        failed = [(each.name, each.problem) for each in self._read.values() if each.status != "valid"]
        if failed:
            raise of_validation(failed, caa_issuer)

    def _look(self, url: str) -> float:
        """Read an authorization; the seconds the CA asks to wait until the next time."""
        answer = self._network.post(url)
        self._read[url] = answer.read(Authorization, "an authorization")
        return answer.retry_after()

    def _challenge(self, url: str) -> Challenge:
        each = self._read[url]
        challenge = each.http
        if challenge is None:
            offered = ", ".join(sorted({quoted(one.type, 40) for one in each.challenges[:10]})) or "none"
            raise Refused(
                "rejected",
                f"the CA has no {CHALLENGE} challenge for {each.name}, the only kind that FLM answers, but {offered}",
            )
        if not _TOKEN.fullmatch(challenge.token):
            raise Refused("server", f"the CA's challenge for {each.name} has a token that RFC 8555 does not allow")
        return challenge

    def _answer(self, url: str) -> None:
        """Tell the CA to look, unless a killed attempt has told it."""
        challenge = self._challenge(url)
        if challenge.status != "pending":
            return
        name = self._read[url].name
        self._caller.look(name)
        self._step("challenge", f"asking the CA to look at port 80 of {name}")
        try:
            self._network.post(challenge.url, {})
        except ProblemError:
            self._look(url)
            now = self._read[url]
            if now.status == "pending" and now.http is not None and now.http.status == "pending":
                self._caller.spared(name)
                raise  # it is not that it was told before

    def _await(self, waiting: list[str]) -> None:
        """Read those `waiting` anew until none is pending."""
        if not waiting:
            return
        self._step(
            "validation", f"waiting until the CA has looked at {listed([self._read[url].name for url in waiting])}"
        )
        for wait in polls(self._deadline):
            asked = [self._look(url) for url in waiting]
            for url in waiting:
                if self._read[url].status == "valid":
                    self._caller.spared(self._read[url].name)
            waiting = [url for url in waiting if self._read[url].status == "pending"]
            if not waiting:
                return
            wait(max(asked))

    def _step(self, step: str, detail: str) -> None:
        self._deadline.doing = detail
        self._caller.step(step, detail)


def listed(names: Sequence[str]) -> str:
    """Names for people: the first few, and how many more."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown
