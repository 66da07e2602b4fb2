"""What an attempt to get a certificate is asked, and what it says meanwhile: JSON lines between two processes.

The supervisor starts a child (`attempt`) for each attempt and writes one `Ask`. The child answers with `Said`, one a
line: `step` as often as it likes; `publish`, `retract`, `look` and `spared`, each of which waits for a `Heard`; and at
the end one of `issued`, which waits for a `Heard` too and then forgets the order, `window` and `refused`.

Knows the shapes and their bounds; opens nothing. No account key, certificate key of a pending order or key of an
external account binding is ever among these words; the key of the finished pair is, in `issued`.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

ATTEMPT_SECONDS: Final = 90.0  # the whole attempt, from the start of the child
LONGEST_LINE: Final = 262_144  # a key and a chain of certificates are about 8 KB

Kind = Literal["network", "tls", "server", "rate_limited", "rejected", "validation", "local", "deadline"]
"""Why there is no certificate.

`network`: the CA could not be reached. `tls`: its own certificate is not trusted. `server`: its answer is no ACME.
`rate_limited`: it asks to wait. `rejected`: it said no to what was asked. `validation`: it could not see that a name
is ours. `local`: this machine's disk, files or settings. `deadline`: the time was over.
"""

KINDS: Final[tuple[str, ...]] = get_args(Kind)


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt. `op`: `issue` a certificate, or ask for the `window` in which `replaces` should be renewed.

    `directory`: URL of the CA's directory. `ca_bundle`: file with the authorities by which that is verified; empty:
    the system's. `names`: DNS names, the first one being the certificate's main name. `profile`, `eab_kid`: empty for
    none. `eab_key_file`: file with the base64url key of the external account binding. `accept_terms`: whether the
    CA's terms of service are agreed to should an account be made. `folder`: where the account and a pending order are
    kept; made if it is not there. `replaces`: PEM of the certificate that is being renewed, leaf first; empty for
    none. `seconds`: how long all of it may take.
    """

    op: Literal["issue", "window"]
    directory: str
    ca_bundle: str = ""
    names: list[str] = []
    email: str = ""
    profile: str = ""
    eab_kid: str = ""
    eab_key_file: str = ""
    accept_terms: bool = True
    folder: str = ""
    replaces: str = ""
    seconds: float = ATTEMPT_SECONDS


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a child says.

    `step`: what it does (`step`) and a detail for people. `publish`: `answer` is to be served for `token` on the plain
    port; `retract`: no longer. `look`: the CA is about to be told to look at `name`, which it counts if that fails, so
    it is noted first; `spared`: that did not fail, or was never told. `issued`: `pem`, the key and then the chain.
    `window`: `start` and `end`, Unix seconds, both 0 where the CA has no such thing, and `retry_after`, seconds until
    it may be asked again. `refused`: `kind` (one of KINDS), `message` for people, and `retry_after`, seconds before
    which it is no use to come again, 0 if nobody said.
    """

    event: Literal["step", "publish", "retract", "look", "spared", "issued", "window", "refused"]
    step: str = ""
    detail: str = ""
    token: str = ""
    name: str = ""
    answer: str = ""
    pem: str = ""
    start: float = 0.0
    end: float = 0.0
    retry_after: float = 0.0
    kind: Kind | None = None
    message: str = ""


class Heard(msgspec.Struct, frozen=True, omit_defaults=True):
    """The supervisor's answer to what waits for one; `message` says why not, and `retry_after` how many seconds that
    stays so, 0 if it is not known."""

    ok: bool
    message: str = ""
    retry_after: float = 0.0
