"""Print recall and precision of redaction over the corpus: `python -m tests.redaction.measure [-v]`.

Recall is the share of texts with secrets of which no secret is left. Precision
is the share of harmless texts that stay as they are. Both are given for the
corpus that the rules were written with, and for the part that was written
after them and is held out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import NamedTuple

from django_otel.redaction.scrub import Scrubber
from tests.redaction.corpus import Entry, read_harmless, read_secrets
from tests.redaction.fakes import Fakes

SECRETS = ("secrets.txt", "secrets_held_out.txt")
HARMLESS = ("harmless.txt", "harmless_held_out.txt")
SEEDS = (1, 2, 3)


class Result(NamedTuple):
    """What became of one entry of the corpus."""

    entry: Entry
    scrubbed: str
    is_right: bool


def scrub(scrubber: Scrubber, entry: Entry) -> str:
    """Return the text of an entry as it would be exported."""
    return str(scrubber.value(entry.key, entry.text) if entry.key else scrubber.text(entry.text))


def _leaks(secret: str, scrubbed: str) -> bool:
    """Return whether a secret, or a piece of it that is worth having, is left."""
    if secret in scrubbed:
        return True
    size = max(6, len(secret) // 2)
    return any(secret[start : start + size] in scrubbed for start in range(max(1, len(secret) - size + 1)))


def measure_secrets(scrubber: Scrubber, name: str) -> list[Result]:
    """Scrub every text with a secret, under several seeds; it is right when it holds under each."""
    rounds = [read_secrets(name, Fakes(seed)) for seed in SEEDS]
    results = []
    for same in zip(*rounds, strict=True):
        worst = None
        for entry in same:
            scrubbed = scrub(scrubber, entry)
            result = Result(entry, scrubbed, not any(_leaks(secret, scrubbed) for secret in entry.secrets))
            if worst is None or not result.is_right:
                worst = result
        assert worst is not None
        results.append(worst)
    return results


def measure_harmless(scrubber: Scrubber, name: str) -> list[Result]:
    """Scrub every harmless text; it is right when it is left alone."""
    results = []
    for entry in read_harmless(name):
        scrubbed = scrub(scrubber, entry)
        results.append(Result(entry, scrubbed, scrubbed == entry.text))
    return results


def share(results: list[Result]) -> float:
    """Return the share of results that are right."""
    return sum(result.is_right for result in results) / len(results) if results else 1.0


def _print(title: str, results: list[Result], *, verbose: bool) -> None:
    print(f"{title}: {share(results):.3f} of {len(results)}")
    sections: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        sections[result.entry.section].append(result)
    for section, members in sections.items():
        print(f"  {section:28} {sum(r.is_right for r in members):4} of {len(members):4}")
    if verbose:
        for result in results:
            if not result.is_right:
                print(f"    {result.entry.key or '-'} | {result.entry.text!r}\n      -> {result.scrubbed!r}")


def main() -> None:
    """Print the figures; with -v also each text that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-v", "--verbose", action="store_true")
    verbose = parser.parse_args().verbose
    scrubber = Scrubber()
    secrets = [measure_secrets(scrubber, name) for name in SECRETS]
    harmless = [measure_harmless(scrubber, name) for name in HARMLESS]
    for name, results in zip(SECRETS, secrets, strict=True):
        _print(f"recall, {name}", results, verbose=verbose)
    for name, results in zip(HARMLESS, harmless, strict=True):
        _print(f"precision, {name}", results, verbose=verbose)
    print(f"recall    {share(sum(secrets, [])):.3f} of {sum(map(len, secrets))}")
    print(f"precision {share(sum(harmless, [])):.3f} of {sum(map(len, harmless))}")


if __name__ == "__main__":
    main()
