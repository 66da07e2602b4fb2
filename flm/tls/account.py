"""The account with a CA: its key and URL, made once and kept in `account.json`, 0600.

Strategy: the key is on the disk before the CA hears of it. An attempt that is killed anywhere after that comes back
with the same key, and a CA answers the same key with the account it has (RFC 8555 §7.3.1): there is never a second
one. A CA that says it does not know the account (it was reset, or cleaned up) is asked once to make one for the same
key.

The file also says which terms of service were agreed to, and when. Blocking. Knows no order. Neither the key nor the
HMAC key of an external account binding is in any error.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from acme.messages import Directory as AcmeDirectory
from acme.messages import ExternalAccountBinding
from josepy.errors import Error as JoseError
from josepy.json_util import decode_b64jose, encode_b64jose
from josepy.jwk import JWKEC

from flm.disk.private import write_atomically
from flm.tls.account_file import FILE, Kept, load_key, new_key_pem, parse
from flm.tls.directory import Directory
from flm.tls.files import read_private
from flm.tls.network import Network
from flm.tls.refusal import CUSTOMERS_ONLY, ProblemError, Refused, of_problem, quoted
from flm.tls.words import Ask

UNREADABLE: Final = "account.unreadable"
_MAX_EAB_BYTES: Final = 4_096
_LEAST_EAB_BYTES: Final = 16  # of the key itself; HS256 wants 32, and CAs give 32 or more


class Account:
    """The account of `ask.folder` with the CA of `directory`, which `network` asks. Gives `network` key and URL.

    `is_damaged`: what was kept could not be read, and its key is lost.
    """

    def __init__(self, network: Network, directory: Directory, ask: Ask) -> None:
        """Raises IO_ERROR if the folder cannot be used for keys."""
        self._network = network
        self._directory = directory
        self._ask = ask
        self._path = Path(ask.folder) / FILE
        was_there = os.path.lexists(self._path)
        kept = _read(self._path)
        self.is_damaged = was_there and kept is None
        if kept is not None and not _is_of(kept, ask.directory):
            kept = msgspec.structs.replace(kept, directory=ask.directory, url="")  # the key alone may be of use here
        if kept is None:
            kept = Kept(ask.directory, new_key_pem().decode())
            _write(self._path, kept)
        self._kept = kept
        network.key = JWKEC(key=load_key(kept.key))
        network.account = kept.url

    @property
    def url(self) -> str:
        return self._kept.url

    @property
    def terms(self) -> str:
        """URL of the terms that were agreed to."""
        return self._kept.terms

    def key_authorization(self, token: str) -> str:
        """The key authorization of `token` (RFC 8555 §8.1)."""
        key = self._network.key
        if key is None:
            raise AssertionError("the key was set when this was made")
        return f"{token}.{encode_b64jose(key.thumbprint())}"

    def ensure(self) -> None:
        """Let the CA know the account, and the address it may write to. Raises Refused."""
        if not self._kept.url:
            self.register()
        elif self._kept.email != self._ask.email:
            self._tell_contact()

    def register(self) -> None:
        """Ask the CA for the account of this key; it makes one if it has none. Raises Refused."""
        terms = self._directory.meta.terms_of_service
        if terms and not self._ask.accept_terms:
            raise Refused(
                "rejected", f"the CA makes no account for who does not agree to its terms of service; read "
                f"{quoted(terms, 300)} and, if you agree, set acme.accept_terms to true",
            )  # fmt: skip
        wanted: dict[str, Any] = {"termsOfServiceAgreed": True} if terms else {}
        if self._ask.email:
            wanted["contact"] = [f"mailto:{self._ask.email}"]
        if self._ask.eab_kid or self._ask.eab_key_file:
            wanted["externalAccountBinding"] = self._binding()
        elif self._directory.meta.external_account_required:
            raise Refused("rejected", CUSTOMERS_ONLY)
        try:
            answer = self._network.post(self._directory.new_account, wanted, by_key=True)
        except ProblemError as error:
            raise self._refused(error) from None
        agreed = datetime.now(UTC).isoformat(timespec="seconds") if terms else ""
        self._keep(url=answer.location(), email=self._ask.email, terms=terms or "", terms_agreed_at=agreed)

    def _tell_contact(self) -> None:
        contact = [f"mailto:{self._ask.email}"] if self._ask.email else []
        try:
            self._network.post(self._kept.url, {"contact": contact})
        except ProblemError as error:
            if error.problem.name == "accountDoesNotExist":
                return self.register()
            raise self._refused(error) from None
        return self._keep(email=self._ask.email)

    def _refused(self, error: ProblemError) -> Refused:
        doing = "asking to make an account" if not self._kept.url else "asking about the account"
        if error.problem.name == "unauthorized" and self._ask.eab_kid and not self._kept.url:
            return of_problem(error, doing, advice="see that acme.eab_kid and acme.eab_file are what the CA gave")
        if error.problem.name == "unauthorized":
            move = f"if it is deactivated for good, move {self._path} away, and FLM makes a new one"
            return of_problem(error, doing, advice=move)
        return of_problem(error, doing)

    def _binding(self) -> dict[str, Any]:
        if not (self._ask.eab_kid and self._ask.eab_key_file):
            raise Refused("local", "an external account binding has two parts: set both acme.eab_kid and acme.eab_file")
        key = _eab_key(Path(self._ask.eab_key_file))
        public = self._network.key.public_key() if self._network.key is not None else None
        if public is None:
            raise AssertionError("the key was set when this was made")
        directory = AcmeDirectory({"newAccount": self._directory.new_account})
        return ExternalAccountBinding.from_data(public, self._ask.eab_kid, key, directory)

    def _keep(self, **changed: str) -> None:
        self._kept = msgspec.structs.replace(self._kept, **changed)
        _write(self._path, self._kept)
        self._network.account = self._kept.url


def _is_of(kept: Kept, directory: str) -> bool:
    """Whether an account is one with the CA of `directory`, and not of a file from elsewhere."""
    return kept.directory == directory and kept.url.startswith("https://")


def _read(path: Path) -> Kept | None:
    """What is kept; None if nothing is, or if it cannot be read, which is then set aside."""
    data = read_private(path)
    if data is None:
        return None
    try:
        return parse(data)
    except ValueError:
        os.replace(path, path.with_name(UNREADABLE))
        return None


def _write(path: Path, kept: Kept) -> None:
    write_atomically(path, msgspec.json.encode(kept))


def _eab_key(path: Path) -> str:
    """The base64url text in the file. Raises Refused, which names the file and nothing in it."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_EAB_BYTES + 1)
    except OSError as error:
        raise Refused("local", f"acme.eab_file {path} could not be read: {error.strerror or error}") from None
    try:
        text = data.decode("ascii").strip().rstrip("=")
        if len(data) > _MAX_EAB_BYTES or len(decode_b64jose(text)) < _LEAST_EAB_BYTES:
            raise ValueError("too long or too short")
    except (ValueError, JoseError):
        raise Refused(
            "local", f"acme.eab_file {path} does not hold a base64url key, as the CA shows it, and nothing else"
        ) from None
    return text
