"""How each system and program comes to trust the local root, and how it forgets it again: words and commands, as data.

Nothing here is carried out: whom a machine trusts is for its owner to change. Each way names the file of the root as it
lies on this machine, and a name of its own for the root, so that what was added can be found and removed.

Pure: a path and a certificate in. Knows no service and asks no system what it is.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

_SHORT: Final = 8  # hex digits of the fingerprint in the names of files and aliases
_OTHER_DEVICE: Final = "copy the file there first; it holds no secret"


class Store(msgspec.Struct, frozen=True):
    """One place where trust is kept. `how`: `commands` for a shell as they are, or steps to take `by hand`. `trust` and
    `remove` have them in order; `note` is what else to know, maybe empty."""

    id: str
    name: str
    how: Literal["commands", "by hand"]
    trust: tuple[str, ...]
    remove: tuple[str, ...]
    note: str = ""


class Root(msgspec.Struct, frozen=True):
    """A local root's certificate. Times are Unix seconds; `fingerprint` is the SHA-256 of it and `sha1` the other, in
    hex. `vouches_for`: the domains, with all below them, and the networks it may sign for."""

    name: str
    fingerprint: str
    sha1: str
    not_before: float
    not_after: float
    vouches_for: tuple[str, ...]


def read_root(pem: bytes) -> Root:
    """The root whose certificate is in `pem`. Raises ValueError if it is not that of a local root."""
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not names:
        raise ValueError("not the certificate of a local root")
    # What macOS and Windows call it by; nobody is convinced with it.
    sha1 = certificate.fingerprint(hashes.SHA1())  # noqa: S303 # nosec B303
    return Root(
        name=str(names[0].value),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        sha1=sha1.hex().upper(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        vouches_for=tuple(str(each.value) for each in constraints.permitted_subtrees or ()),
    )


def stores(file: Path, root: Root) -> tuple[Store, ...]:
    """All ways to trust `root`, whose certificate without its key lies in `file`."""
    quoted = shlex.quote(str(file))
    return (*_systems(file, quoted, root), *_browsers(quoted, root), *_programs(quoted, root), *_devices(root))


def _systems(file: Path, quoted: str, root: Root) -> tuple[Store, ...]:
    name = f"{_alias(root)}.crt"
    keychain = "/Library/Keychains/System.keychain"
    return (
        _installed("debian", "Debian, Ubuntu, Alpine", f"/usr/local/share/ca-certificates/{name}", quoted,
                   "update-ca-certificates", "update-ca-certificates --fresh"),
        _installed("fedora", "Fedora, RHEL, CentOS", f"/etc/pki/ca-trust/source/anchors/{name}", quoted,
                   "update-ca-trust", "update-ca-trust"),
        _installed("suse", "openSUSE, SLES", f"/etc/pki/trust/anchors/{name}", quoted,
                   "update-ca-certificates", "update-ca-certificates"),
        Store(
            "arch", "Arch Linux", "commands",
            (f"sudo trust anchor --store {quoted}",),
            (f"sudo trust anchor --remove {quoted}",),
        ),
        Store(
            "macos", "macOS: the system's keychain (also Safari, Chrome and Firefox there)", "commands",
            (f"sudo security add-trusted-cert -d -r trustRoot -k {keychain} {quoted}",),
            (
                f"sudo security remove-trusted-cert -d {quoted}",
                f"sudo security delete-certificate -Z {root.sha1} {keychain}",
            ),
        ),
        Store(
            "windows", "Windows: the user's store (also Edge, Chrome and Firefox there)", "commands",
            (f"certutil -user -addstore Root {file.name}",),
            (f"certutil -user -delstore Root {root.sha1}",),
            f"{_OTHER_DEVICE}, and run the command in its folder",
        ),
    )  # fmt: skip


def _browsers(quoted: str, root: Root) -> tuple[Store, ...]:
    nickname = shlex.quote(root.name)
    database = '-d "sql:$HOME/.pki/nssdb"'
    begin = f"certutil {database} -N --empty-password"
    profiles = "~/.mozilla/firefox/*/cert9.db ~/snap/firefox/common/.mozilla/firefox/*/cert9.db"

    def in_each_profile(arguments: str) -> str:
        body = f'if [ -e "$db" ]; then certutil -d "sql:${{db%/*}}" {arguments}; fi'
        return f"for db in {profiles}; do {body}; done"

    tool = "certutil is in the package libnss3-tools (Debian, Ubuntu), nss-tools (Fedora) or nss (Arch)"
    return (
        Store(
            "chromium", "Chromium, Chrome, Edge on Linux", "commands",
            (
                f'[ -e "$HOME/.pki/nssdb/cert9.db" ] || {{ mkdir -p "$HOME/.pki/nssdb" && {begin}; }}',
                f"certutil {database} -A -t C,, -n {nickname} -i {quoted}",
            ),
            (f"certutil {database} -D -n {nickname}",),
            f"{tool}; start the browser anew. A Chromium from a snap has its database in "
            "~/snap/chromium/current/.pki/nssdb",
        ),
        Store(
            "firefox", "Firefox on Linux", "commands",
            (in_each_profile(f"-A -t C,, -n {nickname} -i {quoted}"),),
            (in_each_profile(f"-D -n {nickname}"),),
            f"{tool}; end Firefox first. By hand: Settings, Privacy & Security, View Certificates, Authorities, Import."
            " On macOS and Windows it uses the system's store",
        ),
    )  # fmt: skip


def _programs(quoted: str, root: Root) -> tuple[Store, ...]:
    alias = _alias(root)
    keytool = "sudo keytool {} -cacerts -storepass changeit -alias " + alias
    return (
        Store(
            "curl", "curl", "commands",
            (f"export CURL_CA_BUNDLE={quoted}",),
            ("unset CURL_CA_BUNDLE",),
            f"in that shell, and instead of all other authorities; for one call: curl --cacert {quoted} URL",
        ),
        Store(
            "python", "Python: the standard library, openai, httpx, requests", "commands",
            (f"export SSL_CERT_FILE={quoted} REQUESTS_CA_BUNDLE={quoted}",),
            ("unset SSL_CERT_FILE REQUESTS_CA_BUNDLE",),
            "for programs started from that shell, and instead of all other authorities; in code: "
            f"ssl.create_default_context(cafile={str(quoted)!r}), which the clients take as verify= or context=",
        ),
        Store(
            "node", "Node", "commands",
            (f"export NODE_EXTRA_CA_CERTS={quoted}",),
            ("unset NODE_EXTRA_CA_CERTS",),
            "for programs started from that shell, beside all other authorities",
        ),
        Store(
            "java", "Java", "commands",
            (f"{keytool.format('-importcert -noprompt')} -file {quoted}",),
            (keytool.format("-delete"),),
            "Java does not heed what a root may vouch for: to it this one, whose key lies on the machine of FLM, could "
            "vouch for any site; so rather give the file to the one program that needs it",
        ),
    )  # fmt: skip


def _devices(root: Root) -> tuple[Store, ...]:
    return (
        Store(
            "ios", "iPhone, iPad", "by hand",
            (
                "send the file to the device and open it there (AirDrop, mail)",
                "Settings, General, VPN & Device Management: install the profile",
                f"Settings, General, About, Certificate Trust Settings: switch on {root.name}",
            ),
            (f"Settings, General, VPN & Device Management: {root.name}, Remove Profile",),
        ),
        Store(
            "android", "Android", "by hand",
            ("copy the file to the device", "Settings, search for CA certificate, Install anyway, choose the file"),
            (f"Settings, search for User credentials, choose {root.name}, Remove",),
            "browsers heed it; other apps only if they were built to",
        ),
    )  # fmt: skip


def _installed(store: str, name: str, target: str, quoted: str, add: str, refresh: str) -> Store:
    """A system whose authorities are files in a folder, from which a command makes the bundle for all."""
    return Store(
        store,
        f"{name}: the system's store",
        "commands",
        (f"sudo install -m 644 {quoted} {target}", f"sudo {add}"),
        (f"sudo rm {target}", f"sudo {refresh}"),
        "heeded by curl, wget, git, Go, the system's Python, and mostly by its Java (below stands what that means); "
        "browsers and Node have their own",
    )


def _alias(root: Root) -> str:
    return f"flm-local-root-{root.fingerprint[:_SHORT]}"
