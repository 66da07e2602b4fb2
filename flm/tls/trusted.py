"""Whose word is taken for a CA's own identity, and what it means in words when no connection comes about.

Strategy: the system's authorities (or those of SSL_CERT_FILE and SSL_CERT_DIR), and where a system has none the ones
that come with Python's certifi; with a bundle given, that alone, in which any certificate is trusted as it stands.
Verification cannot be turned off, whatever stands in the environment.

Knows no ACME: what is asked over the connection is others' business.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from flm.tls.refusal import Refused, quoted

_Wanted = TypeVar("_Wanted", bound=BaseException)

# X509_V_ERR_… of OpenSSL's x509_vfy.h, which Python passes on as a number.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_OTHER_NAME: Final = frozenset({62, 64})  # of a host, of an IP address
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})


class TrustedAdapter(HTTPAdapter):
    """Connections of requests that are verified by `ca_bundle`, a PEM file, or by the system's authorities.

    Raises Refused if that file cannot be used.
    """

    def __init__(self, ca_bundle: str) -> None:
        self._context = _context(ca_bundle)
        super().__init__(max_retries=0, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    # requests would add certifi's authorities, or what REQUESTS_CA_BUNDLE names, to those of the context.

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        return super().build_connection_pool_key_attributes(request, True, cert)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        pass


def _context(ca_bundle: str) -> ssl.SSLContext:
    if not ca_bundle:
        return ssl.create_default_context(cafile=None if _has_system_authorities() else DEFAULT_CA_BUNDLE_PATH)
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except ssl.SSLError:
        raise Refused(
            "local", f"acme.ca_bundle {ca_bundle} holds no certificate in PEM form that could be read; "
            "give the file of the authority that signed the CA's own HTTPS certificate",
        ) from None  # fmt: skip
    except OSError as error:
        raise Refused("local", f"acme.ca_bundle {ca_bundle} could not be read: {error.strerror or error}") from None
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def _has_system_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return True
    try:
        return bool(paths.capath) and any(os.scandir(paths.capath))
    except OSError:
        return False


def is_untrusted(error: BaseException) -> bool:
    """Whether a request failed since the other side's certificate is not to be trusted."""
    return _within(error, ssl.SSLCertVerificationError) is not None


def failed_request(error: requests.RequestException, url: str) -> Refused:
    """The refusal when `url` could not be asked: which step failed, and where it can be mended."""
    parts = urlsplit(url)
    place = f"{parts.hostname} port {parts.port or 443}"
    again = "see that this machine reaches the internet, and that acme.directory is right"
    if (unverified := _within(error, ssl.SSLCertVerificationError)) is not None:
        return Refused("tls", f"the CA at {place} could not be trusted: {_not_verified(unverified)}")
    if isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidProxyURL):
        why = "HTTPS_PROXY or ALL_PROXY names one of a kind that FLM cannot use; give an http:// proxy, or see NO_PROXY"
        return Refused("network", f"the proxy to {place} could not be used: {why}")
    if isinstance(error, requests.exceptions.ProxyError):
        why = _system_words(error) or "it did not let the request through"
        return Refused("network", f"the proxy to {place} could not be used: {why}; see HTTPS_PROXY and NO_PROXY")
    if (lookup := _within(error, socket.gaierror)) is not None:
        why = lookup.strerror or "no answer"
        return Refused("network", f"the CA's host name {parts.hostname} could not be looked up ({why}): {_DNS}")
    if (handshake := _within(error, ssl.SSLError)) is not None:
        reason = (handshake.reason or "no reason given").replace("_", " ").lower()
        message = f"the TLS handshake with the CA at {place} failed ({reason}); see that acme.directory is right"
        return Refused("tls", message)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Refused("network", f"the CA at {place} could not be reached: no answer to connecting; {again}")
    if isinstance(error, requests.Timeout) or _within(error, TimeoutError) is not None:
        return Refused("network", f"the CA at {place} was asked and did not answer in time; try again later")
    if _within(error, ConnectionRefusedError) is not None:
        return Refused("network", f"the CA at {place} could not be reached: the connection was refused; {again}")
    if isinstance(error, requests.exceptions.ConnectionError) and (why := _system_words(error)):
        return Refused("network", f"the connection with the CA at {place} failed: {why}; {again}")
    return Refused("network", f"the CA at {place} hung up in the middle of its answer; try again later")


_DNS: Final = "see that this machine's DNS works, and that acme.directory is right"


def _not_verified(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired, if the clock here is right; see that it is (date -u)"
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet, if the clock here is right; see that it is (date -u)"
    if code in _OTHER_NAME:
        return "its certificate is for another host; see that acme.directory names the host as the certificate does"
    if code in _UNKNOWN_AUTHORITY:
        return (
            "its certificate is signed by an authority that nobody here knows; if it is a CA of your own, set "
            "acme.ca_bundle to a file with the authority's certificate"
        )
    return f"{quoted(error.verify_message)}; if it is a CA of your own, see acme.ca_bundle"


def _system_words(error: BaseException) -> str:
    said = (each.strerror for each in _causes(error) if isinstance(each, OSError) and each.strerror)
    return next(said, "").lower()


def _within(error: BaseException, wanted: type[_Wanted]) -> _Wanted | None:
    return next((each for each in _causes(error) if isinstance(each, wanted)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and all it was made of: requests and urllib3 pass causes on as arguments, as `reason`, and by raising."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]
        waiting += [found for found in reversed(inner) if isinstance(found, BaseException)]
