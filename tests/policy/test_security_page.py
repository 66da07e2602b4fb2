"""docs/security.md shows policies that can be set, and says of wrong ones what FLM says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.policy.document import Policy, parse_policy, rendered

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
WRONG = re.findall(r"^\| `(\{.*\})` \| (.*) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("document", EXAMPLES)
def test_an_example_can_be_set(document: str) -> None:
    assert parse_policy(document.encode()) != Policy()


@pytest.mark.parametrize(("document", "said"), WRONG)
def test_a_wrong_one_is_refused_as_the_page_says(document: str, said: str) -> None:
    with pytest.raises(CommandError) as refused:
        parse_policy(document.encode())
    assert said in refused.value.message


def test_the_page_has_them_all() -> None:
    assert len(EXAMPLES) == 2
    assert len(WRONG) == 18
    for name in rendered(Policy()):
        assert re.search(rf"^\| `{name}[`.]", PAGE, re.MULTILINE), name
