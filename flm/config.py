"""The settings an operator can change, and the limits nobody needs to change.

The `Settings` struct is the one table: key, type, default, bounds and meaning of every setting. The rest of the
program reads its attributes; `SETTINGS` is the same table for people. A value comes from a flag, else from the
environment (`FLM_` + the key in upper case with `_` for `.`), else from the database, else it is the default;
`Resolved.sources` says which.

Does not know where values are stored: it is handed mappings and returns values, or raises CONFIG_INVALID.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, get_args

import msgspec
import msgspec.structs

from flm.errors import CommandCode, CommandError, shown

# --- limits: constants, each with its reason ---------------------------------------------------------------------
MAX_HEADER_BYTES: Final = 65_536  # a request's header block; nginx allows 4 x 8 KiB, hyper 408 KiB: ample for JWTs
MAX_TARGET_BYTES: Final = 8_192  # request target; nginx's large_client_header_buffers line
MAX_LINE_BYTES: Final = 8_388_608  # one SSE or NDJSON line of an engine; a 512 KiB cap broke real clients
MAX_ANSWER_BYTES: Final = 67_108_864  # one non-streaming answer held for translation: a 64 MiB embedding batch passes
MAX_ERROR_BODY_BYTES: Final = 1_048_576  # an engine's error answer; more is noise
UPSTREAM_HEAD_BYTES: Final = 65_536  # status line and headers of an engine's answer
UPSTREAM_HEADERS: Final = 128  # header lines of an engine's answer; httptools itself has no cap
UPSTREAM_INTERIM: Final = 16  # 1xx answers tolerated before the final one
MAX_CHAT_VALUES: Final = 65_536  # JSON values of one chat request: agents with all their tools send some thousands
MAX_INPUT_VALUES: Final = 400_000  # of one completion or embedding request; OpenAI takes 300,000 token ids at most
SEND_FRAME_BYTES: Final = 65_536  # one ASGI body frame: the server holds four of them for a slow client
IDLE_UPSTREAM_CONNECTIONS: Final = 64  # kept alive per engine and worker
MAX_DRAINS: Final = 8  # answers read on for nobody, per engine and worker; few, since each holds a place of the engine
PROBE_TIMEOUT_SECONDS: Final = 3.0  # one detection request; above engine.degraded_latency_ms, to tell slow from silent
DETECT_TIMEOUT_SECONDS: Final = 4.5  # all of `engines detect`
PROBE_BODY_BYTES: Final = 8_388_608  # a model list of thousands of entries; a 10 MB decoy is cut

Value = int | float | bool | str
Kind = Literal["integer", "number", "boolean", "text", "choice", "list"]
Effect = Literal["at once", "reload", "restart", "start"]
Mode = Literal["local-http", "dev-selfsigned", "https-acme"]
Fallback = Literal["none", "dev-selfsigned", "local-http"]

DEFAULT_PORT: Final = 3560
HTTP_PORT: Final = 80  # where a CA looks for the answer to its challenge (RFC 8555 §8.3)
HTTPS_PORT: Final = 443
ANY: Final = "*"  # as an address: all of IPv4 and IPv6
_DAY: Final = 86_400
_LAST_PORT: Final = 65_535


def _count(meaning: str, low: int, high: int) -> msgspec.Meta:
    return msgspec.Meta(ge=low, le=high, description=meaning)


def _seconds(meaning: str, low: float = 0.1, high: float = _DAY) -> msgspec.Meta:
    return msgspec.Meta(ge=low, le=high, description=meaning)


def _days(meaning: str) -> msgspec.Meta:
    return msgspec.Meta(ge=0.001, le=36_500, description=meaning)


def _means(meaning: str) -> msgspec.Meta:
    return msgspec.Meta(description=meaning)


# A name in the public DNS, in full (RFC 1035 §2.3.1 with RFC 1123 §2.1, 253 bytes at most): no wildcard, no address.
_LABEL: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)"
_LAST_LABEL: Final = r"(?:[A-Za-z]{2,63}|[xX][nN]--[A-Za-z0-9\-]{1,58}[A-Za-z0-9])"
_DOMAIN: Final = rf"(?=[^,\s]{{1,253}}(?:[,\s]|\Z)){_LABEL}+{_LAST_LABEL}"
_URL: Final = r"https://[!-~]{1,2000}"
_EMAIL: Final = r"[!-?A-~]{1,64}@[A-Za-z0-9.\-]{1,255}"
# An engine's id or `*`, a method or `*`, a path that holds nothing a list, a shell or a URL would take apart.
_PATH: Final = r"(?:/\*|/[A-Za-z0-9\-._~!$&()+=:@/]*(?:/\*)?)"
_OPENING: Final = rf"(?:\*|[a-z0-9][a-z0-9._-]{{0,62}}):(?:\*|[A-Z]{{1,32}}) {_PATH}"


def _listed(meaning: str, item: str, shape: str) -> msgspec.Meta:
    """A list with commas between; `shape` is an item as people write it. May be empty."""
    items = rf"(?:\s*{item}\s*(?:,\s*{item}\s*)*)?"
    return msgspec.Meta(description=meaning, pattern=rf"\A{items}\Z", examples=[shape])


def _shaped(meaning: str, pattern: str, shape: str) -> msgspec.Meta:
    """One item that looks like `shape`. May be empty."""
    return msgspec.Meta(description=meaning, pattern=rf"\A(?:{pattern})?\Z", examples=[shape], title="one")


class Settings(msgspec.Struct, frozen=True):
    """All settings. A key is its attribute with the first `_` as `.`; bounds are inclusive, units are in the names."""

    proxy_mode: Annotated[Mode, _means("how the listener is secured")] = "local-http"
    proxy_bind: Annotated[str, _means("IP address the listener binds; `*`: all of IPv4 and IPv6")] = "127.0.0.1"
    proxy_port: Annotated[int, _count("port of the listener; of plain HTTP where there is HTTPS", 1, 65_535)] = (
        DEFAULT_PORT
    )
    proxy_https_port: Annotated[int, _count("port of HTTPS; 0: proxy.port + 1, or 443 beside 80", 0, 65_535)] = 0
    proxy_fallback: Annotated[Fallback, _means("what to serve when no certificate is to be had at start")] = "none"
    proxy_expose_fallback: Annotated[
        bool, _means("let the fallback local-http serve other addresses than loopback")
    ] = False
    proxy_workers: Annotated[int, _count("worker processes", 1, 64)] = 1
    proxy_max_draining: Annotated[int, _count("old generations of workers that may drain at once", 1, 16)] = 2
    proxy_min_bytes_per_second: Annotated[int, _count("a client slower than this for 30 s is cut", 0, 1_048_576)] = 64
    proxy_drain_timeout_seconds: Annotated[float, _seconds("how long a replaced worker may finish streams", 0)] = 300
    proxy_stop_timeout_seconds: Annotated[float, _seconds("how long `proxy stop` lets streams finish", 0)] = 30
    proxy_max_body_bytes: Annotated[int, _count("larger request bodies are 413", 1024, 1_073_741_824)] = 33_554_432
    proxy_max_in_flight: Annotated[int, _count("requests in progress per worker; more are 503", 1, 65_536)] = 1024
    proxy_header_timeout_seconds: Annotated[float, _seconds("for a request's head, and idle connections", 1, 600)] = 10
    proxy_body_idle_timeout_seconds: Annotated[float, _seconds("between two pieces of a request body")] = 30
    proxy_body_total_timeout_seconds: Annotated[float, _seconds("for a whole request body")] = 300
    proxy_send_timeout_seconds: Annotated[float, _seconds("for a client that does not read")] = 60
    engine_connect_timeout_seconds: Annotated[float, _seconds("to connect to an engine")] = 3
    engine_first_byte_timeout_seconds: Annotated[float, _seconds("until an engine answers; models load inside")] = 600
    engine_between_bytes_timeout_seconds: Annotated[float, _seconds("between two pieces of an engine's answer")] = 300
    engine_total_timeout_seconds: Annotated[float, _seconds("for a whole answer of an engine; 0: none", 0)] = 0
    engine_cache_ttl_seconds: Annotated[float, _seconds("how long a detection result counts as current", 0)] = 30
    engine_check_interval_seconds: Annotated[float, _seconds("between two background checks of an engine", 0.5)] = 10
    engine_discover: Annotated[bool, _means("look for engines on this machine, beside the registered ones")] = True
    engine_degraded_latency_ms: Annotated[int, _count("a health answer this slow is degraded", 1, 60_000)] = 1500
    engine_failure_threshold: Annotated[int, _count("failures in a row until an engine is unreachable", 1, 100)] = 3
    engine_recovery_threshold: Annotated[int, _count("good checks until a degraded engine is healthy", 1, 100)] = 3
    engine_max_in_flight: Annotated[int, _count("requests per engine and worker; 0: no limit", 0, 65_536)] = 0
    engine_keepalive_comment_seconds: Annotated[float, _seconds("between comments while a cold model loads", 1)] = 10
    engine_forward_client_address: Annotated[bool, _means("tell engines in x-forwarded-for who asks")] = False
    routing_plain_names: Annotated[bool, _means("accept a plain name that one engine has")] = True
    passthrough_open_routes: Annotated[str, _listed("closed routes to open", _OPENING, "ENGINE:METHOD /path")] = ""
    security_revoke_ends_streams: Annotated[bool, _means("end the running requests of a revoked key")] = True
    audit_retention_days: Annotated[float, _days("how long rows of the audit log are kept")] = 30
    audit_max_bytes: Annotated[int, _count("size of audit.db above which its oldest rows go", 65_536, 1 << 40)] = (
        1 << 28
    )
    tls_min_version: Annotated[Literal["1.2", "1.3"], _means("oldest TLS version that is spoken")] = "1.3"
    acme_domain: Annotated[
        str,
        _listed(
            "names of the certificate, each in full, letters beyond a to z in their xn-- form; "
            "no wildcard, address, port, URL or final dot",
            _DOMAIN,
            "llm.example.com",
        ),
    ] = ""
    acme_email: Annotated[str, _shaped("whom the CA may write to", _EMAIL, "ops@example.com")] = ""
    acme_accept_terms: Annotated[bool, _means("accept the CA's terms of service when an account is made")] = True
    acme_staging: Annotated[bool, _means("stop after the rehearsal: a certificate that nobody trusts")] = False
    acme_directory: Annotated[
        str, _shaped("directory of the CA, if not Let's Encrypt", _URL, "https://ca.example/dir")
    ] = ""
    acme_staging_directory: Annotated[
        str, _shaped("directory of the CA for rehearsals", _URL, "https://ca.example/dir")
    ] = ""
    acme_ca_bundle: Annotated[str, _means("file with the authorities that the CA's own HTTPS is verified by")] = ""
    acme_profile: Annotated[str, _means("certificate profile, where the CA has such")] = ""
    acme_eab_kid: Annotated[str, _means("key id of an external account binding")] = ""
    acme_eab_file: Annotated[str, _means("file with the base64url HMAC key of that binding")] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _means("least severe line logged")] = "info"
    log_file: Annotated[str, _means("log of a background proxy, relative to the data folder")] = "logs/flm.log"
    log_max_bytes: Annotated[int, _count("size at which the log file is rotated", 4096, 1_073_741_824)] = 10_485_760
    log_keep: Annotated[int, _count("rotated log files that are kept", 0, 100)] = 5


# Where a running proxy takes a change over at a later moment than its next request.
_EFFECTS: Final[Mapping[str, Effect]] = {
    "proxy.workers": "reload",
    "proxy.max_draining": "reload",
    "proxy.drain_timeout_seconds": "reload",
    "proxy.header_timeout_seconds": "reload",
    "log.file": "restart",
    "log.max_bytes": "restart",
    "log.keep": "restart",
    "proxy.mode": "start",
    "proxy.bind": "start",
    "proxy.port": "start",
    "proxy.https_port": "start",
    "proxy.fallback": "start",
    "proxy.expose_fallback": "start",
    "tls.min_version": "reload",
    **dict.fromkeys(
        (
            "acme.domain",
            "acme.email",
            "acme.accept_terms",
            "acme.staging",
            "acme.directory",
            "acme.staging_directory",
            "acme.ca_bundle",
            "acme.profile",
            "acme.eab_kid",
            "acme.eab_file",
        ),
        "reload",
    ),
}


class Setting(msgspec.Struct, frozen=True):
    """One setting as a person sees it; `minimum` and `maximum` are inclusive. `shape`: how an item of a list looks.
    `effect`: what has a running proxy take a change over: `reload`, `restart`, `start` after a stop, or nothing."""

    key: str
    kind: Kind
    default: Value
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    shape: str = ""
    effect: Effect = "at once"

    @property
    def attribute(self) -> str:
        return self.key.replace(".", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "FLM_" + self.attribute.upper()


_KINDS: Final[Mapping[object, Kind]] = {int: "integer", float: "number", bool: "boolean", str: "text"}


def _described(field: msgspec.structs.FieldInfo) -> Setting:
    base, meta = get_args(field.type)
    choices: tuple[str, ...] = get_args(base)
    noun, _, rest = field.name.partition("_")
    kind: Kind = "choice" if choices else "list" if meta.pattern and not meta.title else _KINDS[base]
    shape = meta.examples[0] if meta.examples else ""
    key = f"{noun}.{rest}"
    effect = _EFFECTS.get(key, "at once")
    return Setting(key, kind, field.default, meta.description, meta.ge, meta.le, choices, meta.pattern, shape, effect)


SETTINGS: Final[Mapping[str, Setting]] = {
    described.key: described for described in map(_described, msgspec.structs.fields(Settings))
}


class Resolved(msgspec.Struct, frozen=True):
    """Settings with the source of each key: `default`, `config`, `environment` or `flag`."""

    settings: Settings
    sources: Mapping[str, str]


_USE_PROD: Final = "FLM_ACME_USE_PROD"
_LONGEST_KEY: Final = 80  # of what is compared with all settings
_LIKENESS: Final = 0.75  # from here on one is taken for a mistyped other


def setting(key: str) -> Setting:
    """The setting named `key`. Raises CONFIG_INVALID with the nearest known keys for an unknown one."""
    try:
        return SETTINGS[key]
    except KeyError:
        noun = key.partition(".")[0] + "."
        near = ", ".join(known for known in SETTINGS if known.startswith(noun)) or ", ".join(SETTINGS)
        meant = f", perhaps {found}" if (found := _nearest(key)) else ""
        raise CommandError(
            CommandCode.CONFIG_INVALID, f"there is no setting {shown(key)}{meant}; known settings: {near}"
        ) from None


def _nearest(key: str) -> str | None:
    """The known setting that a mistyped one looks like."""
    from difflib import get_close_matches  # only here: it is for mistakes

    found = get_close_matches(key[:_LONGEST_KEY].lower().replace("-", "_"), SETTINGS, 1, _LIKENESS)
    return found[0] if found else None


def parse(key: str, text: str) -> Value:
    """`text` as a value of setting `key`. Raises CONFIG_INVALID saying what is allowed."""
    spec = setting(key)
    value = _convert(spec, text.strip())
    if value is None:
        raise CommandError(CommandCode.CONFIG_INVALID, f"{key} must be {_allowed(spec)}, not {text!r}")
    return value


_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _convert(spec: Setting, text: str) -> Value | None:
    if spec.kind == "boolean":
        return _BOOLEANS.get(text.lower())
    if spec.kind == "choice":
        return text if text in spec.choices else None
    if spec.kind == "text":
        fits = text.isprintable() and re.search(spec.pattern or "", text)
        return text if fits and (text or not spec.default) else None
    if spec.kind == "list":
        return text if text.isprintable() and re.search(spec.pattern or "", text) else None
    try:
        number = int(text) if spec.kind == "integer" else float(text)
    except ValueError:
        return None
    low, high = spec.minimum, spec.maximum
    inside = (low is None or number >= low) and (high is None or number <= high)  # false for NaN too
    return number if inside else None


def _allowed(spec: Setting) -> str:
    if spec.kind == "boolean":
        return "true or false"
    if spec.kind == "choice":
        return "one of " + ", ".join(spec.choices)
    if spec.kind == "text":
        return (
            f"like `{spec.shape}`"
            if spec.shape
            else "a line of text"
            if not spec.default
            else "a non-empty line of text"
        )
    if spec.kind == "list":
        return f"a list of `{spec.shape}` with commas between ({spec.meaning})"
    noun = "a whole number" if spec.kind == "integer" else "a number"
    return f"{noun} from {spec.minimum:.14g} to {spec.maximum:.14g}"


def resolve(
    stored: Mapping[str, str], environment: Mapping[str, str], flags: Mapping[str, Value] | None = None
) -> Resolved:
    """Settings from flags over environment over stored values over defaults. Raises CONFIG_INVALID."""
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for key, spec in SETTINGS.items():
        if flags and key in flags:
            values[spec.attribute], sources[key] = parse(key, str(flags[key])), "flag"
        elif (text := _in_environment(spec, environment)) is not None:
            values[spec.attribute], sources[key] = _from_environment(spec, text), "environment"
        elif key in stored:
            values[spec.attribute], sources[key] = parse(key, stored[key]), "config"
        else:
            sources[key] = "default"
    return Resolved(_derived(msgspec.convert(values, Settings), sources), sources)


def _derived(settings: Settings, sources: Mapping[str, str]) -> Settings:
    """Defaults that depend on the mode: a certificate of a public CA is for everybody, at the ports everybody knows."""
    if settings.proxy_mode == "local-http":
        return settings
    bind, port, https_port = settings.proxy_bind, settings.proxy_port, settings.proxy_https_port
    if settings.proxy_mode == "https-acme":
        bind = ANY if sources["proxy.bind"] == "default" else bind
        port = HTTP_PORT if sources["proxy.port"] == "default" else port
    if https_port == 0:
        https_port = HTTPS_PORT if port == HTTP_PORT else port + (1 if port < _LAST_PORT else -1)
    return msgspec.structs.replace(settings, proxy_bind=bind, proxy_port=port, proxy_https_port=https_port)


def domains(settings: Settings) -> tuple[str, ...]:
    """The names of `acme.domain` in small letters, each once, in their order."""
    return tuple(dict.fromkeys(name.strip().lower() for name in settings.acme_domain.split(",") if name.strip()))


def _in_environment(spec: Setting, environment: Mapping[str, str]) -> str | None:
    """The text of a setting's variable. `FLM_ACME_USE_PROD` is the other way to say `FLM_ACME_STAGING`."""
    if spec.variable not in environment and spec.key == "acme.staging" and _USE_PROD in environment:
        wanted = _BOOLEANS.get(environment[_USE_PROD].strip().lower())
        if wanted is None:
            raise CommandError(CommandCode.CONFIG_INVALID, f"environment variable {_USE_PROD} must be true or false")
        return str(not wanted)
    return environment.get(spec.variable)


def _from_environment(spec: Setting, text: str) -> Value:
    try:
        return parse(spec.key, text)
    except CommandError as error:
        raise CommandError(error.code, f"environment variable {spec.variable}: {error.message}") from None
