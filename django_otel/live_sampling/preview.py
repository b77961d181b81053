"""Routes that a sampling rule matches, as far as the URLconf shows.

A rule's glob is over paths, a route stands for many paths. So both become
automata, and their product shows whether the glob matches all of the route's
paths, some, or none. Nothing here runs on the path of a request.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import LocalePrefixPattern
from django.utils import translation

from django_otel.base import frozen, guard
from django_otel.routes import route_template

if TYPE_CHECKING:
    from django_otel.live_sampling.wording import RuleLike

#: Beyond this a counted repetition is as good as an endless one.
_MOST_COPIES = 40
#: Most steps of a preview, all rules and routes together; a step takes about a microsecond.
MAX_STEPS = 1_000_000
#: With more languages only the one in use and the default one are looked at.
_MOST_LANGUAGES = 10


@frozen.record
class Match:
    """A route that a rule is for.

    `is_whole` is False when the rule matches only some of the route's paths,
    `is_taken` True when rules that are asked before it take all that it matches.
    """

    route: str
    is_whole: bool
    is_taken: bool


class _Exhausted(Exception):  # noqa: N818 (an answer, not a fault)
    """The steps that a comparison may take are used up."""


class Budget:
    """Steps that are left for comparing globs with routes; the number of states can grow exponentially."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Errors: `_Exhausted`."""
        self.left -= steps
        if self.left < 0:
            raise _Exhausted


def match_rules(
    rules: Sequence[RuleLike], routes: Sequence[ProjectRoute], *, steps: int = MAX_STEPS
) -> list[list[Match] | None]:
    """Return the routes that each rule is for; `rules` in the order in which they are asked.

    None stands for a rule that would take too many steps to compare: what is left of `steps` is divided evenly
    among the rules that remain.
    """
    taken: dict[str, set[str]] = {}
    found: list[list[Match] | None] = []
    for number, rule in enumerate(rules):
        share_of_steps = steps // (len(rules) - number)
        budget = Budget(share_of_steps)
        try:
            shares = [(route, _share(rule, route, budget)) for route in routes]
        except _Exhausted:
            shares = None
        steps -= share_of_steps - max(0, budget.left)
        if shares is None:
            found.append(None)
            continue
        matches = []
        for route, share in shares:
            if share == NONE:
                continue
            methods = taken.setdefault(route.label, set())
            matches.append(Match(route.label, share == ALL, bool(methods & {"", rule.method})))
            if share == ALL:
                methods.add(rule.method)
        found.append(matches)
    return found


NONE, SOME, ALL = 0, 1, 2


def _share(rule: RuleLike, route: ProjectRoute, budget: Budget) -> int:
    budget.spend(1)
    if rule.route:
        return ALL if fnmatch.fnmatchcase(route.label, rule.route) else NONE
    if not rule.path:
        return NONE
    return compare(build_glob(rule.path), route.paths, budget)


# --- The routes of the project. ---


@frozen.record
class ProjectRoute:
    """A route as metrics and spans name it, and the paths that lead to it."""

    label: str
    paths: Automaton


def project_routes() -> tuple[ProjectRoute, ...]:
    """Every route of ROOT_URLCONF, in its order; with `i18n_patterns` once for each language.

    Errors: what importing the URLconf raises.
    """
    return _routes_of(get_resolver(), translation.get_language() or "")


@functools.lru_cache(maxsize=1)
def _routes_of(resolver: URLResolver, language: str) -> tuple[ProjectRoute, ...]:
    found: dict[str, ProjectRoute] = {}
    for code in _languages(resolver):
        with translation.override(code):
            for route in _walk(resolver, (), ""):
                found.setdefault(route.label, route)
    return tuple(found.values())


def _languages(resolver: URLResolver) -> list[str | None]:
    current = translation.get_language()
    if not any(isinstance(part.pattern, LocalePrefixPattern) for part in resolver.url_patterns):
        return [current]
    known: list[str | None] = [code for code, _ in settings.LANGUAGES]
    return known if len(known) <= _MOST_LANGUAGES else list(dict.fromkeys([settings.LANGUAGE_CODE, current]))


def _walk(resolver: URLResolver, above: tuple[re.Pattern[str], ...], route: str) -> Iterator[ProjectRoute]:
    for part in resolver.url_patterns:
        # Joined as Django's URLResolver does for ResolverMatch.route.
        text = str(part.pattern)
        joined = route + text.removeprefix("^") if route else text
        regexes = (*above, part.pattern.regex)
        if isinstance(part, URLPattern):
            with guard.contained("reading a route of the URLconf"):
                yield ProjectRoute(route_template(joined), _build_paths(regexes))
        else:
            yield from _walk(part, regexes, joined)


