"""Requests to a CA: signed, bounded in time and bytes, and with the CA's own HTTPS verified.

Strategy: the signing is the acme package's (JWS with nonce, URL and key id, RFC 8555 §6.2), the asking is requests'
with nothing left to its defaults. The package's own client retries a refused nonce once and reads answers to whatever
end; here a nonce is retried until it is taken or NONCE_ATTEMPTS have been, an answer has MAX_ANSWER_BYTES, all waiting
ends with the attempt's deadline, a redirect is told instead of followed, and an answer that is no JSON is an answer
that says so. A connection that breaks and a 5xx are tried again, since each request of an issuance may be repeated.

Proxies are taken from the environment (HTTPS_PROXY, NO_PROXY), credentials of .netrc are not. Blocking. Knows no
account file and no order; what an answer means is its caller's.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
from acme import jws
from josepy.errors import DeserializationError
from josepy.json_util import decode_b64jose
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from flm import __version__
from flm.tls.deadline import Deadline
from flm.tls.refusal import Problem, ProblemError, Refused, quoted
from flm.tls.trusted import TrustedAdapter, failed_request, is_untrusted

MAX_ANSWER_BYTES: Final = 262_144  # a chain of certificates is some 8 KB, a directory 1 KB
NONCE_ATTEMPTS: Final = 200  # of one request: with 90 % of the nonces refused, one request in a billion fails
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0  # from a request to its answer's next bytes; finalizing may be done within the request
_PAUSES: Final = (0.5, 1.5)  # seconds before a request that broke, or got a 5xx, is made again
_CHUNK_BYTES: Final = 16_384
_LONGEST_URL: Final = 2_048
_PLAIN: Final = frozenset({404, 410, 429})  # which say what they mean without a problem document too
_SHOWN_BYTES: Final = 2_000
_PROBLEM: Final = "application/problem+json"

_Shape = TypeVar("_Shape")


class Answer:
    """One answer that is no problem: `status`, `headers` (names in any case), `body` (at most MAX_ANSWER_BYTES)."""

    def __init__(self, url: str, response: requests.Response, body: bytes) -> None:
        self.url = url
        self.status = response.status_code
        self.headers = response.headers
        self.body = body
        self.links = _links(url, response)

    def read(self, shape: type[_Shape], what: str) -> _Shape:
        """The body as `shape`. Raises Refused, naming it as `what`, if it is no such JSON."""
        try:
            return msgspec.json.decode(self.body, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _no_acme(self.url, self.status, self.body, f"not {what}: {error}") from None

    def location(self) -> str:
        """Where what was made is. Raises Refused if the CA did not say."""
        found = self.headers.get("location", "")
        if not found:
            raise Refused("server", f"{_host(self.url)} made something and did not say where (no Location header)")
        return urljoin(self.url, found)

    def retry_after(self) -> float:
        """Seconds to wait, as the answer says; 0 if it does not."""
        return _retry_after(self.headers.get("retry-after", ""), self.headers.get("date", ""))


class Network:
    """Speaks with one CA until `deadline`. `key` signs; `account` is the account's URL, once there is one."""

    def __init__(self, deadline: Deadline, ca_bundle: str) -> None:
        """`ca_bundle`: file of authorities that the CA is verified by; empty: the system's. Raises Refused."""
        self.key: JWKEC | None = None
        self.account = ""
        self.new_nonce = ""
        self._deadline = deadline
        self._nonces: list[bytes] = []
        self._session = requests.Session()
        self._session.auth = _no_credentials
        self._session.headers.update({"User-Agent": f"flm/{__version__}", "Accept-Encoding": "identity"})
        adapter = TrustedAdapter(ca_bundle)
        self._session.mount("https://", adapter)

    def close(self) -> None:
        self._session.close()

    def get(self, url: str) -> Answer:
        """What `url` holds. Raises Refused, and ProblemError for the CA's own refusals."""
        return self._checked(*self._ask("GET", url, b"", {"Accept": "application/json"}))

    def post(self, url: str, payload: object = None, *, by_key: bool = False) -> Answer:
        """A signed request: `payload` as JSON; None asks for what is there (POST-as-GET). `by_key`: signed as the key
        itself, for want of an account. Raises Refused, and ProblemError for the CA's own refusals."""
        body = b"" if payload is None else msgspec.json.encode(payload)
        for _ in range(NONCE_ATTEMPTS):
            try:
                return self._post_once(url, body, by_key)
            except ProblemError as error:
                if error.problem.name != "badNonce":
                    raise
        raise Refused("server", f"{_host(url)} refused {NONCE_ATTEMPTS} nonces in a row (badNonce), each its own")

    def _post_once(self, url: str, body: bytes, by_key: bool) -> Answer:
        if self.key is None:
            raise AssertionError("a request is signed with the account's key")
        nonce = self._nonces.pop() if self._nonces else self._fresh_nonce()
        who = {} if by_key else {"kid": self.account}
        signed = jws.JWS.sign(body, key=self.key, alg=ES256, nonce=nonce, url=url, **who)
        headers = {"Content-Type": "application/jose+json", "Accept": "*/*"}
        response, content = self._ask("POST", url, signed.json_dumps().encode(), headers)
        self._keep_nonce(response)
        return self._checked(response, content)

    def _fresh_nonce(self) -> bytes:
        response, content = self._ask("HEAD", self.new_nonce, b"", {})
        self._checked(response, content)
        self._keep_nonce(response)
        if not self._nonces:
            raise Refused("server", f"{_host(self.new_nonce)} gave no nonce when asked for one (Replay-Nonce header)")
        return self._nonces.pop()

    def _keep_nonce(self, response: requests.Response) -> None:
        try:
            nonce = decode_b64jose(response.headers.get("replay-nonce", ""))
        except (DeserializationError, ValueError):
            return  # one that nobody can send back; another is asked for
        if nonce:
            self._nonces = [nonce]  # the newest lives longest

    def _ask(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> tuple[requests.Response, bytes]:
        """Ask, and again after a broken connection or a 5xx that names no time to wait."""
        _check_url(url)
        for pause in (*_PAUSES, None):
            try:
                response, content = self._ask_once(method, url, body, headers)
            except requests.RequestException as error:
                self._deadline.check()
                if pause is None or is_untrusted(error):
                    raise failed_request(error, url) from None
            else:
                if pause is None or response.status_code < 500 or "retry-after" in response.headers:
                    return response, content
            self._deadline.sleep(pause)
        raise AssertionError("the last time ends in an answer or a refusal")

    def _ask_once(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> tuple[requests.Response, bytes]:
        left = self._deadline.left()
        timeout = (min(CONNECT_SECONDS, left), min(ANSWER_SECONDS, left))
        with self._session.request(
            method, url, data=body or None, headers=headers, timeout=timeout, allow_redirects=False, stream=True
        ) as response:
            content = b""
            for chunk in response.iter_content(_CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise _no_acme(url, response.status_code, b"", f"larger than {MAX_ANSWER_BYTES} bytes")
                self._deadline.check()
        return response, content

    @staticmethod
    def _checked(response: requests.Response, content: bytes) -> Answer:
        url, status = str(response.request.url), response.status_code
        if status < 300:
            return Answer(url, response, content)
        if status < 400:
            raise Refused(
                "server",
                f"{_host(url)} sent FLM on to {quoted(response.headers.get('location', 'nowhere'), 300)} "
                f"(HTTP {status}), which no ACME server does; set acme.directory to the URL of its directory",
            )
        wait = _retry_after(response.headers.get("retry-after", ""), response.headers.get("date", ""))
        try:
            problem = msgspec.json.decode(content, type=Problem)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            problem = None
        if problem is None or (problem.type is None and _media_type(response) != _PROBLEM):
            if status not in _PLAIN:
                raise _no_acme(url, status, content, "not the problem document that ACME asks for", wait)
            problem = Problem(
                title=f"HTTP {status}", detail=content[:_SHOWN_BYTES].decode("utf-8", "replace").strip() or None
            )
        raise ProblemError(problem, status, wait, _links(url, response))


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _no_acme(url: str, status: int, body: bytes, why: str, retry_after: float = 0.0) -> Refused:
    start = body[:_SHOWN_BYTES].decode("utf-8", "replace")
    shown = f"; it begins with {quoted(start, 160)}" if start.strip() else ""
    advice = (
        "the CA is out of order, which may pass: try again later"
        if status >= 500
        else "see that acme.directory is the URL of an ACME directory, and that no proxy or login page stands between"
    )
    return Refused(
        "server", f"{_host(url)} answered HTTP {status}, and what came is {why}{shown}; {advice}", retry_after
    )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and len(url) <= _LONGEST_URL
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable():
        raise Refused(
            "server", f"{quoted(url, 200)} is no https:// URL, and ACME is spoken over HTTPS only; see acme.directory"
        )


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _media_type(response: requests.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _links(url: str, response: requests.Response) -> dict[str, str]:
    try:
        return {name: urljoin(url, link["url"]) for name, link in response.links.items() if "url" in link}
    except (ValueError, KeyError):
        return {}


def _retry_after(text: str, date: str) -> float:
    """Seconds in a Retry-After header: a number, or a date, which counts from the answer's own, whatever our clock."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    try:
        now = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return max(0.0, at - now)
