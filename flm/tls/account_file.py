"""What is written down of an account with a CA: the content of `account.json`. Pure; asks no CA."""

from __future__ import annotations

from typing import Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

FILE: Final = "account.json"


class Kept(msgspec.Struct):
    """What the file holds. `key`: PKCS#8 PEM. `url`: empty until the CA has answered. `email`: what the CA was told."""

    directory: str
    key: str
    url: str = ""
    email: str = ""
    terms: str = ""
    terms_agreed_at: str = ""

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("url", self.url)]

    def __repr__(self) -> str:
        """Without the key."""
        return f"Kept({self.directory!r}, url={self.url!r})"


def parse(data: bytes) -> Kept:
    """What `data` says. Raises ValueError, without a byte of it, if that is no account with a key that can be used."""
    try:
        kept = msgspec.json.decode(data, type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ValueError("no account that FLM has written") from None
    load_key(kept.key)
    return kept


def new_key_pem() -> bytes:
    """A new EC P-256 key, as PKCS#8 PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """An EC P-256 key. Raises ValueError, without the key."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except Exception:
        raise ValueError("no private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an EC P-256 key")
    return key
