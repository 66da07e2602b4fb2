"""What a noun's module is handed: `Noun` to declare its verbs, `Context` for its handlers, `Output` for what they say.

A noun's module looks like this, and is imported only when its noun is named:

    def register(noun: Noun) -> None:
        stop = noun.verb("stop", _stop, "end the running proxy")
        stop.add_argument("--now", action="store_true", help="do not wait for streams")

    async def _stop(arguments: argparse.Namespace, context: Context) -> Output:
        from flm.services import ProxyService
        return Output(await ProxyService(context.folder).stop(now=arguments.now))

Knows argparse; knows no noun, no service but where the data folder is, and prints nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from flm.services import Folder

FORMATS = ("json", "text")
_LONGEST_WORD = 80  # of what is compared with all options


class UsageError(Exception):
    """The command line makes no sense: `message` says why, `usage` what it should look like."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError where argparse would end the process."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known where it stands, so that the usage is that of the verb, and name what was meant."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return parsed, unknown

    def _meant(self, unknown: list[str]) -> str:
        from difflib import get_close_matches  # only here: it is for mistakes

        options = [option for action in self._actions for option in action.option_strings]
        for word in unknown:
            if word.startswith("--") and (
                found := get_close_matches(word.partition("=")[0][:_LONGEST_WORD], options, 1)
            ):
                return f"\ndid you mean {found[0]}?"  # a line of its own: what follows an option is not repeated
        return ""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """argparse would make an empty list of `--label=--`."""
        if action.option_strings and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)


class Output(NamedTuple):
    """What a command says.

    `data` is the JSON document's `data`. As text, `text` is printed if there is one; else `data` as a table, of
    `columns` if given (a list) or one line a field (an object).
    """

    data: object
    columns: tuple[str, ...] = ()
    text: str | None = None


class Context:
    """What every handler knows: the output format asked for (None: not said, so JSON) and where the data is."""

    def __init__(
        self,
        format: str | None,  # noqa: A002 - the option's name
        config_path: str | None,
        security_path: str | None,
    ) -> None:
        self.format = format
        self._config_path = config_path
        self._security_path = security_path

    @cached_property
    def folder(self) -> Folder:
        """The data folder: `FLM_HOME`, else the user's, with the paths of `--db-path-…`. Raises UsageError if one of
        these is a folder."""
        from flm.services import locate_folder

        for name, path in (("config", self._config_path), ("security", self._security_path)):
            if path is not None and os.path.isdir(path):
                raise UsageError(
                    f"--db-path-{name} {path} is a folder, and takes the database itself, such as {path}/{name}.db",
                    f"flm [--db-path-{name} FILE] NOUN VERB …\n",
                )

        return locate_folder(config=self._config_path, security=self._security_path)


# A handler that prints by itself, such as a stream, returns None.
Handler = Callable[[argparse.Namespace, Context], Coroutine[Any, Any, Output | None]]


def common_options() -> Parser:
    """The options that are taken before the noun, after it, and after the verb. The last one given holds."""
    options = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--format", choices=FORMATS, help="json (the default) or text, for people")
    options.add_argument("--db-path-config", metavar="FILE", help="config.db, if not in the data folder")
    options.add_argument("--db-path-security", metavar="FILE", help="security.db, if not in the data folder")
    return options


class Noun:
    """One noun of the command line while its parser is built."""

    def __init__(self, name: str, meaning: str, parser: Parser | None = None) -> None:
        self._options = common_options()
        self.parser = parser or Parser(prog=f"flm {name}", description=meaning, parents=[self._options])
        self._verbs: argparse._SubParsersAction[Parser] | None = None
        self._meanings: dict[str, str] = {}

    def verb(self, name: str, handler: Handler, meaning: str) -> argparse.ArgumentParser:
        """Add a verb and return its parser, for its own arguments."""
        verb = self._add(name, meaning)
        verb.set_defaults(handler=handler)
        return verb

    def group(self, name: str, meaning: str) -> Noun:
        """Add a word that has verbs of its own, as `alias` in `flm models alias set`."""
        return Noun(name, meaning, self._add(name, meaning))

    def _add(self, name: str, meaning: str) -> Parser:
        if self._verbs is None:
            self._verbs = self.parser.add_subparsers(metavar="VERB", parser_class=Parser)
            self.parser.set_defaults(handler=self._which_verb)  # a verb's own handler wins
        self._meanings[name] = meaning
        return self._verbs.add_parser(name, help=meaning, description=meaning, parents=[self._options])

    async def _which_verb(self, _arguments: argparse.Namespace, _context: Context) -> NoReturn:
        width = max(map(len, self._meanings))
        lines = [f"  {name:<{width}}  {meaning}" for name, meaning in self._meanings.items()]
        raise UsageError("\n".join(["which verb?", *lines]), self.parser.format_usage())

    def without_verb(self, handler: Handler) -> argparse.ArgumentParser:
        """For a noun that is a command by itself: returns its parser, for its arguments."""
        self.parser.set_defaults(handler=handler)
        return self.parser
