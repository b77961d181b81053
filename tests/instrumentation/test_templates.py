"""Renders of templates: counted by name, with a span where they are long or hold others."""

from __future__ import annotations

import time

import django
import pytest
from django.db import connection
from django.template import Context, Template, engines
from django.template.base import Template as BaseTemplate
from django.test import override_settings

import django_otel

DURATION = "django.template.duration"
NAP_S = 0.01
FILES = {
    "base.html": "<b>{% block body %}{% endblock %}</b>",
    "page.html": "{% extends 'base.html' %}{% block body %}{{ nap }}{% include 'row.html' %}{% endblock %}",
    "row.html": "{{ nap }}",
    "quick.html": "x",
    "query.html": "{% include 'inner.html' %}",
    "inner.html": "{{ query }}",
    "broken.html": "{{ nap }}{{ fails }}",
}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", FILES)]},
    }
]


def nap():
    time.sleep(NAP_S)
    return "x"


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return "x"


def fails():
    raise RuntimeError("no")


def render(name):
    return engines["django"].get_template(name).render({"nap": nap, "query": query, "fails": fails})


@pytest.fixture(autouse=True)
def is_on(settings):
    settings.TEMPLATES = TEMPLATES
    settings.OTEL = {"TEMPLATES": {"MIN_S": NAP_S}}


def test_each_render_counts_by_name_an_extended_one_with_the_other(otel_metrics):
    assert render("page.html") == "<b>xx</b>"
    page, row = (otel_metrics.value(DURATION, {"django.template.name": name}) for name in ("page.html", "row.html"))
    assert (page.count, row.count, page.sum >= 2 * NAP_S, row.sum >= NAP_S) == (1, 1, True, True)
    assert otel_metrics.value(DURATION).count == 2


@pytest.mark.skipif(django.VERSION < (6, 0), reason="Django 6.0 has partials")
def test_a_partial_is_a_render_of_its_own(otel_metrics, otel_spans):
    """Asked for alone, by `{% partial %}` or included."""
    partials = "{% partialdef row %}{{ nap }}{% endpartialdef %}{% partialdef own inline %}y{% endpartialdef %}"
    files = {"list.html": f"{partials}{{% partial row %}}", "other.html": "{% include 'list.html#row' %}"}
    options = {"loaders": [("django.template.loaders.locmem.Loader", files)]}
    with override_settings(TEMPLATES=[{**TEMPLATES[0], "OPTIONS": options}]), django_otel.span("work"):
        assert [render(name) for name in ("list.html#row", "list.html", "other.html")] == ["x", "yx", "x"]
    counts = {
        each["django.template.name"]: otel_metrics.value(DURATION, each).count for each in otel_metrics.series(DURATION)
    }
    assert counts == {"list.html#row": 3, "list.html": 1, "other.html": 1}
    alone, inside, included = otel_spans.named("render list.html#row")
    work = otel_spans.one("work")
    parents = [work, otel_spans.one("render list.html"), otel_spans.one("render other.html")]
    assert [each.parent.span_id for each in (alone, inside, included)] == [each.context.span_id for each in parents]
    partial = type(engines["django"].engine.from_string(partials).extra_data["partials"]["row"])
    with override_settings(OTEL={"REQUEST": {"TIME_BUDGET": False}}):
        assert "django_otel" not in partial.render.__code__.co_filename


def test_a_template_of_a_string_has_no_name_of_its_own(otel_metrics):
    Template("a").render(Context())
    Template("b").render(Context())
    assert otel_metrics.value(DURATION, {"django.template.name": "<string>"}).count == 2


def test_long_renders_have_spans_that_nest(otel_spans):
    with django_otel.span("work"):
        render("page.html")
        render("quick.html")
    page, row, work = (otel_spans.one(name) for name in ("render page.html", "render row.html", "work"))
    assert page.attributes == {"django.template.name": "page.html"}
    assert row.parent.span_id == page.context.span_id
    assert page.parent.span_id == work.context.span_id
    assert page.start_time <= row.start_time < row.end_time <= page.end_time
    assert page.end_time - page.start_time >= 2 * NAP_S * 1e9
    assert len(otel_spans) == 3


def test_short_ones_have_spans_where_others_are_inside(otel_spans, settings, db):
    settings.OTEL = {"TEMPLATES": {"MIN_S": 3600}}
    with django_otel.span("work"):
        render("query.html")
        render("page.html")
    found = {span.name: span for span in otel_spans}
    assert set(found) == {"SELECT", "render inner.html", "render query.html", "work"}
    assert found["SELECT"].parent.span_id == found["render inner.html"].context.span_id
    assert found["render inner.html"].parent.span_id == found["render query.html"].context.span_id
    assert found["render query.html"].parent.span_id == found["work"].context.span_id


def test_what_fails_is_marked_and_goes_on(otel_spans, otel_metrics):
    with pytest.raises(RuntimeError), django_otel.span("work"):
        render("broken.html")
    assert otel_spans.one("render broken.html").attributes["error.type"] == "RuntimeError"
    assert otel_metrics.value(DURATION, {"django.template.name": "broken.html"}).count == 1
    # Nothing of it is current any more.
    with django_otel.span("next"):
        pass
    assert otel_spans.one("next").parent is None


