"""The pattern lint finds what it is for, lets the like of it pass, and finds nothing in FLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure.patterns import finds, main

PACKAGE = Path(__file__).resolve().parents[2] / "flm"


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("log.warning('refused %s', engine.credential)", "secret-in-log"),
        ("log.info(f'{secret}')", "secret-in-log"),
        ("log.info('it is ' + prompt)", "secret-in-log"),
        ("raise ValueError(f'not {passphrase}')", "secret-in-message"),
        ("raise CommandError(CODE, 'not %s' % self.credential)", "secret-in-message"),
        ("if digest == stored: pass", "secret-compared"),
        ("x = given != self._secret", "secret-compared"),
        ("context.check_hostname = False", "unverified-tls"),
        ("context.verify_mode = ssl.CERT_NONE", "unverified-tls"),
        ("get(url, verify=False)", "unverified-tls"),
        ("import pickle", "unsafe-loader"),
        ("from xml.etree import ElementTree", "unsafe-loader"),
        ("eval(text)", "code-from-text"),
        ("os.system(line)", "shell"),
        ("subprocess.run(line, shell=True)", "shell"),
        ("token = random.getrandbits(128)", "guessable"),
        ("subprocess.run(command, env={'KEY': credential})", "secret-in-environment"),
        ("path = tempfile.mktemp()", "temporary-name"),
    ],
)
def test_a_planted_pattern_is_found(source: str, rule: str) -> None:
    assert [find.rule for find in finds(source)] == [rule]
    assert finds(f"{source}  # allowed {rule}: for this test") == []
    assert finds(f"{source}  # allowed {rule}:") != []
    assert finds(f"{source}  # allowed something-else: for this test") != []


@pytest.mark.parametrize(
    "source",
    [
        "log.warning('refused %s', engine.id)",
        "raise ValueError('the passphrase is empty')",
        "if kind == 'passphrase': pass",
        "ok = hmac.compare_digest(digest, stored)",
        "context.check_hostname = True",
        "re.compile(text)",
        "subprocess.run([program, '--flag'])",
    ],
)
def test_the_like_of_it_passes(source: str) -> None:
    assert finds(source) == []


def test_flm_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(PACKAGE)])
    assert (code, capsys.readouterr().out) == (0, "")
