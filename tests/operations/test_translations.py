"""The German and Arabic catalogues: complete, consistent, compiled, and as shipped."""

from __future__ import annotations

import ast
import functools
import gettext
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import django
import polib
import pytest
from django.utils import translation

from tests import services

PACKAGE = services.ROOT / "django_otel"
LANGUAGES = ["de", "ar"]
#: As the `messages` target of the Makefile calls it.
MAKEMESSAGES = ["makemessages", *(part for language in LANGUAGES for part in ("-l", language))]
_PYTHON_PLACEHOLDER = re.compile(r"%(?:\(\w+\))?[#0\- +]*\d*(?:\.\d+)?[a-zA-Z%]")
_BRACE_PLACEHOLDER = re.compile(r"\{\w*(?:![rsa])?(?::[^{}]*)?\}")
_TAG = re.compile(r"</?[a-z]+[^<>]*>")
_CODE = re.compile(
    r"OTEL(?:\[[^\]]+\])*|[A-Z_]+(?:\.[A-Z_]+)+|manage\.py(?: otel)? [a-z]+|--[a-z-]+|/[a-z]+z\b|/metrics\b"
)


def catalogue_path(language: str, folder: Path = PACKAGE) -> Path:
    return folder / "locale" / language / "LC_MESSAGES" / "django.po"


def read(language: str, folder: Path = PACKAGE) -> polib.POFile:
    return polib.pofile(str(catalogue_path(language, folder)))


def identity(entry: polib.POEntry) -> tuple[str | None, str, str]:
    return entry.msgctxt, entry.msgid, entry.msgid_plural


def texts_of(entry: polib.POEntry) -> list[str]:
    """The translations of a message: one, or one for each plural form."""
    return [entry.msgstr_plural[form] for form in sorted(entry.msgstr_plural)] if entry.msgid_plural else [entry.msgstr]


def placeholders(text: str, entry: polib.POEntry) -> Counter[str]:
    found: Counter[str] = Counter()
    if "python-format" in entry.flags:
        found.update(_PYTHON_PLACEHOLDER.findall(text))
    if "python-brace-format" in entry.flags:
        found.update(_BRACE_PLACEHOLDER.findall(text))
    return found


def forms_of_one_number(plural_forms: str) -> set[int]:
    """The plural forms used for a single number, which they may name in words."""
    form_of = gettext.c2py(plural_forms.split("plural=", 1)[1].rstrip("; "))
    uses = Counter(form_of(number) for number in range(1000))
    return {form for form, times in uses.items() if times == 1}


def faults_of(entry: polib.POEntry, plural_forms: str) -> list[str]:
    """What is wrong with a translated message, besides its wording."""
    faults = []
    texts = texts_of(entry)
    forms = int(re.search(r"nplurals=(\d+)", plural_forms)[1]) if entry.msgid_plural else 1
    if len(texts) != forms or not all(text.strip() for text in texts):
        return [f"{len(texts)} translations, some may be empty; expected {forms}"]
    if entry.fuzzy or entry.obsolete:
        faults.append("fuzzy or obsolete")
    of_one = forms_of_one_number(plural_forms)
    for form, text in enumerate(texts):
        source = entry.msgid_plural or entry.msgid
        wanted, found = placeholders(source, entry), placeholders(text, entry)
        lost = wanted - found
        if found - wanted or (lost and not (entry.msgid_plural and form in of_one and lost.total() == 1)):
            faults.append(f"placeholders {dict(found)}; expected {dict(wanted)}")
        if sorted(_TAG.findall(text)) != sorted(_TAG.findall(source)):
            faults.append(f"tags {_TAG.findall(text)}; expected {_TAG.findall(source)}")
        if Counter(_CODE.findall(text)) != Counter(_CODE.findall(source)):
            faults.append(f"names {_CODE.findall(text)}; expected {_CODE.findall(source)}")
        for edge in (str.lstrip, str.rstrip):
            if len(text) - len(edge(text)) != len(source) - len(edge(source)):
                faults.append("other white space at its ends")
        if source.endswith(":") != text.endswith(":"):
            faults.append("other punctuation at its end")
    return faults


