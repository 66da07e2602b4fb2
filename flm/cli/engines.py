"""`flm engines …`: the engines on this machine, and those registered by hand."""

from __future__ import annotations

import argparse
import os

from flm.cli.command import Context, Noun, Output, UsageError

_COLUMNS = ("id", "kind", "url", "status", "version", "latency_ms", "source", "last_error")


def register(noun: Noun) -> None:
    from flm.services.engines import KINDS

    kinds = ", ".join(KINDS)
    detect = noun.verb("detect", _detect, "look for engines of every kind, 5 s at most")
    detect.add_argument("--engine", metavar="K", help=f"one kind only: {kinds}")
    detect.add_argument("--fresh", action="store_true", help="look again, however recent the last look is")
    noun.verb("list", _list, "engines that are there or registered")
    add = noun.verb("add", _add, "register one that cannot be found by itself")
    add.add_argument("--id", required=True, metavar="ID", help="its name in model ids: flm://ID/model")
    add.add_argument(
        "--kind", required=True, metavar="K", help=f"what it speaks: {kinds}; openai is any server like it"
    )
    add.add_argument(
        "--url", required=True, metavar="URL", help="http(s)://host[:port][/base], with or without /v1 at its end"
    )
    credential = add.add_mutually_exclusive_group()
    credential.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds FLM's key for it")
    credential.add_argument("--api-key-file", metavar="F", help="file that holds FLM's key for it; -: standard input")
    add.add_argument(
        "--ca-file",
        metavar="F",
        help="PEM file with the certificates that an https:// engine is verified by, instead of the system's",
    )
    for name in ("connect", "first-byte", "between-bytes", "total"):
        add.add_argument(f"--{name}-timeout", type=float, metavar="S", help="seconds; else the setting of this name")
    noun.verb("remove", _remove, "unregister one").add_argument("id", metavar="ID")
    demo = noun.verb("demo", _demo, "start the built-in demo engine in the background, and register it")
    demo.add_argument("--stop", action="store_true", help="end and unregister it")


async def _detect(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import EngineService

    found = await EngineService(context.folder).detect_engines(arguments.engine, fresh=arguments.fresh)
    return Output(found, _COLUMNS)


async def _list(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import EngineService

    return Output(await EngineService(context.folder).list(), _COLUMNS)


async def _add(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import EngineService
    from flm.services.registration import EngineTimeouts

    added = await EngineService(context.folder).add(
        arguments.id,
        arguments.kind,
        arguments.url,
        credential=_credential(arguments),
        ca=_authorities(arguments.ca_file),
        timeouts=EngineTimeouts(
            arguments.connect_timeout,
            arguments.first_byte_timeout,
            arguments.between_bytes_timeout,
            arguments.total_timeout,
        ),
    )
    return Output(added)


async def _remove(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import EngineService

    return Output({"id": await EngineService(context.folder).remove(arguments.id), "removed": True})


async def _demo(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import DemoService

    service = DemoService(context.folder)
    if arguments.stop:
        return Output({"stopped": await service.stop()})
    return Output(await service.start())


def _credential(arguments: argparse.Namespace) -> str | None:
    """The engine's key, from where the command line says it is: never from the command line itself."""
    usage = "flm engines add … [--api-key-env NAME | --api-key-file F]\n"
    if arguments.api_key_env is not None:
        if arguments.api_key_env not in os.environ:
            raise UsageError(f"there is no environment variable {arguments.api_key_env!r}", usage)
        return os.environ[arguments.api_key_env]
    if arguments.api_key_file is not None:
        try:
            with open(0 if arguments.api_key_file == "-" else arguments.api_key_file, encoding="utf-8") as file:
                return file.read(_LONGEST_CREDENTIAL).strip()
        except UnicodeDecodeError:
            raise UsageError(f"{arguments.api_key_file} is no text, so it holds no key", usage) from None
        except OSError as error:
            message = f"the key file {arguments.api_key_file} cannot be read: {error.strerror}"
            raise UsageError(message, usage) from None
    return None


def _authorities(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read(_LONGEST_CA_FILE)
    except OSError as error:
        usage = "flm engines add … --url https://… [--ca-file F]\n"
        raise UsageError(f"the CA file {path} cannot be read: {error.strerror}", usage) from None


_LONGEST_CA_FILE = 1_048_576  # more than is taken, so that it is the service that refuses what is too large
_LONGEST_CREDENTIAL = 16_384  # a header's share of what servers take
