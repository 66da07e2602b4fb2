"""Text for people: an object whose fields are lists of objects is still read line by line."""

from __future__ import annotations

import pytest

from flm.cli.command import Output
from flm.cli.output import show


def test_a_list_of_objects_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    engines = [{"id": "one", "status": "up"}, {"id": "two", "status": "down"}]
    show(Output({"pid": 7, "engines": engines, "draining": [], "worker_pids": [1, 2]}), "text")
    assert capsys.readouterr().out.splitlines() == [
        "pid          7",
        "engines      id=one, status=up",
        "             id=two, status=down",
        "draining     -",
        "worker_pids  1, 2",
    ]


def test_a_long_object_has_a_line_for_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        Output({"pid": 7, "short": {"a": 1, "b": None}, "long": {"domains": ["x" * 60, "y" * 60], "hint": None}}),
        "text",
    )
    assert capsys.readouterr().out.splitlines() == [
        "pid    7",
        "short  a=1, b=-",
        f"long   domains={'x' * 60}, {'y' * 60}",
        "       hint=-",
    ]


def test_a_list_of_sentences_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ("a, " * 20 + "b").strip(), "short"
    show(Output({"warnings": [first, second], "none": [], "names": ["x", "y"]}), "text")
    assert capsys.readouterr().out.splitlines() == [
        f"warnings  {first}",
        f"          {second}",
        "none      -",
        "names     x, y",
    ]