@pytest.mark.heavy
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_message_is_translated_with_its_placeholders_tags_and_names(language):
    catalogue = read(language)
    plural_forms = catalogue.metadata["Plural-Forms"]
    faults = {identity(entry): faults_of(entry, plural_forms) for entry in [*catalogue, *catalogue.obsolete_entries()]}
    assert {message: found for message, found in faults.items() if found} == {}
    assert len(catalogue) > 200


@pytest.mark.parametrize(
    ("msgid", "msgid_plural", "texts", "word"),
    [
        ("%(a)s in %(b)s", "", ["%(a)s"], "placeholders"),
        ("%(a)s", "", ["%(a)s %(c)s"], "placeholders"),
        ("%(a)s <b>x</b>", "", ["%(a)s <b>x"], "tags"),
        ("%(a)s of OTEL", "", ["%(a)s"], "names"),
        ("%(a)s:", "", ["%(a)s"], "punctuation"),
        ("%(a)s", "", [""], "empty"),
        ("%(a)s thing", "%(a)s things", ["%(a)s", "%(a)s", "%(a)s"], "expected 6"),
        ("%(a)s thing", "%(a)s things", ["%(a)s", "x", "y", "z", "%(a)s", "%(a)s"], "placeholders"),
    ],
)
def test_the_judge_of_a_message_judges(msgid, msgid_plural, texts, word):
    entry = polib.POEntry(msgid=msgid, msgid_plural=msgid_plural, flags=["python-format"])
    if msgid_plural:
        entry.msgstr_plural = dict(enumerate(texts))
    else:
        [entry.msgstr] = texts
    assert word in " ".join(faults_of(entry, read("ar").metadata["Plural-Forms"]))


def test_a_form_of_exactly_one_number_may_say_it_in_words():
    arabic = read("ar").metadata["Plural-Forms"]
    entry = polib.POEntry(
        msgid="%(n)s x", msgid_plural="%(n)s xs", flags=["python-format"],
        msgstr_plural=dict(enumerate(["%(n)s x", "one", "two", "%(n)s x", "%(n)s x", "%(n)s x"])),
    )  # fmt: skip
    assert faults_of(entry, arabic) == []
    assert forms_of_one_number(arabic) == {0, 1, 2}
    assert forms_of_one_number(read("de").metadata["Plural-Forms"]) == {0}


def test_both_catalogues_hold_the_same_messages_once():
    german, arabic = ([identity(entry) for entry in read(language)] for language in LANGUAGES)
    assert sorted(map(str, german)) == sorted(map(str, arabic))
    assert len(german) == len(set(german))


