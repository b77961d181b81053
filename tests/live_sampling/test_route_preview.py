"""Which routes a rule is for: the answer without a request against the answers of real paths."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.http import HttpRequest
from django.test import override_settings
from django.urls import Resolver404, URLResolver, include, path, re_path, register_converter, resolve
from django.urls.resolvers import RegexPattern
from django.utils import translation
from hypothesis import given, settings
from hypothesis import strategies as st

from django_otel.live_sampling import preview
from django_otel.live_sampling.preview import ALL, NONE, SOME, build_glob, compare, match_rules, project_routes
from django_otel.routes import route_template
from django_otel.sampling.policy import Rule
from tests import sizes


def view(request: HttpRequest, **kwargs: object) -> None:
    """Never called."""


class Pair:
    regex = "[a1]{2}|/"

    def to_python(self, value: str) -> str:
        return value

    to_url = to_python


register_converter(Pair, "pair")

urlpatterns = [
    path("", view),
    path("a/", view),
    path("a/<int:n>/", view),
    path("a/<str:s>", view),
    path("a1/<path:p>/", view),
    path("1<pair:p>a", view),
    path("n/", include([path("", view), path("<slug:s>/", include([path("a", view)]))])),
    re_path(r"^r/(?P<x>[a-z]+|1)?/?$", view),
    re_path(r"^o(?:1(?P<y>\d{1,2}))?$", view),
    re_path(r"^open", view),
    re_path(r"(?i)^Loud/[^/]a$", view),
    re_path(r"end/", view),
    re_path(r"whole/$", view),
    *i18n_patterns(path("l/<int:n>/", view)),
]


#: As a request to it is named.
OPTIONAL = route_template(r"^o(?:1(?P<y>\d{1,2}))?$")
LOUD = route_template(r"(?i)^Loud/[^/]a$")


@dataclass
class Asked:
    path: str = ""
    route: str = ""
    method: str = ""


@pytest.fixture(autouse=True)
def _own_urls():
    with override_settings(ROOT_URLCONF=__name__):
        yield


def found(*rules: Asked) -> list[list[tuple[str, bool, bool]]]:
    return [
        [(match.route, match.is_whole, match.is_taken) for match in matches]
        for matches in match_rules(rules, project_routes())
    ]


def test_routes_are_named_as_a_request_names_them():
    """The label of the metrics, for every route and language."""
    labels = {route.label for route in project_routes()}
    for url in (
        "/",
        "/a/",
        "/a/1/",
        "/a/x",
        "/a1/x/y/",
        "/111a",
        "/n/",
        "/n/s/a",
        "/r/x/",
        "/open",
        "/LOUD/1a",
        "/l/end/",
    ):
        assert route_template(resolve(url).route) in labels, url
    for code in ("en", "de"):
        with translation.override(code):
            assert route_template(resolve(f"/{code}/l/3/").route) in labels
    assert {"/en/l/<int:n>/", "/de/l/<int:n>/"} <= labels


@sizes.each(
    ("glob", "expected"),
    [
        ("/a/*", {"/a/": ALL, "/a/<int:n>/": ALL, "/a/<str:s>": ALL}),
        ("/a/1*", {"/a/<int:n>/": SOME, "/a/<str:s>": SOME}),
        ("/a/?/", {"/a/<int:n>/": SOME}),
        ("/a/[!0-9]*", {"/a/<str:s>": SOME}),
        ("/n/*/a", {"/n/<slug:s>/a": ALL}),
        ("/n/ä/a", {}),
        ("/a/ä", {"/a/<str:s>": SOME}),
        ("/1[a1]?a", {"/1<pair:p>a": SOME}),
        ("/1/a", {"/1<pair:p>a": SOME}),
        ("/1??a", {"/1<pair:p>a": SOME}),
        ("/1*a", {"/1<pair:p>a": ALL}),
        ("/o", {OPTIONAL: SOME}),
        ("/o1??", {OPTIONAL: SOME}),
        ("/o1???", {}),
        ("/o*", {OPTIONAL: ALL, "/open": ALL}),
        ("/loud/?a", {LOUD: SOME}),
        ("/LOUD/1a", {LOUD: SOME}),
        ("/whole*", {"/whole/": ALL}),
        ("/?whole/", {}),
        ("/open*", {"/open": ALL}),
        ("/open", {"/open": SOME}),
        ("/de/*", {"/de/l/<int:n>/": ALL}),
        ("/", {"/": ALL}),
        ("/nowhere", {}),
    ],
)
def test_what_a_glob_matches(glob, expected):
    """All, some or none of the paths of each route."""
    shares = {route.label: compare(build_glob(glob), route.paths) for route in project_routes()}
    # Not anchored, so that any path may come before it.
    shares.pop("/end/")
    assert {label: share for label, share in shares.items() if share != NONE} == expected


def test_a_pattern_without_an_anchor_may_stand_behind_anything():
    """As Django searches for it."""
    (match,) = (match for match in found(Asked(path="/some/where/end/"))[0] if match[0] == "/end/")
    assert match == ("/end/", False, False)


def test_a_route_rule_is_a_glob_over_the_labels():
    """As the engine reads it."""
    for pattern in ("/a/<int:n>/", "/a/*", "*", "/A/*"):
        rule = Rule(1.0, route=pattern)
        expected = [route.label for route in project_routes() if rule.matches("GET", "/", route.label)]
        assert [route for route, _, _ in found(Asked(route=pattern))[0]] == expected


def test_what_an_earlier_rule_decides_is_taken():
    """Only when that takes the whole route, and every method that the later one is for."""
    whole, part, method, late = found(
        Asked(path="/a/"), Asked(path="/a/1*"), Asked(path="/n/", method="GET"), Asked(path="*")
    )
    taken = {route for route, _, is_taken in late if is_taken}
    assert taken == {"/a/"}
    assert not any(is_taken for rule in (whole, part, method) for _, _, is_taken in rule)
    again = found(Asked(path="/n/", method="GET"), Asked(path="/n/", method="GET"), Asked(path="/n/", method="POST"))
    assert [rule[0][2] for rule in again] == [False, True, False]


#: Every short path over an alphabet that has a letter, a digit and the slash.
PATHS = ["/" + "".join(rest) for length in range(6) for rest in itertools.product("a1/n", repeat=length)]


def routes_of(url: str) -> str | None:
    try:
        return route_template(resolve(url).route)
    except Resolver404:
        return None


@pytest.fixture(scope="module")
def resolved() -> dict[str, list[str]]:
    """The short paths of each route, by Django's own resolver for that route alone."""
    with override_settings(ROOT_URLCONF=__name__):
        by_route: dict[str, list[str]] = {}
        for pattern in urlpatterns[:11]:
            resolver = URLResolver(RegexPattern(r"^/"), [pattern])
            for url in PATHS:
                try:
                    label = route_template(resolver.resolve(url).route)
                except Resolver404:
                    continue
                by_route.setdefault(label, []).append(url)
        return by_route


