"""The `flm` command: finds the noun, loads its module and no other, runs the handler, prints what it returns.

How a noun joins: one line in `NOUNS`, and a module with `register(noun: Noun) -> None` that declares the verbs with
`noun.verb(name, handler, meaning)`. A handler is `async def (arguments, context) -> Output | None`; see
`flm.cli.command` for an example. It may raise any FlmError; only CommandError says more than `internal error`.

Exit codes: 0 fine; 1 the user can mend it (wrong usage too); 2 FLM could not do its work; 130 Ctrl-C; 141 nobody reads
the output any more.

Knows no service; imports no asyncio, database or JSON library before a handler needs it, so that it starts at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from flm import __version__

if TYPE_CHECKING:
    import argparse

    from flm.cli.command import Context, Output

# noun -> (module, what it is about)
NOUNS = {
    "engines": ("flm.cli.engines", "the engines on this machine, and those registered by hand"),
    "models": ("flm.cli.models", "the models of all engines"),
    "proxy": ("flm.cli.proxy", "start, stop and look after the proxy"),
    "config": ("flm.cli.config", "settings"),
    "api-keys": ("flm.cli.api_keys", "the keys that clients send"),
    "certs": ("flm.cli.certs", "the local root of dev-selfsigned: hand it out, trust it, replace it"),
    "security": ("flm.cli.security", "who gets in, and how much"),
    "chat": ("flm.cli.chat", "ask a model through the running proxy"),
    "check": ("flm.cli.check", "integrity of all databases"),
}
_TAKES_A_VALUE = frozenset({"--format", "--db-path-config", "--db-path-security"})
EXIT_FLM_COULD_NOT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    if arguments in (["--version"], ["-V"]):
        print(f"flm {__version__}")
        return 0
    try:
        code = _run(arguments)
        sys.stdout.flush()
        if argv is None:
            gc.freeze()  # the program ends: looking through all it has imported takes a fifth of a short command's time
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # of stdout itself: any other was printed there
        _forget_stdout()
        sys.stderr.write(f"flm: standard output cannot be written: {error.strerror}\n")
        return EXIT_FLM_COULD_NOT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _run(arguments: list[str]) -> int:
    from flm.cli import output
    from flm.cli.command import Context, UsageError

    context: Context | None = None
    try:
        parsed = _parse(arguments)
        if parsed is None:
            return 0
        context = Context(
            getattr(parsed, "format", None),
            getattr(parsed, "db_path_config", None),
            getattr(parsed, "db_path_security", None),
        )
        said = _carry_out(parsed, context)
        if said is not None:
            output.show(said, context.format)
        return 0
    except UsageError as error:
        sys.stderr.write(error.usage)
        output.show_error("USAGE", error.message, _format_asked_for(arguments))
        return 1
    except Exception as error:  # the last line of defence: a person gets the error's shape, never a traceback
        return output.show_failure(error, context.format if context else None)


def _carry_out(parsed: argparse.Namespace, context: Context) -> Output | None:
    import asyncio
    import logging

    logging.basicConfig(format="flm: %(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    said: Output | None = asyncio.run(parsed.handler(parsed, context))
    return said


def _parse(arguments: list[str]) -> argparse.Namespace | None:
    """The parsed command line; None if it only asked for help or the version, which is printed."""
    from flm.cli.command import Noun, Parser, UsageError, common_options

    position = _noun_position(arguments)
    root = Parser(prog="flm", usage="flm [options] NOUN VERB …", epilog=_nouns_for_people(), parents=[common_options()])
    root.formatter_class = _raw_formatter()
    root.add_argument("-V", "--version", action="version", version=f"flm {__version__}")
    try:
        parsed = root.parse_args(arguments[:position])
        if position == len(arguments):
            raise UsageError("which noun? " + ", ".join(NOUNS), root.format_help())
        name = arguments[position]
        if name not in NOUNS:
            raise UsageError(f"there is no noun {name!r}; there are {', '.join(NOUNS)}", root.format_usage())
        noun = Noun(name, NOUNS[name][1])
        import_module(NOUNS[name][0]).register(noun)
        return noun.parser.parse_args(arguments[position + 1 :], parsed)
    except SystemExit:
        return None


def _noun_position(arguments: list[str]) -> int:
    """Index of the first argument that is neither an option nor an option's value; the length if there is none."""
    position = 0
    while position < len(arguments):
        if arguments[position] in _TAKES_A_VALUE:
            position += 2
        elif arguments[position].startswith("-"):
            position += 1
        else:
            return position
    return len(arguments)


def _format_asked_for(arguments: list[str]) -> str | None:
    """The format for an error in the command line itself, which may be too broken to parse."""
    for before, this in zip(["", *arguments], arguments, strict=False):
        if this == "--format=text" or (before == "--format" and this == "text"):
            return "text"
    return None


def _raw_formatter() -> type[argparse.HelpFormatter]:
    from argparse import RawDescriptionHelpFormatter

    return RawDescriptionHelpFormatter


def _nouns_for_people() -> str:
    lines = [f"  {name:<10} {meaning}" for name, (_, meaning) in NOUNS.items()]
    return "nouns (flm NOUN --help says more):\n" + "\n".join(lines)


def _open_closed_streams() -> None:
    """A command with closed standard streams (`>&-`) runs as with /dev/null; no file of ours gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            import os

            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def _forget_stdout() -> None:
    """Nobody reads stdout any more: what is left in its buffer must not raise when the interpreter ends."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    raise SystemExit(main())
