"""The policy's pages in other languages: texts, direction, and characters that reorder text."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.template.loader import render_to_string
from django.test import override_settings
from django.utils import translation

from django_otel.live_sampling import wording
from django_otel.models import SamplingPolicy, SamplingRule
from tests.live_sampling.test_admin import ADD, LIST, ROW, STATUS, login, save

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("fresh_policy")]

#: Marks that turn the direction of a text.
CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
RULE = {
    "rules-TOTAL_FORMS": "1", "rules-INITIAL_FORMS": "0", "rules-0-path": f"/x{CONTROLS}/*", "rules-0-ratio": "0.5",
    "rules-0-priority": "0", "rules-0-lasts": "open", "rules-0-note": f"rule {CONTROLS}",
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("permissions", [("view_samplingpolicy",), ()])
def test_what_reorders_text_is_written_out(permissions):
    """On every page, for readers and for those who may write; the fields of a form keep what was typed."""
    writer = login(is_superuser=True)
    assert save(writer, ADD, note=f"note {CONTROLS}", **RULE).status_code == 302
    client = writer
    if permissions:
        User.objects.filter(username="op").update(username="writer")
        client = login(*permissions)
    pages = [ROW, f"{LIST}1/history/", *(() if permissions else (f"{LIST}1/delete/", "/admin/"))]
    contents = {page: re.sub(r"<input [^>]*>", "", client.get(page).content.decode()) for page in pages}
    contents |= client.get(STATUS).json()["html"]
    for page, content in contents.items():
        assert [f"U+{ord(mark):04X}" for mark in CONTROLS if mark in content] == [], page
    assert "\\u202e" in client.get(ROW).content.decode()


def test_values_keep_their_direction():
    """Names of rules, shares, notes, hosts; paths are typed from left to right."""
    client = login(is_superuser=True)
    SamplingPolicy(ratio=0.5, note="why").save()
    SamplingRule.objects.create(path="/checkout/*", ratio=0.25)
    page = client.get(ROW, headers={"accept-language": "en"}).content.decode()
    assert '<code><bdi dir="ltr">/checkout/*</bdi></code> <strong><bdi dir="ltr">25 %</bdi></strong>' in page
    assert re.search(r"<dt>Note</dt><dd><bdi[^>]*>why</bdi></dd>", page)
    for name, direction in (("path", "ltr"), ("route", "ltr"), ("note", "auto")):
        assert re.search(rf'<input [^>]*name="rules-0-{name}"[^>]* dir="{direction}"', page), name


@pytest.mark.parametrize("language", ["de", "ar"])
def test_models_follow_the_language_and_need_no_migration(language):
    """Names of models and fields, help texts, messages of validation."""
    field = SamplingRule._meta.get_field("priority")
    words = [
        SamplingPolicy._meta.verbose_name,
        SamplingRule._meta.verbose_name_plural,
        field.verbose_name,
        field.help_text,
    ]
    in_english = [str(each) for each in words]
    with translation.override(language):
        assert [same for same, each in zip(in_english, words, strict=True) if str(each) == same] == []
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)
    assert in_english == [str(each) for each in words]


def test_the_fault_of_another_process_is_shown_in_the_readers_language():
    """It comes as an English text, as in the log; one of another version is shown as it is."""
    said = wording.FAULTS["unreadable"] % {"database": "default", "error": "OperationalError"}
    assert wording.translate_fault(said) == said
    assert wording.translate_fault("Something else.") == "Something else."
    with translation.override("de"):
        shown = wording.translate_fault(said)
    assert shown != said
    assert '"default"' in shown or "„default“" in shown
    assert "OperationalError" in shown


@pytest.mark.parametrize(("language", "direction"), [("en", "ltr"), ("de", "ltr"), ("ar", "rtl")])
def test_the_page_of_a_failed_request_has_the_visitors_language(language, direction):
    """Its text, and what a screen reader and the browser need to know of it."""
    with translation.override(language):
        page = render_to_string("django_otel/500.html")
    assert f'<html lang="{language}" dir="{direction}">' in page
    assert ("Something went wrong" in page) == (language == "en")


@pytest.fixture
def translation_functions():
    """Django chooses each function of translation by USE_I18N when it is first called, and keeps it."""
    known = dict(vars(translation._trans))
    vars(translation._trans).clear()
    yield
    vars(translation._trans).clear()
    vars(translation._trans).update(known)


@override_settings(USE_I18N=False)
def test_the_page_of_a_failed_request_without_translation(translation_functions):
    """In the language of the settings."""
    assert re.search(r'<html lang="en[^"]*" dir="ltr">', render_to_string("django_otel/500.html"))


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1), (1.0, 1), (0, 0), (5, 5), (0.5, 100), (2.5, 100)]
)  # fmt: skip
def test_a_fraction_takes_the_general_form(value, number):
    """Half a second is none of the forms that a language has for small numbers."""
    assert wording.plural_number(value) == number
    assert "0.5 traces per second" in wording.limit(0.5)
    assert "1 trace per second" in wording.limit(1.0)