# --- Automata. ---


@frozen.record
class Characters:
    """A set of characters: those of `named`, or with `is_negated` all others."""

    named: frozenset[str]
    is_negated: bool = False

    def __contains__(self, character: str) -> bool:
        return (character in self.named) is not self.is_negated

    def any_outside(self, others: frozenset[str]) -> str | None:
        """Return one of these characters that is not in `others`, or None."""
        if not self.is_negated:
            return min(self.named - others, default=None)
        return next((found for found in _SAMPLE if found not in self.named and found not in others), None)


_SAMPLE = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation + " éß中"
_ANY = Characters(frozenset(), is_negated=True)
_CATEGORIES = {
    sre.CATEGORY_DIGIT: frozenset(string.digits),
    sre.CATEGORY_SPACE: frozenset(string.whitespace),
    sre.CATEGORY_WORD: frozenset(string.ascii_letters + string.digits + "_éß中"),
}
_NEGATED_CATEGORIES = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}


class Automaton:
    """A nondeterministic automaton over characters; state 0 is where it begins, `end` where it accepts."""

    def __init__(self) -> None:
        self.empty_moves: list[list[int]] = [[]]
        self.moves: list[list[tuple[Characters, int]]] = [[]]
        self.end = 0

    def add_state(self) -> int:
        self.empty_moves.append([])
        self.moves.append([])
        return len(self.moves) - 1

    def add(self, characters: Characters) -> None:
        """One of `characters` comes next."""
        at = self.add_state()
        self.moves[self.end].append((characters, at))
        self.end = at

    def add_text(self, text: str) -> None:
        for character in text:
            self.add(Characters(frozenset(character)))

    def add_anything(self) -> None:
        """Any number of any characters."""
        at = self.add_state()
        self.empty_moves[self.end].append(at)
        self.moves[at].append((_ANY, at))
        self.end = at

    def add_branches(self, branches: Iterable[object], flags: int) -> None:
        begin, ends = self.end, []
        for branch in branches:
            self.end = self.add_state()
            self.empty_moves[begin].append(self.end)
            self.add_parsed(branch, flags)
            ends.append(self.end)
        self.end = self.add_state()
        for end in ends:
            self.empty_moves[end].append(self.end)

    def add_repeated(self, least: int, most: int, parsed: object, flags: int) -> None:
        for _ in range(min(least, _MOST_COPIES)):
            self.add_parsed(parsed, flags)
        if most is sre.MAXREPEAT or most > _MOST_COPIES:
            begin = self.add_state()
            self.empty_moves[self.end].append(begin)
            self.end = begin
            self.add_parsed(parsed, flags)
            self.empty_moves[self.end].append(begin)
            self.end = self.add_state()
            self.empty_moves[begin].append(self.end)
            return
        skips = []
        for _ in range(most - min(least, most)):
            skips.append(self.end)
            self.add_parsed(parsed, flags)
        for skip in skips:
            self.empty_moves[skip].append(self.end)

    def add_parsed(self, parsed: Any, flags: int) -> None:
        """A regular expression as Python's own parser reads it."""
        for operation, argument in parsed:
            if operation is sre.LITERAL:
                self.add(_build_characters([(operation, argument)], flags))
            elif operation is sre.NOT_LITERAL:
                named = _build_characters([(sre.LITERAL, argument)], flags).named
                self.add(Characters(named, is_negated=True))
            elif operation is sre.ANY:
                self.add(_ANY)
            elif operation is sre.IN:
                self.add(_build_characters(argument, flags))
            elif operation is sre.BRANCH:
                self.add_branches(argument[1], flags)
            elif operation is sre.SUBPATTERN:
                self.add_parsed(argument[3], (flags | argument[1]) & ~argument[2])
            elif operation is sre.ATOMIC_GROUP:
                # `fnmatch` writes them where they make no difference to what matches.
                self.add_parsed(argument, flags)
            elif operation in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
                self.add_repeated(argument[0], argument[1], argument[2], flags)
            elif operation in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
                # Conditions that take up no characters: a preview may show a route too many.
                continue
            else:
                # A reference to another group.
                self.add_anything()

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """`states` and all that can be reached from them without a character."""
        found, waiting = set(states), list(states)
        while waiting:
            for other in self.empty_moves[waiting.pop()]:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return frozenset(found)


def _build_characters(items: Iterable[Any], flags: int) -> Characters:
    # A parsed regular expression is of tuples and constants, but for the list itself.
    return _build_cached(tuple(items), flags & re.IGNORECASE)


