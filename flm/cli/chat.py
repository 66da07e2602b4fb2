"""`flm chat`: ask a model through the running proxy.

The answer is a JSON document like any other's; with `--stream` it is text, written as it comes (unless JSON is asked
for by name: then the document, when it is complete).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from flm.cli.command import Context, Noun, Output, UsageError

_USAGE = "flm chat [--model M] --prompt P [--stream]\n"


def register(noun: Noun) -> None:
    chat = noun.without_verb(_chat)
    chat.add_argument(
        "--model", metavar="M", help="flm://engine/model, an alias, or a plain name; the only one if left out"
    )
    chat.add_argument("--prompt", required=True, metavar="P", help="the question; -: standard input")
    chat.add_argument("--stream", action="store_true", help="write the answer as it comes")


def _chat(arguments: argparse.Namespace, context: Context) -> Coroutine[Any, Any, Output | None]:
    # Read here and not on the event loop, where Ctrl-C would wait for the end of the input.
    try:
        prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    except UnicodeDecodeError:
        raise UsageError("the standard input is no valid text in the encoding of this terminal", _USAGE) from None
    return _ask(arguments, context, prompt)


async def _ask(arguments: argparse.Namespace, context: Context, prompt: str) -> Output | None:
    from flm.services import ChatService

    service = ChatService(context.folder)
    if not arguments.stream or context.format == "json":
        answer = await service.ask(prompt, arguments.model)
        return Output(answer, text=answer.content)

    from flm.cli.output import printable

    context.format = "text"  # an error in the middle of an answer too
    async with aclosing(service.stream(prompt, arguments.model)) as pieces:
        async for piece in pieces:
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    sys.stdout.write("\n")
    return None
