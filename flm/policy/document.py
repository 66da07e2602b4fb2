"""The security policy: the JSON document a person writes in, a frozen `Policy` out, and back.

Strategy: read strictly, since a policy that is half understood lets somebody in. Every field that is not known, every
value of another type, a field that is written twice and a limit that contradicts itself is refused, with a text that
says where it stands and what is allowed. What is absent is its default; the default of everything is to allow all,
but for failed authentication.

Does not know where a policy is stored, nor how it is carried out.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn, cast, get_args

import msgspec

from flm.errors import CommandCode, CommandError
from flm.policy.access import host_name

MAX_DOCUMENT_BYTES: Final = 262_144  # some ten thousand networks; every worker holds them
MAX_RPM: Final = 10_000_000  # a request each 6 microseconds: more than a machine can take
_SHOWN: Final = 60  # characters of a wrong value that an error repeats

AddressHeader = Literal["x-forwarded-for", "forwarded"]
ADDRESS_HEADERS: Final[tuple[AddressHeader, ...]] = get_args(AddressHeader)
ANY_ORIGIN: Final = "*"
_TRUSTS_EVERYBODY: Final = "trusts everybody, who could then name any address as his own"

Networkish = ipaddress.IPv4Network | ipaddress.IPv6Network


class RateLimit(msgspec.Struct, frozen=True):
    """`rpm` requests a minute in the long run (1 to MAX_RPM), `burst` of them at once (1 to MAX_RPM)."""

    rpm: int
    burst: int


class Policy(msgspec.Struct, frozen=True):
    """Who gets in and how much, as `parse_policy` has checked it. Networks and origins stand as they were written.

    Empty: `ip_whitelist` all addresses, `allowed_origins` every origin, `trusted_proxies` none, `allowed_hosts` none
    beyond those of the listener. A limit of None does not limit. Limits: `rate_limit` each key, `ip_rate_limit` each
    address, `global_rate_limit` all requests together, `auth_failure_limit` each address's requests with a bad key.
    """

    ip_whitelist: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None
    ip_rate_limit: RateLimit | None = None
    global_rate_limit: RateLimit | None = None
    auth_failure_limit: RateLimit | None = RateLimit(60, 20)
    trusted_proxies: tuple[str, ...] = ()
    client_address_header: AddressHeader = "x-forwarded-for"
    allowed_hosts: tuple[str, ...] = ()


def parse_policy(text: bytes) -> Policy:
    """The policy that the JSON document `text` (UTF-8) describes. Raises POLICY_INVALID saying where and what."""
    fields = _object("", _decoded(text), _FIELDS)
    read: dict[str, Any] = {}
    for name, value in fields.items():
        attribute, reader = _FIELDS[name]
        read[attribute] = reader(name, value)
    return Policy(**read)


def rendered(policy: Policy) -> dict[str, Any]:
    """The document of a policy, complete: every field stands in it, and `parse_policy` gives the same policy again."""
    return {
        "ip_whitelist": list(policy.ip_whitelist),
        "cors": {"allowed_origins": list(policy.allowed_origins)},
        "rate_limit": _rendered_limit(policy.rate_limit),
        "ip_rate_limit": _rendered_limit(policy.ip_rate_limit),
        "global_rate_limit": _rendered_limit(policy.global_rate_limit),
        "auth_failure_limit": _rendered_limit(policy.auth_failure_limit),
        "trusted_proxies": list(policy.trusted_proxies),
        "client_address_header": policy.client_address_header,
        "allowed_hosts": list(policy.allowed_hosts),
    }


def _rendered_limit(limit: RateLimit | None) -> dict[str, int]:
    return {"rpm": 0} if limit is None else {"rpm": limit.rpm, "burst": limit.burst}


def network(text: str) -> Networkish:
    """An address or a CIDR network; one of v4-mapped addresses counts as IPv4. Raises ValueError saying what is wrong.

    Zones, netmasks and networks with bits beyond their prefix are refused: each reads like something else than it is.
    """
    address, slash, prefix = text.partition("/")
    if "%" in text:
        raise ValueError("a zone (%) belongs to one machine and cannot stand in a policy")
    if slash and not (prefix.isascii() and prefix.isdigit()):
        raise ValueError("after `/` stands the length of the prefix, a number of bits")
    if len(prefix) > 1 and prefix[0] == "0":
        raise ValueError("the length of a prefix is written without leading zeros, which others read as octal")
    try:
        host = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError("this is no IPv4 or IPv6 address or CIDR network") from None
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"an IPv{host.version} prefix has 0 to {host.max_prefixlen} bits") from None
    if loose.network_address != host:
        raise ValueError(f"it has bits set beyond its prefix: write {loose} for the network or {host} for the address")
    return _unmapped(loose)


def _unmapped(found: Networkish) -> Networkish:
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96:
        inner = found.network_address.ipv4_mapped
        if inner is not None:
            return ipaddress.IPv4Network((inner, found.prefixlen - 96))
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


def _invalid(where: str, what: str) -> NoReturn:
    message = f"the policy is not valid: {where}: {what}" if where else f"the policy is not valid: {what}"
    raise CommandError(CommandCode.POLICY_INVALID, message)


def _decoded(text: bytes) -> object:
    if len(text) > MAX_DOCUMENT_BYTES:
        _invalid("", f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        # Not msgspec: it would take the last of two equal names, and of two allow-lists one would go unseen.
        return json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        _invalid("", f"it is not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        _invalid("", f"it is not JSON: {error.msg} (line {error.lineno}, column {error.colno})")
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        _invalid("", "it is not JSON that FLM reads: a number is too long or brackets are nested too deep")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            _invalid("", f"the field {_quoted(name)} stands there twice")
        fields[name] = value
    return fields


def _no_number(text: str) -> NoReturn:
    _invalid("", f"it is not JSON: {text} is no number")


def _quoted(value: object) -> str:
    """A value as JSON, cut to what an error can bear; never a control character."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