@functools.lru_cache(maxsize=512)
def _build_cached(items: tuple[Any, ...], flags: int) -> Characters:
    named: set[str] = set()
    is_negated = False
    for operation, argument in items:
        if operation is sre.NEGATE:
            is_negated = True
        elif operation is sre.LITERAL:
            named.add(chr(argument))
        elif operation is sre.RANGE:
            # The rest of a range up to the end of Unicode says nothing more about paths.
            named.update(map(chr, range(argument[0], min(argument[1], argument[0] + 0x250) + 1)))
        elif argument in _CATEGORIES:
            named |= _CATEGORIES[argument]
        else:
            named |= frozenset(_SAMPLE) - _CATEGORIES[_NEGATED_CATEGORIES[argument]]
    if flags & re.IGNORECASE:
        named |= {character.swapcase() for character in named}
    return Characters(frozenset(named), is_negated)


def _build_paths(regexes: Sequence[re.Pattern[str]]) -> Automaton:
    """The paths of a route: the regular expressions of its parts, one after the other."""
    automaton = Automaton()
    automaton.add_text("/")
    for regex in regexes[:-1]:
        automaton.add_parsed(sre_parser.parse(regex.pattern, regex.flags), regex.flags)
    # In the last one Django searches: what is not anchored may stand further back, or have something behind it.
    # With a "$" at its end the whole has to match (`RegexPattern.match`).
    regex = regexes[-1]
    operations = list(sre_parser.parse(regex.pattern, regex.flags))
    if operations and operations[0][0] is not sre.AT and not regex.pattern.endswith("$"):
        automaton.add_anything()
    automaton.add_parsed(operations, regex.flags)
    if not operations or operations[-1][0] is not sre.AT:
        automaton.add_anything()
    return automaton


class Glob:
    """A glob, made deterministic as far as it is asked."""

    def __init__(self, pattern: str) -> None:
        regex = fnmatch.translate(pattern)
        self._automaton = automaton = Automaton()
        automaton.add_parsed(sre_parser.parse(regex), 0)
        self.begin = automaton.closure([0])
        #: The characters it treats in a way of their own; all others are as good as each other.
        self.special = frozenset().union(*{characters.named for moves in automaton.moves for characters, _ in moves})
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._samples: dict[Characters, tuple[str, ...]] = {}

    def accepts(self, states: frozenset[int]) -> bool:
        return self._automaton.end in states

    def step(self, states: frozenset[int], character: str, budget: Budget) -> frozenset[int]:
        key = (states, character)
        found = self._steps.get(key)
        if found is None:
            budget.spend(len(states))
            if len(self._steps) >= _MOST_REMEMBERED_STEPS:
                self._steps.clear()
            moves = self._automaton.moves
            reached = [to for state in states for characters, to in moves[state] if character in characters]
            found = self._steps[key] = self._automaton.closure(reached)
            budget.spend(len(found))
        return found

    def sample(self, characters: Characters) -> tuple[str, ...]:
        """Some of `characters`, such that every other does as one of them."""
        found = self._samples.get(characters)
        if found is None:
            other = characters.any_outside(self.special)
            special = [character for character in self.special if character in characters]
            found = self._samples[characters] = (*special, *([other] if other is not None else []))
        return found


#: Each glob that is remembered keeps so many of its steps.
_MOST_REMEMBERED_STEPS = 2000

_globs: dict[str, Glob] = {}


def build_glob(pattern: str) -> Glob:
    """The automaton of a glob as `fnmatch` reads it."""
    found = _globs.get(pattern)
    if found is None:
        if len(_globs) >= 200:
            _globs.clear()
        found = _globs[pattern] = Glob(pattern)
    return found


def compare(glob: Glob, paths: Automaton, budget: Budget | None = None) -> int:
    """NONE, SOME or ALL of the paths match the glob. Errors: `_Exhausted` when the budget is used up."""
    budget = budget or Budget(MAX_STEPS)
    some, others = False, False
    waiting = [(state, glob.begin) for state in paths.closure([0])]
    seen = set(waiting)
    while waiting:
        state, globbed = waiting.pop()
        if state == paths.end:
            if glob.accepts(globbed):
                some = True
            else:
                others = True
            if some and others:
                return SOME
        for characters, to in paths.moves[state]:
            sample = glob.sample(characters)
            # The hash of a set of states is computed for each look-up.
            budget.spend(1 + len(sample))
            for reached in {glob.step(globbed, character, budget) for character in sample}:
                if not reached:
                    # The glob is lost; the path still comes to an end.
                    others = True
                    continue
                for end in paths.closure([to]):
                    pair = (end, reached)
                    if pair not in seen:
                        seen.add(pair)
                        waiting.append(pair)
    if some:
        return SOME if others else ALL
    return NONE
