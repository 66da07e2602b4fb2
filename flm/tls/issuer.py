"""One issuance over ACME (RFC 8555) with http-01: from names to a pair whose key and chain fit.

Strategy: a straight walk (directory, account, order, authorizations, finalize, download) in which every state that a
killed attempt can leave is a state to go on from. So an order is written down before anything else happens to it, what
is valid already is not asked for again, and a request that the CA refuses since it was made before is answered by
looking at what the CA has. A resumed order that turns out to be spoilt is replaced by a new one, once.

The CA's answers are read strictly and its refusals told in its own words (`refusal`). What comes out has been taken
apart and checked against key and names (`pair`), so a chain of somebody else never leaves here.

Blocking; the supervisor runs it in a child (`attempt`). Publishes challenges through its caller, serves nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.json_util import encode_b64jose

from flm.errors import CommandError
from flm.tls import account, account_file, names, order, pair, reach, renewal
from flm.tls import directory as directories
from flm.tls.account import Account
from flm.tls.account_file import new_key_pem
from flm.tls.authorize import Authorizing, Caller, listed
from flm.tls.deadline import Deadline, polls
from flm.tls.network import Answer, Network
from flm.tls.order import Pending
from flm.tls.pair import Pair
from flm.tls.refusal import Identifier, Problem, ProblemError, Refused, duration, of_problem, quoted
from flm.tls.words import Ask

_CLOCKS_APART: Final = 300.0  # seconds between the CA's clock and ours that are worth a word
_PROBE_BYTES: Final = 32  # of a token that nobody can guess
_REPLACES_REFUSED: Final = frozenset({"alreadyReplaced", "malformed", "unauthorized", "serverInternal", "conflict"})

_Shape = TypeVar("_Shape")


class Order(msgspec.Struct, frozen=True):
    """RFC 8555 §7.1.3."""

    status: str
    identifiers: list[Identifier]
    authorizations: list[str]
    finalize: str
    certificate: str | None = None
    error: Problem | None = None


class BadChainError(Refused):
    """What the CA sent is no chain for the order's key and names."""


def issue(ask: Ask, caller: Caller, network: Network, deadline: Deadline) -> Pair:
    """A new pair for `ask.names`, its certificate from the CA at `ask.directory`.

    Raises Refused, and IO_ERROR if `ask.folder` cannot be used.
    """
    names.check(ask.names)
    issuance = _Issuance(ask, caller, network, deadline)
    return issuance.run()


