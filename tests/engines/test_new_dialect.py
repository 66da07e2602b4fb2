"""The promise of docs/architecture.md: a new engine is one new file.

A clone of the package, made of links, gets the file `parrot.py` and nothing else. Then FLM, used as people use it,
finds the engine, lists its models, and translates chat, completions and embeddings through a real proxy; and the
contract suite and the law take the new dialect in by themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.real.installation import Installation
from tests.support.engine import Peer, ScriptedEngine, Step, answer, chunked

ROOT = Path(__file__).resolve().parents[2]
NEW_FILE = Path(__file__).with_name("parrot.py")
SUITES = [
    f"tests/engines/{name}.py"
    for name in ("test_contract", "test_contract_parameters", "test_law", "test_parameters", "test_registry")
]
# The smallest new engine: one that speaks as another does.
SMALLEST = '''"""Finch, which speaks OpenAI's format and no more."""
from flm.engines.openai import OpenAI


class Finch(OpenAI):
    kind = "finch"
    label = "Finch"


DIALECT = Finch()
'''
CHOSEN = "parrot or page or kinds or (finch and (any_bytes or chats or json))"
MODEL = "flm://parrot/polly:v1/grey"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout with one file more."""
    root = tmp_path / "clone"
    (root / "flm" / "engines").mkdir(parents=True)
    for folder in (Path("flm"), Path("flm/engines")):
        for path in (ROOT / folder).iterdir():
            if path.name not in ("engines", "__pycache__"):
                (root / folder / path.name).symlink_to(path)
    for name in ("tests", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    (root / "flm" / "engines" / "parrot.py").write_text(NEW_FILE.read_text())
    return root


def lines(words: list[str], heard: int) -> list[bytes]:
    said = [{"word": word} for word in words]
    return [json.dumps(one).encode() + b"\n" for one in [*said, {"over": "stop", "heard": heard, "spoke": len(words)}]]


def spoken(request: bytes) -> bytes:
    """What the Parrot answers to one request."""
    head, _, body = request.partition(b"\r\n\r\n")
    method, path = head.split(b" ", 2)[:2]
    if method == b"GET":
        birds = {"birds": [{"name": "polly:v1/grey", "memory": 7}]}
        known: dict[bytes, Any] = {b"/parrot": {"parrot": "2.1"}, b"/parrot/birds": birds}
        return answer(200, json.dumps(known[path]).encode()) if path in known else answer(404, b"?")
    asked = json.loads(body)
    assert asked["bird"] == "polly:v1/grey"
    if path == b"/parrot/measure":
        vectors = [[0.5, float(len(text))] for text in asked["texts"]]
        return answer(200, json.dumps({"lengths": vectors, "heard": 3}).encode())
    assert path == b"/parrot/speak"
    if asked["heard"] == ["die"]:
        return chunked(200, [b'{"word":"I "}\n', b'{"squawk":"the cat"}\n'])
    if asked["heard"] == ["shout"]:
        return answer(400, b'{"message":"parrots do not shout"}')
    return chunked(200, lines([word + " " for text in asked["heard"] for word in text.split()], len(asked["heard"])))


def perch() -> Step:
    """Answers on one connection until the other side closes."""

    async def step(peer: Peer) -> None:
        while True:
            while (request := peer.next_request()) is None:
                if not await peer.receive_some():
                    return
            await peer.send(spoken(request))

    return step


class Clone(Installation):
    """FLM run from the clone."""

    def __init__(self, home: Path, root: Path, url: str) -> None:
        super().__init__(home, PYTHONPATH=str(root), PYTHONSAFEPATH="1", PARROT_PERCH=url)


def chats(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "pieces of eight"}]}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == "pieces of eight "
    assert (whole.model, whole.choices[0].finish_reason) == (MODEL, "stop")
    raw = client.chat.completions.with_raw_response.create(**asked, seed=7)
    assert raw.headers["x-flm-warnings"] == "seed;action=dropped"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (1, 3)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "pieces of eight "
    assert final.usage == whole.usage


def completes(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="ahoy there")
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("ahoy there ", "stop")
    with client.completions.create(model=MODEL, prompt="ahoy there", stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == "ahoy there "


def embeds(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model=MODEL, input=["a", "abc"])
    plain = client.embeddings.create(model=MODEL, input=["a", "abc"], encoding_format="float")
    assert [item.embedding for item in packed.data] == [[0.5, 1.0], [0.5, 3.0]]
    assert [item.embedding for item in plain.data] == [[0.5, 1.0], [0.5, 3.0]]


def fails(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="parrots do not shout"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "shout"}])
    stream = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "die"}], stream=True)
    with stream:
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "I "]
        with pytest.raises(openai.APIError, match="the cat"):
            next(stream)


def use(flm: Clone, url: str) -> None:
    """Everything a person does with a new engine."""
    (found,) = flm.run("engines", "detect", "--engine", "parrot", "--fresh")
    assert (found["kind"], found["status"], found["version"], found["url"]) == ("parrot", "RunningHealthy", "2.1", url)
    flm.run("config", "set", "engine.discover", "false")  # other engines of this machine are none of its business
    flm.run("engines", "add", "--id", "parrot", "--kind", "parrot", "--url", url)
    assert [(model["id"], model["context_length"]) for model in flm.run("models", "list")] == [(MODEL, 7)]
    flm.start()
    try:
        with flm.client() as client:
            assert [model.id for model in client.models.list()] == [MODEL]
            for step in (chats, completes, embeds, fails):
                step(client)
    finally:
        flm.stop()
    assert flm.faults() == []


def test_one_new_file_is_a_new_engine(clone: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with ScriptedEngine([perch()]) as engine:
            flm = Clone(tmp_path / "home", clone, engine.url)
            await asyncio.to_thread(use, flm, engine.url)
            assert engine.errors == []

    asyncio.run(asyncio.wait_for(test(), 90))


@pytest.fixture
def environment(clone: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(clone), "HOME": str(clone), "PATH": os.environ["PATH"], "CI": "true"}


def test_the_shared_suites_take_it_in(clone: Path, environment: dict[str, str]) -> None:
    """They find it by themselves, and it passes; one that takes any end for a good one does not (negative control)."""
    (clone / "flm" / "engines" / "finch.py").write_text(SMALLEST)
    done = suites(clone, environment, CHOSEN)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].rsplit(None, 1)[-1]) > 100
    module = clone / "flm" / "engines" / "parrot.py"
    faulty = module.read_text().replace("            raise unfinished()", "            str(last)")
    assert faulty != module.read_text(), "nothing was planted"
    module.write_text(faulty)
    done = suites(clone, environment, "parrot and no_answer")
    assert done.returncode == 1, done.stdout[-3000:]


def suites(clone: Path, environment: dict[str, str], chosen: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(clone)]
    command += ["-c", str(clone / "pyproject.toml"), "-k", chosen, *SUITES]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=110)