_Known = dict[str, tuple[str, Callable[[str, object], Any]]] | tuple[str, ...]


def _object(where: str, value: object, known: _Known) -> dict[str, object]:
    if not isinstance(value, dict):
        _invalid(where, f"it must be an object {{…}}, not {_quoted(value)}")
    for name in value:
        if name not in known:
            _invalid(where, f"there is no field {_quoted(name)}; known: {', '.join(known)}")
    return cast(dict[str, object], value)


def _texts(where: str, value: object, check: Callable[[str], object]) -> tuple[str, ...]:
    """A list of texts, each of which `check` takes, or raises ValueError saying what is wrong with it."""
    if not isinstance(value, list):
        hint = "; leave the field out for its default" if value is None else ""
        _invalid(where, f"it must be a list […], not {_quoted(value)}{hint}")
    for index, item in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(item, str):
            _invalid(place, f"it must be a text, not {_quoted(item)}")
        try:
            check(item)
        except ValueError as error:
            _invalid(place, f"{_quoted(item)}: {error}")
    return tuple(value)


def _networks(where: str, value: object) -> tuple[str, ...]:
    return _texts(where, value, _network_allowed)


def _network_allowed(text: str) -> None:
    if text == "*":
        raise ValueError("write 0.0.0.0/0 and ::/0 for every address, or leave the list out")
    network(text)


def _proxies(where: str, value: object) -> tuple[str, ...]:
    texts = _texts(where, value, _proxy_allowed)
    networks = [network(text) for text in texts]
    v4 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network))
    joined: list[Networkish] = [*v4, *v6]
    for whole in joined:
        if whole.prefixlen == 0:
            _invalid(where, f"all of it together is {whole}, which {_TRUSTS_EVERYBODY}")
    return texts


def _proxy_allowed(text: str) -> None:
    if text == "*":
        raise ValueError("if every address were a trusted proxy, everybody could name the address he comes from")
    if network(text).prefixlen == 0:
        raise ValueError(f"a network of all addresses {_TRUSTS_EVERYBODY}")


def _cors(where: str, value: object) -> tuple[str, ...]:
    fields = _object(where, value, ("allowed_origins",))
    if "allowed_origins" not in fields:
        return ()
    place = f"{where}.allowed_origins"
    origins = _texts(place, fields["allowed_origins"], check_origin)
    if ANY_ORIGIN in origins and len(origins) > 1:
        _invalid(place, 'beside "*", which is every origin, no other may stand')
    return origins


_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9._:\[\]-]+)")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def check_origin(text: str) -> None:
    """Raises ValueError unless `text` is `*` or an origin letter by letter as browsers send it (RFC 6454, part 6.2)."""
    if text == ANY_ORIGIN:
        return
    found = _ORIGIN.fullmatch(text)
    if found is None or host_name(found[2].encode()) is None:
        raise ValueError("an origin is `https://host` or `https://host:port`, in small letters, with nothing behind it")
    if found[2].endswith(_DEFAULT_PORTS[found[1]]):
        raise ValueError(f"browsers leave the port {_DEFAULT_PORTS[found[1]]} out of an {found[1]} origin: do so too")


def _hosts(where: str, value: object) -> tuple[str, ...]:
    return _texts(where, value, _host_allowed)


def _host_allowed(text: str) -> None:
    name = host_name(text.encode("utf-8", "surrogatepass"))
    if text.startswith("[") or ":" in text:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            raise ValueError("a host stands without a port, and an IPv6 address without brackets") from None
        return
    if name is None or text not in (name.decode(), f"{name.decode()}."):
        raise ValueError("a host is a name or an address in small letters, such as `flm.example.com`")


def _limit(where: str, value: object) -> RateLimit | None:
    fields = _object(where, value, ("rpm", "burst"))
    if "rpm" not in fields:
        without = "a burst without rpm says no limit" if "burst" in fields else "it is empty"
        _invalid(where, f'{without}: write {{"rpm": N}}, or {{"rpm": 0}} for no limit')
    rpm = _count(f"{where}.rpm", fields["rpm"], 0)
    if rpm == 0:
        if "burst" in fields:
            _invalid(where, "rpm 0 is no limit, so that no burst may stand beside it")
        return None
    return RateLimit(rpm, _count(f"{where}.burst", fields["burst"], 1) if "burst" in fields else rpm)


def _count(where: str, value: object, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_RPM:
        _invalid(where, f"it must be a whole number from {low} to {MAX_RPM}, not {_quoted(value)}")
    return value


def _header(where: str, value: object) -> str:
    if value not in ADDRESS_HEADERS:
        _invalid(where, f"it must be {' or '.join(map(_quoted, ADDRESS_HEADERS))}, not {_quoted(value)}")
    return cast(str, value)


# field of the document -> attribute of Policy, and what reads it
_FIELDS: Final[dict[str, tuple[str, Callable[[str, object], Any]]]] = {
    "ip_whitelist": ("ip_whitelist", _networks),
    "cors": ("allowed_origins", _cors),
    "rate_limit": ("rate_limit", _limit),
    "ip_rate_limit": ("ip_rate_limit", _limit),
    "global_rate_limit": ("global_rate_limit", _limit),
    "auth_failure_limit": ("auth_failure_limit", _limit),
    "trusted_proxies": ("trusted_proxies", _proxies),
    "client_address_header": ("client_address_header", _header),
    "allowed_hosts": ("allowed_hosts", _hosts),
}
