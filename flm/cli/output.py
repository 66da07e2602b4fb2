"""How a command speaks: the JSON document `{"version":"1.0","data":…}`, or aligned text for people; errors likewise.

Everything goes to stdout, errors too. Control characters are escaped, in JSON as JSON does it, so that a model's name
or an engine's message cannot steer the terminal. Knows no noun and no service.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence

import msgspec

from flm.cli.command import Output
from flm.errors import CommandError

VERSION = "1.0"
_FLM_COULD_NOT = 2
_LONG = 100  # characters of an object that are read as one line
_SENTENCE = 60  # from here on an item of a list is no name
_UNKNOWN = "unrecognized arguments: "  # argparse's words
_key = re.compile(r"(flm_[0-9A-Za-z]{12}_)[0-9A-Za-z]{4,}")
_value = re.compile(r"(--?[A-Za-z][\w-]*[ =])(?!-)\S+")


def show(output: Output, format: str | None) -> None:  # noqa: A002 - the option's name
    """Print what a command has to say."""
    if format == "text":
        _write(_as_text(output) + "\n")
    else:
        _write_json({"version": VERSION, "data": output.data})


def show_error(code: str, message: str, format: str | None) -> None:  # noqa: A002
    """Print an error: `{"error":{"code","message"}}`, or one line for people. A key that was given as an argument by
    mistake is not repeated, nor is what follows an option that there is not: `--api-key SECRET`."""
    message = _key.sub(r"\1(removed)", message)
    if message.startswith(_UNKNOWN):
        message = _UNKNOWN + _value.sub(r"\1…", message.removeprefix(_UNKNOWN))
    if format == "text":
        _write(f"{code}: {printable(message)}\n")
    else:
        writable = message.encode(errors="backslashreplace").decode()  # an argument may hold bytes that are no UTF-8
        _write_json({"error": {"code": code, "message": writable}})


def show_failure(error: Exception, format: str | None) -> int:  # noqa: A002
    """Print an exception as an error and return the exit code it stands for."""
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, CommandError):
        show_error(error.code.value, error.message, format)
        return error.exit_code
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        show_error("IO_ERROR", f"the system refused: {error.strerror or error}{where}", format)
        return _FLM_COULD_NOT
    logging.getLogger("flm").error("unexpected error", exc_info=error)
    show_error("INTERNAL_ERROR", f"unexpected {type(error).__name__}; the log on stderr says where", format)
    return _FLM_COULD_NOT


def printable(text: str) -> str:
    """`text` with line breaks and tabs kept and every other control character escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def harmless(document: bytes) -> str:
    """JSON, the same to whoever parses it, without a control character: JSON itself escapes only those of ASCII."""
    return "\n".join(map(_escaped, document.decode().split("\n")))


def _escaped(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in line)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Aligned columns under their names, two spaces apart; `(none)` where there is no row."""
    if not rows:
        return "(none)"
    cells = [[name.upper().replace("_", " ") for name in columns]]
    cells += [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _as_text(output: Output) -> str:
    if output.text is not None:
        return printable(output.text)
    data = msgspec.to_builtins(output.data)
    if isinstance(data, list | tuple):
        return table(data, output.columns or list(data[0] if data else ()))
    if isinstance(data, dict):
        width = max((len(name) for name in data), default=0)
        return "\n".join(f"{name.ljust(width)}  {_field(value, width + 2)}" for name, value in data.items())
    return _cell(data)


def _field(value: object, indent: int) -> str:
    """One field of an object; a list of objects, or of sentences, has a line for each, and an object too long for one a
    line a field."""
    cell = _cell(value)
    if isinstance(value, list | tuple) and (
        all(isinstance(each, dict) for each in value) or any(len(_cell(each)) > _SENTENCE for each in value)
    ):
        return ("\n" + " " * indent).join(_cell(each) for each in value) or cell
    if isinstance(value, dict) and len(cell) > _LONG:
        return ("\n" + " " * indent).join(f"{name}={_cell(each)}" for name, each in value.items())
    return cell


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_cell(each) for each in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}={_cell(each)}" for name, each in value.items()) or "-"
    return printable(str(value)).replace("\n", " ")


def _write_json(document: object) -> None:
    _write(harmless(msgspec.json.format(msgspec.json.encode(document), indent=2)) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