def django_catalogues(language: str) -> dict[str, set[str]]:
    """What Django itself and its contrib applications make of each message without a context."""
    found: dict[str, set[str]] = {}
    base = Path(django.__file__).parent
    for folder in (base / "conf", *(base / "contrib").iterdir()):
        path = folder / "locale" / language / "LC_MESSAGES" / "django.mo"
        if path.is_file():
            with path.open("rb") as file:
                for message, text in gettext.GNUTranslations(file)._catalog.items():
                    if isinstance(message, str) and "\x04" not in message:
                        found.setdefault(message, set()).add(text)
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_of_django_changes(language):
    """All catalogues of a project are merged into one: a message that Django has keeps the translation of Django."""
    texts = django_catalogues(language)
    changed = {
        entry.msgid: entry.msgstr
        for entry in read(language)
        if not entry.msgctxt and not entry.msgid_plural and entry.msgstr not in texts.get(entry.msgid, {entry.msgstr})
    }
    assert changed == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_plural_forms_are_those_of_django(language):
    """Another formula would give the messages of the two a catalogue each, and count by another rule."""
    path = Path(django.__file__).parent / "conf" / "locale" / language / "LC_MESSAGES" / "django.mo"
    with path.open("rb") as file:
        theirs = gettext.GNUTranslations(file)
    ours = gettext.c2py(read(language).metadata["Plural-Forms"].split("plural=", 1)[1].rstrip("; "))
    assert [ours(number) for number in range(1000)] == [theirs.plural(number) for number in range(1000)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_compiled_catalogue_is_that_of_the_texts(language):
    """The .mo is committed, because users have no gettext: `make messages` writes both."""
    wanted: dict[str | tuple[str, int], str] = {}
    for entry in read(language):
        message = f"{entry.msgctxt}\x04{entry.msgid}" if entry.msgctxt else entry.msgid
        if entry.msgid_plural:
            wanted |= {(message, form): text for form, text in entry.msgstr_plural.items()}
        else:
            wanted[message] = entry.msgstr
    with catalogue_path(language).with_suffix(".mo").open("rb") as file:
        compiled = dict(gettext.GNUTranslations(file)._catalog)
    del compiled[""]
    assert compiled == wanted


#: What each function of `django.utils.translation` takes first.
_ARGUMENTS = {
    "gettext": ("msgid",), "ngettext": ("msgid", "plural"), "pgettext": ("context", "msgid"),
    "npgettext": ("context", "msgid", "plural"),
}  # fmt: skip


@functools.cache
def texts_in(source: str) -> tuple[set[tuple[str | None, str, str]], list[int]]:
    """The texts that a module has translated, and the lines of calls whose text no tool can find."""
    found, lost = set(), []
    for node in ast.walk(ast.parse(source)):
        name = node.func.id.removesuffix("_lazy").removesuffix("_noop") if is_call(node) else ""
        if name not in _ARGUMENTS:
            continue
        values = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]
        given = dict(zip(_ARGUMENTS[name], values, strict=False))
        if None in given.values():
            lost.append(node.lineno)
        else:
            found.add((given.get("context"), given["msgid"], given.get("plural", "")))
    return found, lost


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@functools.cache
def _texts_of(path: Path):
    """What this module hands to gettext."""
    return texts_in(path.read_text(encoding="utf-8"))[0]


@pytest.mark.heavy
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_code_is_in_the_catalogue(language):
    """Also where xgettext does not look: it passes over calls within an f-string."""
    held = {identity(entry) for entry in read(language)}
    missing = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        absent = _texts_of(path) - held
        if absent:
            missing[str(path.relative_to(PACKAGE))] = absent
    assert missing == {}, "run `make messages` and translate what is new; move calls out of f-strings"


def test_texts_are_found_within_an_f_string():
    source = """f"{gettext('a')} {npgettext_lazy('c', 'one', 'many', 'n')}"; gettext(name)"""
    assert texts_in(source) == ({(None, "a", ""), ("c", "one", "many")}, [1])


@pytest.mark.debian
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_code_and_templates_is_in_the_catalogue(tmp_path, language):
    if shutil.which("xgettext") is None:
        services.missing("xgettext (Debian: gettext) is not installed")
    folder = tmp_path / "django_otel"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "locale"))
    catalogue_path(language, folder).parent.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "django", *MAKEMESSAGES, "--no-wrap"],
        cwd=folder, env={key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"},
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    found = {identity(entry) for entry in read(language, folder)}
    held = {identity(entry) for entry in read(language)}
    assert (found - held, held - found) == (set(), set()), "run `make messages` and translate what is new"


def test_a_text_is_shown_in_the_language_of_the_request():
    """Django finds the catalogues of the installed application by itself."""
    shown = {}
    for language in ["en", *LANGUAGES]:
        with translation.override(language):
            shown[language] = (
                translation.gettext("Worker processes"),
                translation.ngettext("%(count)s span", "%(count)s spans", 2) % {"count": 2},
            )
    assert shown == {
        "en": ("Worker processes", "2 spans"),
        "de": ("Worker-Prozesse", "2 Spans"),
        "ar": ("العمليات العاملة", "امتدادان"),
    }