def test_outside_of_a_trace_it_is_counted_alone(otel_spans, otel_metrics):
    render("page.html")
    assert list(otel_spans) == []
    assert otel_metrics.value(DURATION).count == 2


def test_jinja2_counts_by_name(otel_spans, otel_metrics, settings, tmp_path):
    (tmp_path / "row.html").write_text("{{ nap() }}")
    (tmp_path / "base.html").write_text("{% block a %}{% endblock %}")
    (tmp_path / "page.html").write_text("{% extends 'base.html' %}{% block a %}{% include 'row.html' %}{% endblock %}")
    settings.TEMPLATES = [jinja2_in(tmp_path)]
    with django_otel.span("work"):
        assert engines["jinja2"].get_template("page.html").render({"nap": nap}) == "x"
    assert otel_metrics.value(DURATION, {"django.template.name": "page.html"}).count == 1
    assert otel_spans.one("render page.html").attributes == {"django.template.name": "page.html"}


def jinja2_in(folder, **options):
    return {"BACKEND": "django.template.backends.jinja2.Jinja2", "NAME": "jinja2", "DIRS": [folder], "OPTIONS": options}


@pytest.mark.parametrize("is_async", [False, True])
def test_jinja2_includes_are_renders_inside_the_render(otel_spans, otel_metrics, settings, tmp_path, is_async):
    """Also in a loop, in each other, and by a list of names; what is extended or imported is part of the other."""
    texts = {
        "base.html": "<{% block a %}{% endblock %}{% include 'foot.html' %}>",
        "page.html": "{% extends 'base.html' %}"
        "{% block a %}{% for n in 'ab' %}{% include 'row.html' %}{% endfor %}{% endblock %}",
        "row.html": "{{ nap() }}{{ n }}{% include ['no.html', 'cell.html'] %}{% include 'no.html' ignore missing %}",
        "cell.html": "{% extends 'frame.html' %}{% block b %}{{ n }}{{ nap() }}{% endblock %}",
        "frame.html": "[{% block b %}{% endblock %}]",
        "foot.html": "{% import 'macros.html' as macros with context %}{{ macros.end() }}{{ nap() }}",
        "macros.html": "{% macro end() %}.{% endmacro %}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    settings.TEMPLATES = [jinja2_in(tmp_path, enable_async=is_async)]
    with django_otel.span("work"):
        rendered = engines["jinja2"].get_template("page.html").render({"nap": nap})
    assert rendered == "<xa[ax]xb[bx].x>"
    page = otel_spans.one("render page.html")
    rows = [span for span in otel_spans if span.name == "render row.html"]
    cells = [span for span in otel_spans if span.name == "render cell.html"]
    assert [row.parent.span_id for row in rows] == [page.context.span_id] * 2
    assert [cell.parent.span_id for cell in cells] == [row.context.span_id for row in rows]
    assert otel_spans.one("render foot.html").parent.span_id == page.context.span_id
    counts = {
        each["django.template.name"]: otel_metrics.value(DURATION, each).count for each in otel_metrics.series(DURATION)
    }
    assert counts == {"page.html": 1, "row.html": 2, "cell.html": 2, "foot.html": 1}


@pytest.mark.parametrize("is_async", [False, True])
def test_jinja2_includes_keep_their_errors_and_stream(settings, tmp_path, is_async):
    (tmp_path / "row.html").write_text("a{{ 1 / zero }}")
    (tmp_path / "page.html").write_text("{% include 'row.html' %}")
    settings.TEMPLATES = [jinja2_in(tmp_path, enable_async=is_async)]
    page = engines["jinja2"].get_template("page.html")
    with pytest.raises(ZeroDivisionError):
        page.render({"zero": 0})
    assert list(page.template.generate(zero=1)) == ["a", "1.0"]


@pytest.mark.parametrize("given", [False, {"MIN_S": 0.5}, True, {}])
def test_it_is_switched_by_the_setting(otel_metrics, given):
    with override_settings(OTEL={"TEMPLATES": given}):
        render("quick.html")
    assert otel_metrics.value(DURATION).count == (0 if given is False else 1)


def test_off_it_leaves_django_alone():
    with override_settings(OTEL={"REQUEST": {"TIME_BUDGET": False}}):
        assert "django_otel" not in BaseTemplate.render.__code__.co_filename
    assert "django_otel" in BaseTemplate.render.__code__.co_filename


def test_a_page_names_the_span_around_the_render(otel_spans, settings):
    settings.OTEL = {"TEMPLATES": {"MIN_S": 3600}}
    with django_otel.span("work") as work:
        page = Template("{% load otel %}{% otel_traceparent_meta %}").render(Context())
    assert f"{work.get_span_context().span_id:016x}" in page
    assert [span.name for span in otel_spans] == ["work"]
