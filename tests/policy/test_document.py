"""The policy's document: what is taken, and each way it can be wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm.errors import CommandCode, CommandError
from flm.policy.document import MAX_DOCUMENT_BYTES, MAX_RPM, Policy, RateLimit, parse_policy, rendered


def test_nothing_said_is_every_default() -> None:
    policy = parse_policy(b"{}")
    assert policy == Policy()
    assert policy.auth_failure_limit == RateLimit(60, 20)
    assert (policy.rate_limit, policy.ip_rate_limit, policy.global_rate_limit) == (None, None, None)


def test_every_field() -> None:
    document = {
        "ip_whitelist": ["127.0.0.1", "192.168.0.0/16", "2001:db8::/32", "::ffff:10.0.0.0/104"],
        "cors": {"allowed_origins": ["https://example.com", "http://localhost:3000", "http://[::1]:3000"]},
        "rate_limit": {"rpm": 60, "burst": 10},
        "ip_rate_limit": {"rpm": 120, "burst": 120},
        "global_rate_limit": {"rpm": MAX_RPM, "burst": 1},
        "auth_failure_limit": {"rpm": 0},
        "trusted_proxies": ["10.0.0.0/8"],
        "client_address_header": "forwarded",
        "allowed_hosts": ["flm.example.com", "flm.example.org.", "192.0.2.1", "2001:db8::1"],
    }
    policy = parse_policy(json.dumps(document).encode())
    assert rendered(policy) == document
    assert policy.rate_limit == RateLimit(60, 10)
    assert policy.auth_failure_limit is None
    assert policy.allowed_origins == ("https://example.com", "http://localhost:3000", "http://[::1]:3000")


@pytest.mark.parametrize(
    ("document", "policy"),
    [
        ('{"ip_whitelist":[]}', Policy()),
        ('{"cors":{}}', Policy()),
        ('{"cors":{"allowed_origins":[]}}', Policy()),
        ('{"cors":{"allowed_origins":["*"]}}', Policy(allowed_origins=("*",))),
        ('{"rate_limit":{"rpm":7}}', Policy(rate_limit=RateLimit(7, 7))),
        ('{"rate_limit":{"rpm":0}}', Policy()),
        ('\n {"ip_whitelist" : ["::/0"]} \r\n', Policy(ip_whitelist=("::/0",))),
    ],
)
def test_what_is_left_out(document: str, policy: Policy) -> None:
    assert parse_policy(document.encode()) == policy


NETWORKS = {
    "null": ("it must be a list", "leave the field out"),
    '"10.0.0.0/8"': ("it must be a list",),
    "{}": ("it must be a list",),
    "[1]": ("[0]: it must be a text, not 1",),
    '["::1", null]': ("[1]: it must be a text, not null",),
    '[["::1"]]': ("[0]: it must be a text",),
    '[""]': ("[0]", "no IPv4 or IPv6 address"),
    '["localhost"]': ("[0]", "no IPv4 or IPv6 address"),
    '["10.0.0.0/8 "]': ("[0]", "number of bits"),
    '[" 10.0.0.0"]': ("[0]", "no IPv4 or IPv6 address"),
    '["10.0.0.1/8"]': ("[0]", "10.0.0.0/8 for the network or 10.0.0.1 for the address"),
    '["10.0.0.0/33"]': ("[0]", "0 to 32 bits"),
    '["2001:db8::/129"]': ("[0]", "0 to 128 bits"),
    '["10.0.0.0/"]': ("[0]", "number of bits"),
    '["10.0.0.0/-1"]': ("[0]", "number of bits"),
    '["10.0.0.0/255.0.0.0"]': ("[0]", "number of bits"),
    '["10.0.0.0/8/8"]': ("[0]", "number of bits"),
    '["10.0.0.0/08"]': ("[0]", "without leading zeros"),
    '["::/00"]': ("[0]", "without leading zeros"),
    '["010.0.0.1"]': ("[0]", "no IPv4 or IPv6 address"),
    '["10.0.0"]': ("[0]", "no IPv4 or IPv6 address"),
    '["fe80::1%eth0"]': ("[0]", "zone"),
    '["[::1]"]': ("[0]", "no IPv4 or IPv6 address"),
    '["192.0.2.1:80"]': ("[0]", "no IPv4 or IPv6 address"),
}
ORIGINS = {
    "null": ("it must be a list",),
    '"*"': ("it must be a list",),
    "[null]": ("[0]: it must be a text",),
    '["*", "https://a.example"]': ("no other may stand",),
    '["null"]': ("[0]", "an origin is"),
    '["a.example"]': ("[0]", "an origin is"),
    '["https://a.example/"]': ("[0]", "nothing behind it"),
    '["https://a.example/x"]': ("[0]", "an origin is"),
    '["https://A.example"]': ("[0]", "small letters"),
    '["HTTPS://a.example"]': ("[0]", "small letters"),
    '["https://*.a.example"]': ("[0]", "an origin is"),
    '["ftp://a.example"]': ("[0]", "an origin is"),
    '["https://"]': ("[0]", "an origin is"),
    '["https://a.example:99999"]': ("[0]", "an origin is"),
    '["https://a.example:"]': ("[0]", "an origin is"),
    '["https://a.example:443"]': ("[0]", "leave the port :443 out"),
    '["http://a.example:80"]': ("[0]", "leave the port :80 out"),
    '["https://u@a.example"]': ("[0]", "an origin is"),
    '["https://a.example\\r\\nx: y"]': ("[0]", "an origin is"),
    '["https://a.example\\n"]': ("[0]", "an origin is"),
    '["https://\\u00e4.example"]': ("[0]", "an origin is"),
}
HOSTS = {
    "null": ("it must be a list",),
    "[1]": ("[0]: it must be a text",),
    '[""]': ("[0]", "a host is"),
    '["*"]': ("[0]", "a host is"),
    '["Flm.example.com"]': ("[0]", "small letters"),
    '["flm.example.com:3560"]': ("[0]", "without a port"),
    '["[::1]"]': ("[0]", "without brackets"),
    '["https://a.example"]': ("[0]", "without a port"),
    '["a b"]': ("[0]", "a host is"),
    '["\\ud800"]': ("[0]", "a host is"),
}
LIMITS = {
    "null": ("it must be an object",),
    "60": ("it must be an object",),
    "[]": ("it must be an object",),
    "{}": ("it is empty",),
    '{"burst":10}': ("a burst without rpm",),
    '{"rpm":0,"burst":10}': ("no burst may stand beside it",),
    '{"rpm":0,"burst":0}': ("no burst may stand beside it",),
    '{"rpm":null}': (".rpm: it must be a whole number from 0 to 10000000, not null",),
    '{"rpm":"60"}': (".rpm", "whole number"),
    '{"rpm":true}': (".rpm", "whole number"),
    '{"rpm":60.0}': (".rpm", "whole number"),
    '{"rpm":6e1}': (".rpm", "whole number"),
    '{"rpm":0.5}': (".rpm", "whole number"),
    '{"rpm":-1}': (".rpm", "whole number"),
    '{"rpm":10000001}': (".rpm", "from 0 to 10000000"),
    '{"rpm":60,"burst":0}': (".burst: it must be a whole number from 1 to 10000000, not 0",),
    '{"rpm":60,"burst":null}': (".burst", "whole number"),
    '{"rpm":60,"burst":10000001}': (".burst", "whole number"),
    '{"rpm":60,"rps":1}': ('there is no field "rps"; known: rpm, burst',),
}
LIMIT_FIELDS = ("rate_limit", "ip_rate_limit", "global_rate_limit", "auth_failure_limit")
WHOLE = {
    "": ("not JSON", "line 1, column 1"),
    "null": ("it must be an object",),
    "[]": ("it must be an object",),
    "60": ("it must be an object",),
    "{": ("not JSON",),
    "{}{}": ("not JSON",),
    "{'ip_whitelist':[]}": ("not JSON",),
    '{"ip_whitelist":[],}': ("not JSON",),
    "\ufeff{}": ("not JSON",),
    '{"rate_limit":{"rpm":NaN}}': ("NaN is no number",),
    '{"rate_limit":{"rpm":-Infinity}}': ("-Infinity is no number",),
    '{"rate_limit":{"rpm":' + "9" * 5_000 + "}}": ("too long",),
    "[" * 100_000: ("nested too deep",),
    " " * MAX_DOCUMENT_BYTES + "{}": ("larger than",),
    '{"ip_whitelist":["::1"],"ip_whitelist":[]}': ('"ip_whitelist" stands there twice',),
    '{"ip_whitelst":["::1"]}': ('there is no field "ip_whitelst"; known: ip_whitelist, cors',),
    '{"IP_WHITELIST":[]}': ("there is no field",),
    '{"allowed_origins":[]}': ("there is no field", "cors"),
    '{"cors":null}': ("cors: it must be an object",),
    '{"cors":[]}': ("cors: it must be an object",),
    '{"cors":{"origins":[]}}': ("cors: there is no field", "known: allowed_origins"),
    '{"cors":{"allowed_origins":[],"allow_credentials":true}}': ("cors: there is no field",),
    '{"client_address_header":null}': ("client_address_header", '"x-forwarded-for" or "forwarded"'),
    '{"client_address_header":"x-real-ip"}': ("client_address_header",),
    '{"client_address_header":"X-Forwarded-For"}': ("client_address_header",),
    '{"client_address_header":["forwarded"]}': ("client_address_header",),
}
WRONG = [
    *((f'{{"ip_whitelist":{value}}}', "ip_whitelist", what) for value, what in NETWORKS.items()),
    ('{"ip_whitelist":["*"]}', "ip_whitelist[0]", ("0.0.0.0/0 and ::/0",)),
    *((f'{{"trusted_proxies":{value}}}', "trusted_proxies", what) for value, what in NETWORKS.items()),
    ('{"trusted_proxies":["*"]}', "trusted_proxies[0]", ("everybody",)),
    ('{"trusted_proxies":"*"}', "trusted_proxies", ("a list",)),
    ('{"trusted_proxies":["0.0.0.0/0"]}', "trusted_proxies[0]", ("trusts everybody",)),
    ('{"trusted_proxies":["::/0"]}', "trusted_proxies[0]", ("trusts everybody",)),
    ('{"trusted_proxies":["::ffff:0:0/96"]}', "trusted_proxies[0]", ("trusts everybody",)),
    ('{"trusted_proxies":["0.0.0.0/1","::1","128.0.0.0/1"]}', "trusted_proxies", ("0.0.0.0/0, which trusts",)),
    ('{"trusted_proxies":["8000::/1","::/1","10.0.0.0/8"]}', "trusted_proxies", ("::/0, which trusts everybody",)),
    ('{"trusted_proxies":["::ffff:0:0/97","128.0.0.0/2","192.0.0.0/2"]}', "trusted_proxies", ("trusts everybody",)),
    *((f'{{"cors":{{"allowed_origins":{value}}}}}', "cors.allowed_origins", what) for value, what in ORIGINS.items()),
    *((f'{{"allowed_hosts":{value}}}', "allowed_hosts", what) for value, what in HOSTS.items()),
    *((f'{{"{name}":{value}}}', name, what) for name in LIMIT_FIELDS for value, what in LIMITS.items()),
    ('{"rate_limit":{"rpm":60,"rpm":61}}', "", ('"rpm" stands there twice',)),
    *((document, "", what) for document, what in WHOLE.items()),
]  # fmt: skip


@pytest.mark.parametrize(("document", "where", "what"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_shape_is_refused_saying_where_and_what(document: str, where: str, what: tuple[str, ...]) -> None:
    with pytest.raises(CommandError) as caught:
        parse_policy(document.encode("utf-8", "surrogatepass"))
    assert caught.value.code is CommandCode.POLICY_INVALID
    message = caught.value.message
    assert message.startswith(f"the policy is not valid: {where}")
    assert [each for each in what if each not in message] == []
    assert message.isprintable()
    assert len(message) < 400


def test_what_is_not_utf8_is_refused() -> None:
    with pytest.raises(CommandError, match=r"not UTF-8 \(byte 2\)"):
        parse_policy(b'{"\xff":1}')


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("*"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rpm", "burst"]), inner, max_size=2),
    max_leaves=5,
)
names = st.sampled_from([*rendered(Policy()), "unknown"])


def read(text: bytes) -> Policy | CommandError:
    try:
        return parse_policy(text)
    except CommandError as error:
        return error


@given(st.dictionaries(names, values, max_size=4).map(json.dumps).map(str.encode) | st.binary(max_size=100))
@example(b'"\\ud800"')
def test_any_bytes_are_a_policy_or_refused(text: bytes) -> None:
    found = read(text)
    if isinstance(found, CommandError):
        assert found.code is CommandCode.POLICY_INVALID
        assert found.message.isprintable()
    else:
        assert read(json.dumps(rendered(found)).encode()) == found


rates = st.none() | st.builds(RateLimit, st.integers(1, MAX_RPM), st.integers(1, MAX_RPM))
networks = st.lists(st.ip_addresses().map(str), max_size=3).map(tuple)


@given(
    st.builds(
        Policy,
        ip_whitelist=networks,
        allowed_origins=st.sampled_from([(), ("*",), ("https://a.example", "http://b.example:1")]),
        rate_limit=rates,
        ip_rate_limit=rates,
        global_rate_limit=rates,
        auth_failure_limit=rates,
        trusted_proxies=networks,
        client_address_header=st.sampled_from(["x-forwarded-for", "forwarded"]),
        allowed_hosts=st.sampled_from([(), ("a.example", "::1")]),
    )
)
def test_a_rendered_policy_is_the_same_again(policy: Policy) -> None:
    assert parse_policy(json.dumps(rendered(policy)).encode()) == policy


def test_proxies_that_leave_somebody_out_are_taken() -> None:
    nearly = ("0.0.0.0/1", "128.0.0.0/2", "::/1")
    assert parse_policy(json.dumps({"trusted_proxies": nearly}).encode()).trusted_proxies == nearly
