"""The capability table: what one kind of engine makes of each thing a caller can ask for, and the step that applies it.

A row is a `Case`: a parameter, or one class of its values. What becomes of it is said by a `Rule`; a table has the
rules of one kind of engine and decides, before the engine is asked, what passes, what is clamped, changed, dropped or
refused. Nothing is lost silently: each decision that alters the meaning becomes a `Change`, which the caller is told.
docs/parameters.md is written from these tables, and each of its cells is checked by a request through FLM.

Knows no engine: the rules stand in the engines' own files. A field that nobody has a rule for is not even decoded.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from flm.engines.call import Call, Change
from flm.errors import ErrorKind, RequestError
from flm.wire.chat import LETTER_N, MALFORMED, NULL, first_byte, invalid

Raw = msgspec.Raw
Asks = Callable[[Raw], bool]
Make = Callable[[Raw, Mapping[str, Raw]], Mapping[str, Any]]
Version = tuple[int, int, int]

MAX_CHANGES: Final = 32  # of one request, named in its answer: a request may have any number of unknown fields
MAX_NAME: Final = 64  # characters of an unknown field's name that are repeated
_NUMBERS: Final = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?")


class Act(enum.Enum):
    """What becomes of a case. The value is what docs/parameters.md calls it."""

    PASS = "passed"  # noqa: S105 - goes to the engine as it came
    REWORD = "reworded"  # goes in the engine's own words, and means the same
    IGNORED = "ignored"  # goes as it came; this kind of engine is known to take no notice, so the caller is told
    CLAMP = "clamped"  # the nearest value that is allowed goes in its place
    CHANGE = "changed"  # another value goes in its place
    DROP = "dropped"  # does not go
    REFUSE = "refused"  # the request is answered with an error, and the engine not asked


WARNED: Final = frozenset({Act.IGNORED, Act.CLAMP, Act.CHANGE, Act.DROP})


class Case(msgspec.Struct, frozen=True):
    """One thing a caller can ask for.

    `label` names it and is unique; `parameter` is the field it stands in. `asks` tells whether a value (never null)
    is of this case; None: every value is. `modality`: the case is that the messages hold this (see
    `wire.chat.modalities`); dropping it is then the translation's work, and only told here.
    `example`, with the fields `beside` it, is a request of this case.
    """

    label: str
    parameter: str
    example: Any
    asks: Asks | None = None
    modality: str = ""
    beside: Mapping[str, Any] = {}


class Rule(msgspec.Struct, frozen=True):
    """What becomes of a case. Of several rules the first that applies decides; if none does, the case passes.

    `note`: what a person must know, for the docs; for REFUSE, the error's words. `at`: where the value stands in the
    engine's own request, a path with dots. `value`: for CHANGE, what goes in its place. `bounds`: for CLAMP, lowest
    and highest. `make`: for REWORD, CHANGE and DROP, the fields that go in its place, from the value and all fields; a
    field that is UNSET goes away. `kind`: the error of REFUSE.
    The rule applies only to models known to lack the capability `lacking`, only to engines known to be older than
    `before`, and only to requests that have the field `beside` too, where these are given.
    """

    act: Act
    note: str = ""
    at: str = ""
    value: str | int | float | None = None
    bounds: tuple[float, float] | None = None
    make: Make | None = None
    kind: ErrorKind = ErrorKind.UNSUPPORTED_PARAMETER
    lacking: str = ""
    before: Version | None = None
    beside: str = ""

    def applies(self, call: Call) -> bool:
        if self.lacking and (not call.capabilities or self.lacking in call.capabilities):
            return False
        if self.beside and first_byte(call.peek.fields.get(self.beside, NULL)) == LETTER_N:
            return False
        return self.before is None or older(call.engine_version, self.before)


Rules = Mapping[str, Sequence[Rule]]


_Row = tuple[Case, tuple[Rule, ...]]


class Decision(msgspec.Struct):
    """The fields that go on, and what the caller must be told: the first MAX_CHANGES, and how many more there are."""

    fields: dict[str, Raw]
    changes: list[Change]
    unnamed: int = 0

    def tell(self, change: Change) -> None:
        if len(self.changes) < MAX_CHANGES:
            self.changes.append(change)
        else:
            self.unnamed += 1

    def told(self) -> tuple[Change, ...]:
        """All of it; the last may be `*`, whose value is the number of those that are not named."""
        rest = (Change("*", "dropped", self.unnamed),) if self.unnamed else ()
        return (*self.changes, *rest)


class Table:
    """The rules of one kind of engine for one endpoint.

    `cases`: all rows. `rules`: label to rules. `otherwise`: what becomes of cases without rules and of fields that are
    in no case: PASS for engines that speak OpenAI's own format, DROP for one that is translated into. `own`: fields
    beyond the API that the engine takes. Raises ValueError for a rule without a case.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        rules: Rules,
        *,
        otherwise: Act = Act.PASS,
        own: Collection[str] = (),
    ) -> None:
        unknown = rules.keys() - {case.label for case in cases}
        if unknown:
            raise ValueError(f"rules without a case: {', '.join(sorted(unknown))}")
        self.cases: Final = tuple(cases)
        self._rules = {label: tuple(given) for label, given in rules.items()}
        self._otherwise = otherwise
        self._known = frozenset(own) | {case.parameter for case in cases} | {"model", "messages", "stream"}
        self._fields: dict[str, list[_Row]] = {}
        self._modalities: dict[str, _Row] = {}
        for case in cases:
            found = self.rules(case)
            if case.modality:
                self._modalities[case.modality] = (case, found)
            else:
                self._fields.setdefault(case.parameter, []).append((case, found))
        self._fields = {name: kept for name, rows in self._fields.items() if (kept := _deciding(rows))}

    def rules(self, case: Case) -> tuple[Rule, ...]:
        """The rules of one row."""
        return self._rules.get(case.label, (Rule(self._otherwise),))

    def decide(self, call: Call, modalities: Iterable[str] = ()) -> Decision:
        """Apply the table to a request. `modalities`: what its messages hold besides text.

        Raises RequestError for what is refused.
        """
        decision = Decision(dict(call.peek.fields), [])
        for modality in sorted(modalities):
            if modality in self._modalities:
                self._apply(*self._modalities[modality], call, decision)
        for name, raw in call.peek.fields.items():
            rows = self._fields.get(name)
            if rows is None:
                if self._otherwise is Act.DROP and name not in self._known:
                    _drop(name, decision)
            elif first_byte(raw) != LETTER_N:  # null counts as absent
                found = _asked(name, raw, rows)
                if found is not None:
                    self._apply(*found, call, decision)
        return decision

    def _apply(self, case: Case, rules: tuple[Rule, ...], call: Call, decision: Decision) -> None:
        for rule in rules:
            if rule.applies(call):
                apply(case, rule, call, decision)
                return


