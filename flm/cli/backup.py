"""`flm security backup …`: everything that makes this FLM, in one encrypted file, and back again."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flm.cli.command import Context, Noun, Output, UsageError

if TYPE_CHECKING:
    from flm.services.backup import Secret

_VARIABLE: Final = "FLM_BACKUP_PASSPHRASE"
_LONGEST_PASSPHRASE: Final = 4096
_LONGEST_KEY: Final = 1 << 20
_SHORTEST_KEY: Final = 32  # 256 bits: below it, a passphrase is the better secret
_USAGE: Final = "flm security backup … [--passphrase-file F | --key-file F]\n"


def add_verbs(security: Noun) -> None:
    """Add `backup create` and `backup restore` to the noun `security`."""
    backup = security.group("backup", "an encrypted copy of keys, settings, engines and certificates")
    create = backup.verb("create", _create, "write one, also while the proxy runs")
    create.add_argument("--output", required=True, metavar="FILE", help="a file that is not there yet")
    create.add_argument("--audit", action="store_true", help="with the audit log, which is left out otherwise")
    restore = backup.verb("restore", _restore, "replace keys, settings, engines and certificates by those of a backup")
    restore.add_argument("file", metavar="FILE", help="a backup, or the folder of former files of a restore")
    for verb in (create, restore):
        secret = verb.add_mutually_exclusive_group()
        secret.add_argument("--passphrase-file", metavar="F", help=f"file whose first line it is (else {_VARIABLE})")
        secret.add_argument("--key-file", metavar="F", help=f"file of at least {_SHORTEST_KEY} random bytes instead")


async def _create(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import BackupService

    secret = _given(arguments) or _typed(twice=True)
    return Output(
        await BackupService(context.folder).create(Path(arguments.output), secret, with_audit=arguments.audit)
    )


async def _restore(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import BackupService

    service = BackupService(context.folder)
    source = Path(arguments.file)
    kind = await service.sealed_with(source)  # nobody is asked for the passphrase of a file that is no backup
    secret = _given(arguments)
    if secret is None and kind == "key file":
        raise UsageError(f"{source} was sealed with a key file; say which, with --key-file", _USAGE)
    if secret is None and kind is not None:
        secret = _typed(twice=False)
    return Output(await service.restore(source, secret))


def _given(arguments: argparse.Namespace) -> Secret | None:
    """The secret of the options or the environment, if there is one there."""
    from flm.services.backup import Secret

    if arguments.key_file is not None:
        key = _content(arguments.key_file, _LONGEST_KEY)
        if not _SHORTEST_KEY <= len(key) < _LONGEST_KEY:
            raise UsageError(
                f"{arguments.key_file} has {len(key)} bytes, and a key file at least {_SHORTEST_KEY} and less than "
                f"{_LONGEST_KEY}; `head -c 32 /dev/urandom > FILE` makes one",
                _USAGE,
            )
        return Secret("key file", key)
    if arguments.passphrase_file is not None:
        line = _content(arguments.passphrase_file, _LONGEST_PASSPHRASE).partition(b"\n")[0].rstrip(b"\r")
        return _passphrase(line, arguments.passphrase_file)
    if _VARIABLE in os.environ:
        return _passphrase(os.fsencode(os.environ[_VARIABLE]), _VARIABLE)
    return None


def _typed(*, twice: bool) -> Secret:
    """A passphrase from the terminal, without echo."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"no passphrase: there is no terminal to ask for it; give --passphrase-file, --key-file or {_VARIABLE}",
            _USAGE,
        )
    import getpass
    import signal

    # asyncio keeps the first Ctrl-C for its loop, which stands still while somebody types.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        typed = getpass.getpass("Passphrase of the backup: ")
        if twice and getpass.getpass("The same again: ") != typed:
            raise UsageError("the two passphrases differ; nothing was done", _USAGE)
    except EOFError:
        raise UsageError("no passphrase was typed; nothing was done", _USAGE) from None
    finally:
        signal.signal(signal.SIGINT, before)
    return _passphrase(typed.encode("utf-8", "surrogateescape"), "what was typed")


def _passphrase(value: bytes, origin: str) -> Secret:
    from flm.services.backup import Secret

    if not value:
        raise UsageError(f"the passphrase is empty ({origin})", _USAGE)
    return Secret("passphrase", value)


def _content(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{path!r:.80} cannot be read: {getattr(error, 'strerror', None) or error}", _USAGE) from None
