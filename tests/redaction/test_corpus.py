"""The corpus of redaction: how many secrets are found, how many harmless texts stay."""

from __future__ import annotations

import pytest

from django_otel.redaction.scrub import Scrubber
from tests.redaction import measure
from tests.redaction.corpus import FOLDER, read_harmless, read_secrets
from tests.redaction.fakes import Fakes


@pytest.fixture(scope="module")
def scrubber():
    return Scrubber()


def test_the_corpus_is_large_enough():
    assert sum(len(read_secrets(name, Fakes())) for name in measure.SECRETS) >= 300
    assert sum(len(read_harmless(name)) for name in measure.HARMLESS) >= 300


def test_enough_is_held_out():
    assert len(read_secrets(measure.SECRETS[1], Fakes())) >= 100
    assert len(read_harmless(measure.HARMLESS[1])) >= 100


def test_no_text_is_in_both_lists():
    secrets = [{(entry.key, entry.text) for entry in read_secrets(name, Fakes())} for name in measure.SECRETS]
    harmless = [{(entry.key, entry.text) for entry in read_harmless(name)} for name in measure.HARMLESS]
    assert secrets[0] & secrets[1] == set()
    assert harmless[0] & harmless[1] == set()


@pytest.mark.heavy
def test_the_published_figures_are_the_measured_ones(scrubber):
    page = (FOLDER.parents[1] / "docs" / "privacy.md").read_text("utf-8")
    for row, secrets, harmless in zip(
        ("written with the rules", "held out"), measure.SECRETS, measure.HARMLESS, strict=True
    ):
        recall, precision = measure.measure_secrets(scrubber, secrets), measure.measure_harmless(scrubber, harmless)
        assert (
            f"| {row} | {measure.share(recall):.3f} of {len(recall)} "
            f"| {measure.share(precision):.3f} of {len(precision)} |"
        ) in page


@pytest.mark.heavy
@pytest.mark.parametrize("names", [measure.SECRETS, measure.SECRETS[1:]], ids=["all", "held out"])
def test_recall(scrubber, names):
    results = [result for name in names for result in measure.measure_secrets(scrubber, name)]
    missed = [result.entry.text for result in results if not result.is_right]
    assert measure.share(results) >= 0.95, missed


@pytest.mark.parametrize("names", [measure.HARMLESS, measure.HARMLESS[1:]], ids=["all", "held out"])
def test_precision(scrubber, names):
    results = [result for name in names for result in measure.measure_harmless(scrubber, name)]
    mangled = [(result.entry.text, result.scrubbed) for result in results if not result.is_right]
    assert measure.share(results) >= 0.98, mangled


@pytest.mark.heavy
@pytest.mark.parametrize("name", measure.SECRETS)
def test_a_scrubbed_text_is_not_changed_again(scrubber, name):
    for result in measure.measure_secrets(scrubber, name):
        again = measure.scrub(scrubber, result.entry._replace(text=result.scrubbed))
        assert again == result.scrubbed


def test_every_form_of_secret_can_be_drawn():
    for name in Fakes.names():
        if name != "segment":
            assert Fakes(2).draw(name)