@given(st.lists(st.sampled_from(["a", "1", "/", "n", "*", "?", "[1n]", "[!a]"]), max_size=6).map("".join))
@settings(max_examples=sizes.examples(300), deadline=None)
def test_what_is_said_of_a_route_holds_for_its_paths(resolved, glob):
    """For every short path that Django resolves to it, with the engine's own matching as the judge."""
    rule = Rule(1.0, path="/" + glob)
    shares = {route.label: compare(build_glob(rule.path), route.paths) for route in project_routes()}
    for label, urls in resolved.items():
        matched = {rule.matches("GET", url) for url in urls}
        if matched == {True, False}:
            assert shares[label] == SOME, (label, rule.path)
        elif matched == {True}:
            assert shares[label] in (SOME, ALL), (label, rule.path)
        else:
            assert shares[label] in (SOME, NONE), (label, rule.path)


def test_many_routes_are_matched_quickly_enough_to_type():
    """A thousand routes and a glob that begins with a wildcard: bounded work, whatever the machine."""
    many = [path(f"area{number}/<int:pk>/<slug:name>/edit/", view) for number in range(1000)]
    steps = 0
    glob = build_glob("*/edit/")
    original = glob.step

    def count(states, character, budget):
        nonlocal steps
        steps += 1
        return original(states, character, budget)

    glob.step = count
    try:
        with override_settings(ROOT_URLCONF=tuple(many)):
            routes = project_routes()
            assert len(routes) == 1000
            assert all(compare(glob, route.paths) == ALL for route in routes)
    finally:
        del glob.step
    assert steps < 1000 * 1500


class _Counted(preview.Budget):
    total = 0

    def spend(self, steps):
        _Counted.total += steps
        super().spend(steps)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "wild",
    sizes.few(
        [
            "*a" + "?" * 30,
            "*" + "*a?b" * 45,
            "*[a-z]*[0-9]*[!x]" * 10,
            "*" + "[\x01-\uffff]" * 35,
            "*?" * 90,
            "[!/]*" * 40,
        ],
        6,
    ),
)
def test_wild_rules_have_a_preview_of_bounded_cost(wild, monkeypatch):
    """The states of such a glob grow exponentially; ordinary rules beside them are still shown."""
    monkeypatch.setattr(preview, "Budget", _Counted)
    _Counted.total = 0
    patterns = [f"{wild[:190]}{number}" for number in range(199)]
    rules = [SimpleNamespace(path=pattern, route="", method="") for pattern in [*patterns[:100], "/orders/*"]]
    rules += [SimpleNamespace(path=pattern, route="", method="") for pattern in patterns[100:]]
    found = match_rules(rules, project_routes())
    assert _Counted.total <= preview.MAX_STEPS + 200 * 1000
    assert found[100]
    assert len(found) == 200
