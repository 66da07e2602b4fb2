"""TLS towards engines: whose word for an engine's identity is taken, and what a failed handshake means in words.

Does not know which engine is asked, nor when: the pool and the probes use the same context and the same words.

Strategy: the standard library's defaults verify chain, dates and host name (or IP address); with an authority of its
own an engine is verified against that alone, and any certificate in it is trusted as it stands, as curl's --cacert
does, so that the certificate of one server can be named. Verification cannot be turned off.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final

MAX_CA_BYTES: Final = 262_144  # a file of authorities; the bundle of a whole system is about 220 KB

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

# X509_V_ERR_… of OpenSSL's x509_vfy.h, which Python passes on as a number.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_SELF_SIGNED: Final = 18
_OTHER_NAME: Final = frozenset({62, 64})  # of a host, of an IP address
_UNKNOWN_AUTHORITY: Final = frozenset({2, 19, 20, 21})


def authorities(data: bytes) -> str:
    """The certificates in `data`, a PEM file, and nothing else that stands there (a private key, say).

    Raises ValueError, completing "the file …", if there is none, if one of them cannot be read, or if it is larger
    than MAX_CA_BYTES.
    """
    if len(data) > MAX_CA_BYTES:
        raise ValueError(f"is larger than {MAX_CA_BYTES} bytes")
    blocks = _CERTIFICATE.findall(data)
    if not blocks:
        raise ValueError(
            "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----); one in DER form becomes PEM by "
            "`openssl x509 -inform der -in FILE -out FILE.pem`"
        )
    certificates: dict[str, None] = {}  # in order, each once
    for number, block in enumerate(blocks, 1):
        try:
            der = ssl.PEM_cert_to_DER_cert(block.decode("ascii"))
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        except (ValueError, ssl.SSLError):
            raise ValueError(f"holds a certificate that cannot be read (number {number} of {len(blocks)})") from None
        certificates[ssl.DER_cert_to_PEM_cert(der)] = None
    return "".join(certificates)


def client_context(ca: str | None) -> ssl.SSLContext:
    """A context that verifies engines by `ca` (see `authorities`) alone, or by the system's authorities if None.

    Blocks: it may read the system's certificates. Raises ssl.SSLError for a `ca` that holds no certificate.
    """
    context = ssl.create_default_context(cadata=ca)
    if ca is not None:
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    return context


def handshake_failure(error: Exception, authority: str, *, own_ca: bool = False) -> str:
    """Why no TLS connection to `authority`, `host:port`, came about: what is wrong, and where it can be mended.
    `own_ca`: a file with the engine's authority was given."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_verified(error, authority, _ANOTHER_FILE if own_ca else _TRUST)
    if isinstance(error, ssl.SSLError) and error.reason not in _NO_TLS:
        return f"the TLS handshake failed ({_words(error)})"
    return "what listens there does not speak TLS; if it is plain HTTP, its URL begins with http://"


# What OpenSSL calls bytes that are no TLS, from 1.1.1 to 3.5. The end of the connection counts as no TLS as well.
_NO_TLS: Final = frozenset({
    "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE", "BAD_RECORD_TYPE", "UNEXPECTED_EOF_WHILE_READING", "DATA_BETWEEN_CCS_AND_FINISHED", None,
})  # fmt: skip


def _not_verified(error: ssl.SSLCertVerificationError, authority: str, advice: str) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate, or one that vouches for it, has expired; the engine needs a new one"
    if code == _NOT_YET_VALID:
        return "its certificate, or one that vouches for it, is not valid yet; is a clock wrong, there or here?"
    if code in _OTHER_NAME:
        another = f"its certificate is for another name than {authority}"
        return f"{another}; the URL must name the host as the certificate does"
    if code == _SELF_SIGNED:
        return f"its certificate is not trusted, being signed by itself only; {advice}"
    if code in _UNKNOWN_AUTHORITY:
        return f"its certificate is not trusted, being signed by an authority nobody here knows; {advice}"
    return f"its certificate is not trusted: {error.verify_message}"


_ANOTHER_FILE: Final = "the file that was given with --ca-file holds neither that certificate nor its authority's"
_TRUST: Final = "name a file with that certificate, or its authority's, with `flm engines add … --ca-file`"


def _words(error: ssl.SSLError) -> str:
    return (error.reason or "no reason given").replace("_", " ").lower()


async def speaks_tls(host: str, port: int, seconds: float) -> bool:
    """Whether a TLS handshake comes about there within `seconds`, whoever answers. Nothing is sent or believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # allowed unverified-tls: nothing is sent
    context.verify_mode = ssl.CERT_NONE  # allowed unverified-tls: nothing is believed
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            transport, protocol = await loop.create_connection(lambda: _Hearing(loop), host, port, ssl=context)
    except OSError:
        return False
    transport.abort()
    await protocol.lost
    return True


class _Hearing(asyncio.Protocol):
    """Waits for the end only. `lost` is done when the connection is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lost = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