class _Issuance:
    def __init__(self, ask: Ask, caller: Caller, network: Network, deadline: Deadline) -> None:
        self._ask = ask
        self._caller = caller
        self._network = network
        self._deadline = deadline
        self._folder = Path(ask.folder)
        self._step("directory", f"asking {ask.directory} what it offers")
        self._directory, clock = directories.fetch(network, ask.directory)
        self._compare_clocks(clock)
        self._check_profile()
        self._account = Account(network, self._directory, ask)

    def run(self) -> Pair:
        self._ensure_account()
        self._check_names_lead_here()
        resumed = self._with_account(self._resume)
        if resumed is not None:
            try:
                found = self._complete(*resumed)
                if self._is_fresh(found):
                    return found
            except Refused as refused:
                if refused.kind not in ("validation", "rejected") and not isinstance(refused, BadChainError):
                    raise
                self._step("order", f"the order that was under way came to nothing ({refused.message}); making another")
        return self._complete(*self._with_account(self._place))

    # --- before the order ---

    def _step(self, step: str, detail: str) -> None:
        self._deadline.doing = detail
        self._caller.step(step, detail)

    def _compare_clocks(self, clock: float | None) -> None:
        apart = time.time() - clock if clock is not None else 0.0
        if abs(apart) > _CLOCKS_APART:
            which = "ahead of" if apart > 0 else "behind"
            self._caller.step(
                "clock",
                f"the clock here is {duration(abs(apart))} {which} the CA's; set it right, or a new certificate may "
                "not be valid yet, or be renewed too late",
            )

    def _check_profile(self) -> None:
        offered, wanted = self._directory.meta.profiles, self._ask.profile
        if wanted and offered is None:
            self._caller.step("profile", f"this CA has no profiles, so acme.profile {quoted(wanted)} is left out")
        elif wanted and offered is not None and wanted not in offered:
            have = ", ".join(quoted(each, 60) for each in list(offered)[:20])
            raise Refused("rejected", f"this CA has no profile {quoted(wanted)}; set acme.profile to one of {have}")

    @property
    def _profile(self) -> str:
        return self._ask.profile if self._directory.meta.profiles else ""

    def _ensure_account(self) -> None:
        if self._account.url:
            self._step("account", f"using the account {self._account.url}")
        else:
            terms = self._directory.meta.terms_of_service
            agreed = f", agreeing to its terms of service, {terms}" if terms and self._ask.accept_terms else ""
            lost = f", since {account_file.FILE} was damaged and is {account.UNREADABLE} now"
            why = lost if self._account.is_damaged else ""
            self._step("account", f"making an account with the CA{why}{agreed}")
        self._account.ensure()

    def _with_account(self, do: Callable[[], _Shape]) -> _Shape:
        """`do`; if the CA does not know the account any more, it is made once more with the same key."""
        try:
            return do()
        except ProblemError as error:
            if error.problem.name != "accountDoesNotExist":
                raise of_problem(error, self._deadline.doing, issuer=self._directory.caa_issuer) from None
        self._step("account", "making the account anew, since the CA does not know it any more")
        self._account.register()
        try:
            return do()
        except ProblemError as error:
            raise of_problem(error, self._deadline.doing, issuer=self._directory.caa_issuer) from None

    def _check_names_lead_here(self) -> None:
        self._step("names", f"looking whether {listed(self._ask.names)} can be reached on port {reach.PORT}")
        token = secrets.token_urlsafe(_PROBE_BYTES)
        self._caller.publish(token, self._account.key_authorization(token))
        try:
            doubts = reach.warnings(self._ask.names, token, self._account.key_authorization(token))
        finally:
            self._caller.retract(token)
        for doubt in doubts:
            self._caller.step("warning", doubt)

    # --- the order ---

    def _resume(self) -> tuple[Pending, Order] | None:
        """The order that an earlier attempt left, if the CA has it and it is of use."""
        pending = order.read(self._folder)
        if pending is None or pending.account != self._account.url or pending.profile != self._profile:
            return None
        if sorted(pending.names) != sorted(self._ask.names):
            return None
        self._step("order", f"going on with the order that was under way, {pending.url}")
        try:
            found = self._network.post(pending.url).read(Order, "an order")
        except ProblemError as error:
            if error.problem.name == "accountDoesNotExist" or error.status == 429 or error.status >= 500:
                raise
            return None
        except Refused:  # one that is elsewhere, where nobody answers, must not be in the way for good
            if urlsplit(pending.url)[:2] == urlsplit(self._directory.new_order)[:2]:
                raise
            return None
        return None if found.status == "invalid" else (pending, found)

    def _place(self) -> tuple[Pending, Order]:
        self._step("order", f"ordering a certificate for {listed(self._ask.names)}")
        payload: dict[str, object] = {"identifiers": [{"type": "dns", "value": name} for name in self._ask.names]}
        if self._profile:
            payload["profile"] = self._profile
        key = new_key_pem()
        answer = self._order(payload)
        pending = Pending(answer.location(), self._account.url, self._ask.names, self._profile, key.decode())
        order.write(self._folder, pending)
        return pending, answer.read(Order, "an order")

    def _order(self, payload: dict[str, object]) -> Answer:
        """With what it replaces (RFC 9773 §5), or without if that is what the CA refuses."""
        replaces = renewal.identity(self._ask.replaces) if self._directory.renewal_info else None
        if replaces is not None:
            try:
                return self._network.post(self._directory.new_order, {**payload, "replaces": replaces})
            except ProblemError as error:
                if error.problem.name not in _REPLACES_REFUSED and error.status not in (404, 409):
                    raise
        return self._network.post(self._directory.new_order, payload)

    def _complete(self, pending: Pending, found: Order) -> Pair:
        """From an order in any state to its pair. Raises Refused."""
        try:
            if found.status == "pending":
                self._authorize(found.authorizations)
                found = self._settled(pending.url, ("pending",))
            if found.status == "ready":
                found = self._finalize(pending, found)
            if found.status != "valid":
                found = self._settled(pending.url, ("pending", "ready", "processing"))
            return self._download(pending, found)
        except ProblemError as error:
            raise of_problem(error, self._deadline.doing, issuer=self._directory.caa_issuer) from None

    def _finalize(self, pending: Pending, found: Order) -> Order:
        self._step("finalize", "asking the CA for the certificate")
        try:
            return self._network.post(found.finalize, {"csr": _request(pending)}).read(Order, "an order")
        except ProblemError as error:
            if error.problem.name != "orderNotReady":
                raise
        return self._network.post(pending.url).read(Order, "an order")  # it was asked before, and works on it

    def _settled(self, url: str, unsettled: Sequence[str]) -> Order:
        """The order once its status is another. Raises Refused if it is invalid then."""
        for wait in polls(self._deadline):
            answer = self._network.post(url)
            found = answer.read(Order, "an order")
            if found.status == "invalid":
                raise self._spoilt(found)
            if found.status not in unsettled:
                return found
            wait(answer.retry_after())
        raise AssertionError("waiting has an end only by the deadline")

    def _authorize(self, urls: list[str]) -> None:
        Authorizing(self._network, self._account, self._caller, self._deadline).run(urls, self._directory.caa_issuer)

    def _spoilt(self, found: Order) -> Refused:
        problem = found.error or Problem(title="the order is invalid")
        error = ProblemError(problem, 403, 0.0, {})
        return of_problem(error, self._deadline.doing, name=self._ask.names[0], issuer=self._directory.caa_issuer)

    # --- the certificate ---

    def _download(self, pending: Pending, found: Order) -> Pair:
        if not found.certificate:
            raise Refused("server", "the CA calls the order done and does not say where the certificate is")
        self._step("download", "fetching the certificate")
        chain = self._network.post(found.certificate).body
        try:
            got = pair.read(pending.key.encode() + chain)
        except CommandError as error:
            raise _bad_chain(error) from None
        now = time.time()
        if not got.not_before <= now <= got.not_after:
            when = "is not valid yet" if now < got.not_before else "has expired"
            self._caller.step(
                "clock",
                f"the new certificate {when} by the clock here, which says {pair.moment(now)}, and is valid from "
                f"{pair.moment(got.not_before)} to {pair.moment(got.not_after)}; set the clock right",
            )
        try:
            pair.check(got, min(max(now, got.not_before), got.not_after), self._ask.names)
        except CommandError as error:
            raise _bad_chain(error) from None
        return got

    def _is_fresh(self, found: Pair) -> bool:
        """Whether the certificate of a resumed order is one to be had, not the one that is to be replaced."""
        left = found.not_after - time.time()
        return left > (found.not_after - found.not_before) / 2 and found.fingerprint != renewal.fingerprint(
            self._ask.replaces
        )


def _bad_chain(error: CommandError) -> BadChainError:
    return BadChainError(
        "server", f"the CA sent a certificate that is not used: {error.message}; FLM makes another order next time"
    )


def _request(pending: Pending) -> str:
    """The certificate signing request, base64url of its DER."""
    key = serialization.load_pem_private_key(pending.key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Refused("local", f"{order.FILE} holds a key of another kind than FLM makes; move it away")
    names_of_it = x509.SubjectAlternativeName([x509.DNSName(name) for name in pending.names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(names_of_it, critical=False).sign(key, hashes.SHA256())
    return encode_b64jose(signed.public_bytes(serialization.Encoding.DER))
