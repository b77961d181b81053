"""Policies and rules as data: what is refused, what matches, and that JSON gives back what went in."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_otel.sampling.policy import MAX_RULES, METHODS, Policy, Rule
from tests import sizes

ratios = st.floats(min_value=0.0, max_value=1.0, allow_nan=False)
moments = st.none() | st.floats(min_value=0, max_value=4e9, allow_nan=False)
notes = st.text(max_size=20)
patterns = st.from_regex(r"/[a-z/*?<>:]{0,20}", fullmatch=True)


@st.composite
def rules(draw):
    """A rule by path, by route or by method alone."""
    method = draw(st.sampled_from(["", *sorted(METHODS)]))
    kind = draw(st.sampled_from(["path", "route", "method"]))
    where = {kind: draw(patterns)} if kind != "method" else {}
    return Rule(
        draw(ratios), method=method or ("" if where else "GET"), priority=draw(st.integers(-5, 5)),
        expires_at_s=draw(moments), note=draw(notes), **where,
    )  # fmt: skip


@given(
    st.none() | ratios, st.integers(0, 9), moments, notes, st.lists(rules(), max_size=5),
    st.none() | st.floats(0.01, 1e6), st.sampled_from([None, True, False]), st.none() | st.floats(0.01, 100),
)  # fmt: skip
def test_json_gives_back_the_same_policy(ratio, version, until, note, found, limit, errors, slow):
    """Through text and back; also its fingerprint."""
    policy = Policy(ratio, "admin", version, until, note, tuple(found), limit, errors, slow)

    again = Policy.from_json(json.loads(json.dumps(policy.to_json())))

    assert again == policy
    assert again.fingerprint == policy.fingerprint


@sizes.each(
    ("keywords", "text"),
    [
        ({"ratio": 25, "path": "/"}, r"expected a number from 0\.0 to 1\.0\. For 25 % write 0\.25"),
        ({"ratio": math.nan, "path": "/"}, "expected a number"),
        ({"ratio": True, "path": "/"}, "expected a number"),
        ({"ratio": "0.5", "path": "/"}, "expected a number"),
        ({"ratio": 1, "path": "/a", "route": "/a"}, "expected one of them"),
        ({"ratio": 1}, "neither path, route nor method"),
        ({"ratio": 1, "path": " "}, "neither path, route nor method"),
        ({"ratio": 1, "path": "checkout/*"}, "such as '/checkout/\\*'"),
        ({"ratio": 1, "path": "/" + "a" * 200}, "longer than 200"),
        ({"ratio": 1, "path": 5}, "expected a string"),
        ({"ratio": 1, "method": "FETCH"}, "expected one of"),
        ({"ratio": 1, "path": "/", "priority": 1.5}, "whole number"),
        ({"ratio": 1, "path": "/", "expires_at_s": math.inf}, "seconds since the Unix epoch"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_what_fits(keywords, text):
    """The text is shown in forms and checks."""
    with pytest.raises(ValueError, match=text):
        Rule(**keywords)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"ratio": 2.0}, "expected a number"),
        ({"ratio": 1.0, "max_per_second": 0}, "above 0"),
        ({"ratio": 1.0, "keep_slow_s": -1}, "above 0"),
        ({"ratio": 1.0, "keep_slow_s": math.nan}, "above 0"),
        ({"ratio": 1.0, "keep_errors": "yes"}, "True, False or None"),
        ({"ratio": 1.0, "version": 1.5}, "whole number"),
        ({"ratio": 1.0, "rules": tuple(Rule(1.0, path=f"/{number}") for number in range(MAX_RULES + 1))}, "at most"),
    ],
)
def test_a_policy_out_of_range_is_refused(keywords, text):
    """Each with what was expected."""
    with pytest.raises(ValueError, match=text):
        Policy(**keywords)


@sizes.each(
    "content",
    [
        None, [], "x", {}, {"format": 2, "ratio": 1.0}, {"format": 1}, {"format": 1, "ratio": 1.0, "other": 1},
        {"format": 1, "ratio": 1.0, "rules": {}}, {"format": 1, "ratio": 1.0, "rules": [{"path": "/"}]},
        {"format": 1, "ratio": 1.0, "rules": [1]}, {"format": 1, "ratio": "1"},
    ],
)  # fmt: skip
def test_json_that_is_no_policy_is_refused(content):
    """A file written by something else, or by a later version, must not be half understood."""
    with pytest.raises(ValueError, match="."):
        Policy.from_json(content)


@sizes.each(
    ("rule", "method", "path", "route", "expected"),
    [
        (Rule(1, path="/checkout/*"), "GET", "/checkout/", None, True),
        (Rule(1, path="/checkout/*"), "GET", "/checkout/a/b", None, True),
        (Rule(1, path="/checkout/*"), "GET", "/checkout", None, False),
        (Rule(1, path="/checkout/*"), "GET", "/Checkout/a", None, False),
        (Rule(1, path="/health*"), "GET", "/healthz\nx", None, True),
        (Rule(1, path="/a.b"), "GET", "/aXb", None, False),
        (Rule(1, path="*"), "_OTHER", "/anything", None, True),
        (Rule(1, path="/a", method="post"), "POST", "/a", None, True),
        (Rule(1, path="/a", method="post"), "GET", "/a", None, False),
        (Rule(1, method="DELETE"), "DELETE", "/x", None, True),
        (Rule(1, route="orders/<int:pk>/"), "GET", "/orders/7/", "/orders/<int:pk>/", True),
        (Rule(1, route="/orders/<int:pk>/"), "GET", "/orders/7/", None, False),
        (Rule(1, route="/orders/*"), "GET", "/orders/7/", "/orders/<int:pk>/", True),
        (Rule(1, route="/orders/<int:pk>/"), "GET", "/orders/<int:pk>/", "/other/", False),
    ],
)  # fmt: skip
def test_what_a_rule_matches(rule, method, path, route, expected):
    """Globs over the path, the route's label once it is known, and the method."""
    assert rule.matches(method, path, route) is expected


def test_rules_stand_in_the_order_of_their_priority():
    """The highest first; among equals as they were given."""
    low, first, second = Rule(0, path="/*"), Rule(1, path="/a", priority=5), Rule(0.5, path="/a", priority=5)

    assert Policy(1.0, rules=(low, first, second)).rules == (first, second, low)


def test_a_fingerprint_tells_policies_of_one_version_apart():
    """QuerySet.update changes a row without a new version."""
    assert Policy(0.5, version=3).fingerprint != Policy(0.25, version=3).fingerprint
    assert Policy(0.5, rules=(Rule(1, path="/a"),)).fingerprint != Policy(0.5).fingerprint


def test_the_example_in_the_documentation_is_a_valid_setting():
    """docs/sampling.md, as it stands there."""
    import re
    from pathlib import Path

    from django_otel.config.parse import parse

    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "RULES" in block)
    namespace: dict = {}
    exec(example, namespace)

    config = parse(namespace["OTEL"], {})

    assert [rule.label for rule in config.sampling.rules] == ["/health*", "POST /orders/<int:pk>/"]
