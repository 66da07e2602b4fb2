"""What a CA offers: the directory of RFC 8555 §7.1.1 with its terms, profiles, and renewal information (RFC 9773).

Knows what the fields mean; asks nothing but the directory itself.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import msgspec

from flm.tls.network import Network
from flm.tls.refusal import ProblemError, of_problem


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """About the CA. `profiles`: name to description; None where it has no such thing."""

    terms_of_service: str | None = None
    external_account_required: bool | None = None
    caa_identities: list[str] | None = None
    profiles: dict[str, msgspec.Raw] | None = None


class Directory(msgspec.Struct, frozen=True, rename="camel"):
    """URLs of a CA. `renewal_info`: None where it has no such thing."""

    new_nonce: str
    new_account: str
    new_order: str
    renewal_info: str | None = None
    meta: Meta = Meta()

    @property
    def caa_issuer(self) -> str:
        """What a CAA record that allows this CA says."""
        return self.meta.caa_identities[0] if self.meta.caa_identities else "the CA's domain"


def fetch(network: Network, url: str) -> tuple[Directory, float | None]:
    """The directory at `url`, and the CA's clock when it answered (Unix seconds; None if it did not say).

    Raises Refused. `network` gets its nonces from that CA then.
    """
    try:
        answer = network.get(url)
    except ProblemError as error:
        raise of_problem(error, "asking for its directory", advice="see that acme.directory is right") from None
    directory = answer.read(Directory, "an ACME directory")
    network.new_nonce = directory.new_nonce
    try:
        clock = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        clock = None
    return directory, clock
