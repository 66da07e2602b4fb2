"""docs/parameters.md, written from the capability tables: `python -m tests.engines.parameter_page` writes it anew.

Registry-driven: a new dialect is a new column, once the demo engine plays its engine. Does not check that a table tells
the truth (see test_parameters).
"""

from __future__ import annotations

from pathlib import Path

from flm.demo.registry import DIALECTS as SIMULATORS
from flm.engines.base import Dialect
from flm.engines.call import Endpoint
from flm.engines.capabilities import Act, Case, Rule, Table, Version
from flm.engines.registry import DIALECTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"

INTRODUCTION = """\
# What becomes of each parameter

Written from the capability tables in `flm/engines/` by `make docs`; do not edit it by hand. `make test` sends a real
request through FLM to a recording engine for every cell (`tests/engines/test_parameters.py`).

| word | meaning |
|---|---|
| passed | goes to the engine as it came; what the engine lacks it refuses itself |
| reworded | goes in the engine's own words and means the same |
| ignored | goes as it came, but this kind of engine is known to take no notice: the caller is told |
| clamped, changed | another value goes in its place: the caller is told |
| dropped | does not go: the caller is told |
| refused | an error (400 `unsupported_parameter`, or 422 `unsupported_modalities`), and the engine is not asked |

The caller is told in the answer's header `x-flm-warnings`, a structured-field list (RFC 9651) such as
`temperature;action=clamped;value=2, logit_bias;action=dropped`, and the log line of the request lists the same under
`warnings`. It names 32; `*;action=dropped;value=3` at its end says that 3 more are not named. `null` counts as absent,
and a value that asks for what happens anyway (`n: 1`, `store: false`) is no case.
Fields that are in no row go to engines that speak OpenAI's format unchanged; elsewhere they are dropped, and told,
also those inside messages, tools and formats (`messages.refusal`, `tools.cache_control`).
"""


TITLES = {Endpoint.CHAT: "Chat", Endpoint.COMPLETIONS: "Text completions", Endpoint.EMBEDDINGS: "Embeddings"}


def page() -> str:
    sections = [f"\n## {title}\n\n{table(shown(endpoint))}" for endpoint, title in TITLES.items()]
    return INTRODUCTION + "".join(sections)


def shown(endpoint: Endpoint) -> dict[str, Table]:
    """The tables that are columns of the page."""
    return {kind: each for kind, each in tables(endpoint).items() if kind in SIMULATORS}


def tables(endpoint: Endpoint) -> dict[str, Table]:
    """The tables of one route, by kind; a kind that does not translate it has none."""
    found = {kind: table_of(dialect, endpoint) for kind, dialect in sorted(DIALECTS.items())}
    return {kind: each for kind, each in found.items() if each is not None}


def table_of(dialect: Dialect, endpoint: Endpoint) -> Table | None:
    return {
        Endpoint.CHAT: dialect.chat_table,
        Endpoint.COMPLETIONS: dialect.completion_table,
        Endpoint.EMBEDDINGS: dialect.embedding_table,
    }[endpoint]


def table(tables: dict[str, Table]) -> str:
    """One Markdown table: a row for each case, a column for each kind."""
    cases = next(iter(tables.values())).cases
    labels = [DIALECTS[kind].label for kind in tables]
    lines = ["| | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    for case in cases:
        cells = [cell(each.rules(case)) for each in tables.values()]
        lines.append(f"| `{case.label}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(rules: tuple[Rule, ...]) -> str:
    """What becomes of one case, in words."""
    words = [_words(rule) for rule in rules]
    if _conditional(rules[-1]):
        words.append("else passed")
    return "; ".join(words)


def _conditional(rule: Rule) -> bool:
    return bool(rule.lacking or rule.before or rule.beside)


def _words(rule: Rule) -> str:
    text = rule.act.value
    if rule.act is Act.REFUSE:
        text += f" ({rule.kind.status})"
    if rule.value is not None:
        text += f" (`{rule.value}`)" if rule.act is Act.IGNORED else f" to `{rule.value}`"
    if rule.bounds is not None:
        text += f" to {rule.bounds[0]}..{rule.bounds[1]}"
    if rule.at:
        text += f" as `{rule.at}`"
    if rule.lacking:
        text += f" for models without `{rule.lacking}`"
    if rule.before:
        text += " before " + ".".join(map(str, rule.before))
    if rule.beside:
        text += f" beside `{rule.beside}`"
    if rule.note and rule.act is not Act.REFUSE:
        text += f" ({rule.note})"
    return text


def variants(dialect: Dialect, case: Case, rules: tuple[Rule, ...]) -> list[tuple[Rule, tuple[str, ...], str | None]]:
    """Each rule of a cell with a model's capabilities and an engine's version for which it is the one that decides."""
    found: list[tuple[Rule, tuple[str, ...], str | None]] = []
    for rule in rules:
        capabilities = ("completion",) if rule.lacking else ()
        found.append((rule, capabilities, _last_before(rule.before) if rule.before else None))
    if _conditional(rules[-1]):
        found.append((Rule(Act.PASS), (), None))
    return found


def _last_before(version: Version) -> str:
    """A version older than this one, and no older than need be: earlier rules may be for those."""
    major, minor, patch = version
    if patch:
        return f"{major}.{minor}.{patch - 1}"
    return f"{major}.{minor - 1}.999" if minor else f"{major - 1}.999.999"


if __name__ == "__main__":
    PAGE.write_text(page())
