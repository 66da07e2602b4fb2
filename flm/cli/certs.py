"""`flm certs …`: the local root, which signs the certificate of the mode `dev-selfsigned`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flm.cli.command import Context, Noun, Output, UsageError

if TYPE_CHECKING:
    from flm.services.certs import Trust

_USAGE = "flm certs trust --print\n"


def register(noun: Noun) -> None:
    export = noun.verb("export", _export, "the root's certificate, without its key; with --format text the bare PEM")
    export.add_argument("--output", metavar="FILE", help="write it to a file, too: one that is not there yet")
    trust = noun.verb("trust", _trust, "how to trust the root in each system and browser, and how to remove it again")
    trust.add_argument("--print", action="store_true", help="print the commands; nothing is carried out")
    trust.add_argument("--of", metavar="FILE", help="the certificate of a root that was replaced, to remove that")
    noun.verb("replace", _replace, "make a new root in the place of one that is expired, damaged or leaked")


async def _export(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import CertsService

    output = Path(arguments.output) if arguments.output is not None else None
    exported = await CertsService(context.folder).export(output)
    return Output(exported, text=f"written to {exported.file}" if output else exported.pem.rstrip("\n"))


async def _trust(arguments: argparse.Namespace, context: Context) -> Output:
    if not arguments.print:
        raise UsageError("flm changes no trust by itself; with --print it says which commands do", _USAGE)
    from flm.services import CertsService

    trust = await CertsService(context.folder).trust(Path(arguments.of) if arguments.of else None)
    return Output(trust, text=_for_people(trust))


async def _replace(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import CertsService

    return Output(await CertsService(context.folder).replace())


def _for_people(trust: Trust) -> str:
    lines = [
        trust.name,
        f"  file         {trust.file} (no key in it)",
        f"  valid until  {trust.not_after}",
        f"  SHA-256      {trust.fingerprint}",
        f"  vouches for  {', '.join(trust.vouches_for)}; for nothing else",
        "",
        "Whoever trusts it trusts what this machine's FLM serves. Nothing below was done; take what you need.",
    ]
    for store in trust.stores:
        lines += ["", store.name]
        for title, steps in (("trust", store.trust), ("remove", store.remove)):
            lines += [f"  {title}:", *(f"    {step}" for step in steps)]
        if store.note:
            lines.append(f"  note: {store.note}")
    return "\n".join(lines)