def _deciding(rows: list[_Row]) -> list[_Row]:
    """The rows of one field without those at the end that alter nothing: a request should not pay for them."""
    last = max((index for index, row in enumerate(rows) if any(map(_alters, row[1]))), default=-1)
    return rows[: last + 1]


def _alters(rule: Rule) -> bool:
    return rule.make is not None or rule.act in WARNED or rule.act is Act.REFUSE


def _asked(name: str, raw: Raw, rows: list[_Row]) -> _Row | None:
    """The first row whose case `raw` is. Raises INVALID_REQUEST for a value that cannot be read."""
    try:
        for row in rows:
            if row[0].asks is None or row[0].asks(raw):
                return row
    except MALFORMED as error:
        raise invalid(f"`{name}` is not valid: {error}", name) from None
    return None


def apply(case: Case, rule: Rule, call: Call, decision: Decision) -> None:
    """Let `rule` decide about `case` in `decision`. Raises RequestError."""
    name = case.parameter
    if rule.act is Act.REFUSE:
        raise RequestError(rule.kind, rule.note or f"this engine takes no {case.label}", param=name)
    if rule.act is Act.DROP and rule.make is None:
        if case.modality:
            decision.tell(Change(name, "dropped"))
        _drop(name, decision)
        return
    value = rule.value
    raw = call.peek.fields.get(name, NULL)
    if rule.bounds is not None:
        value = _clamped(raw, rule.bounds)
    if rule.make is not None:
        for field, made in rule.make(raw, call.peek.fields).items():
            if made is msgspec.UNSET:
                decision.fields.pop(field, None)
            else:
                decision.fields[field] = made if isinstance(made, Raw) else _raw(made)
    elif value is not None and rule.act in (Act.CLAMP, Act.CHANGE):
        decision.fields[name] = _raw(value)
    if rule.act in WARNED:
        decision.tell(Change(name, rule.act.value, value))


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def _drop(name: str, decision: Decision) -> None:
    if first_byte(decision.fields.pop(name, NULL)) != LETTER_N:
        decision.tell(Change(name[:MAX_NAME], "dropped"))


def _clamped(raw: Raw, bounds: tuple[float, float]) -> float:
    low, high = bounds
    value: float = msgspec.json.decode(raw, type=float)
    return min(max(value, low), high)


def older(version: str | None, since: Version) -> bool:
    """Whether `version` is known to be older than `since`; self-built engines say 0.0.0, which tells nothing."""
    match = _NUMBERS.match(version or "")
    numbers = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    return any(numbers) and numbers < since
