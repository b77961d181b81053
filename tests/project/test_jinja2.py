"""The template tags in Jinja2."""

from __future__ import annotations

import asyncio

import jinja2
import pytest
from django.template import engines
from django.utils.functional import SimpleLazyObject

import django_otel

EXTENSION = "django_otel.jinja2.OTelExtension"


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def render(request):
    environment = jinja2.Environment(extensions=[EXTENSION], enable_async=request.param, autoescape=True)

    def render(text, **values):
        template = environment.from_string(text)
        return asyncio.run(template.render_async(**values)) if request.param else template.render(**values)

    return render


def test_a_span_is_around_its_content(render, otel_spans):
    text = (
        '{% otel_span "cart.render" items=n, shop.name="a" ~ "b", gone=missing %}'
        '<b>{{ n }}</b>{% otel_event "shown" k=n %}{% endotel_span %}'
    )
    with django_otel.span("page"):
        assert render(text, n=2) == "<b>2</b>"
    found, page = otel_spans.one("cart.render"), otel_spans.one("page")
    assert found.attributes == {"items": 2, "shop.name": "ab"}
    assert found.parent.span_id == page.context.span_id
    assert [(event.name, dict(event.attributes)) for event in found.events] == [("shown", {"k": 2})]


def test_a_name_that_fails_stops_no_page(render, otel_spans):
    name = SimpleLazyObject(lambda: 1 / 0)
    assert render("{% otel_span title, a=title %}x{% endotel_span %}{% otel_event title %}", title=name) == "x"
    assert [span.name for span in otel_spans] == ["unnamed"]


def test_nested_spans_in_loops_and_includes(render, otel_spans):
    text = (
        '{% otel_span "outer" %}{% for n in range(2) %}'
        '{% otel_span "inner" n=n %}{{ n }}{% endotel_span %}{% endfor %}{% endotel_span %}'
    )
    assert render(text) == "01"
    outer = otel_spans.one("outer")
    inner = otel_spans.named("inner")
    assert [span.attributes["n"] for span in inner] == [0, 1]
    assert {span.parent.span_id for span in inner} == {outer.context.span_id}


def test_attributes_and_counts(render, otel_spans, otel_metrics):
    with django_otel.span("page"):
        assert (
            render(
                '{% otel_attribute "cart.items" items|length %}{% otel_count "banner.shown" banner=b %}',
                items=[1, 2],
                b="x",
            )
            == ""
        )
    assert otel_spans.one("page").attributes == {"cart.items": 2}
    assert otel_metrics.value("banner.shown", banner="x") == 1


def test_ids_for_the_page(render, settings):
    settings.OTEL = {"TRACE_URL": "https://traces.example/{trace_id}"}
    with django_otel.span("page") as span:
        ids = span.get_span_context()
        trace_id = f"{ids.trace_id:032x}"
        assert render("{% otel_trace_id %}") == trace_id
        assert (
            render('{% otel_trace_link "<here>" %}') == f'<a href="https://traces.example/{trace_id}">&lt;here&gt;</a>'
        )
        assert render("{% otel_traceparent_meta %}") == (
            f'<meta name="traceparent" content="00-{trace_id}-{ids.span_id:016x}-{int(ids.trace_flags):02x}">'
        )
    assert render("[{% otel_trace_id %}{% otel_traceparent_meta %}]") == "[]"


def test_an_exception_is_recorded_and_goes_on(render, otel_spans):
    def fails():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        render('{% otel_span "x" %}{{ fails() }}{% endotel_span %}', fails=fails)
    assert otel_spans.one("x").status.status_code.name == "ERROR"


@pytest.mark.parametrize(
    "text",
    ["{% otel_span %}{% endotel_span %}", '{% otel_event "x" 5 %}', '{% otel_span "x" %}', '{% otel_attribute "x" %}'],
)
def test_what_is_written_wrongly_is_refused(render, text):
    with pytest.raises(jinja2.TemplateSyntaxError):
        render(text)


def test_with_djangos_backend(settings, otel_spans):
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.jinja2.Jinja2", "NAME": "j", "OPTIONS": {"extensions": [EXTENSION]}}
    ]
    assert engines["j"].from_string('{% otel_span "x" %}a{% endotel_span %}').render() == "a"
    assert otel_spans.one("x")
