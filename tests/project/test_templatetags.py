"""`{% load otel %}`, by rendering templates."""

from __future__ import annotations

import re
import threading
import time

import pytest
from django.core.cache import caches
from django.http import HttpResponse
from django.template import Context, Engine, Template, TemplateSyntaxError, engines
from django.template.response import TemplateResponse
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context

import django_otel
from django_otel import span
from django_otel.base import guard
from django_otel.testing import override_sampling
from tests import sizes

TRACE_URL = {"SERVICE_NAME": "tests", "TRACE_URL": 'https://jaeger.example/trace/{trace_id}?a=1&b="2"'}


def render(source: str, autoescape: bool = True, **variables: object) -> str:
    return Template("{% load otel %}" + source).render(Context(variables, autoescape=autoescape))


# --- otel_span ---


def test_otel_span_renders_its_content_exactly(otel_spans):
    source = "<ul>\n  {% for n in numbers %}<li>{{ n }}</li>{% empty %}none{% endfor %}\n</ul> {{ text }}"
    wrapped = '{% otel_span "list" %}' + source + "{% endotel_span %}"
    for variables in ({"numbers": [1, 2], "text": "<b>"}, {}):
        for autoescape in (True, False):
            assert render(wrapped, autoescape, **variables) == render(source, autoescape, **variables)
    assert len(otel_spans.named("list")) == 4


def test_otel_span_has_attributes_of_the_context(otel_spans):
    render(
        '{% otel_span "cart.render" items=cart.items|length shop.name=name fixed="a=b" number=3 %}{% endotel_span %}',
        cart={"items": [1, 2]},
        name="corner shop",
    )
    recorded = otel_spans.one("cart.render")
    assert recorded.attributes == {"items": 2, "shop.name": "corner shop", "fixed": "a=b", "number": 3}
    assert recorded.kind is trace.SpanKind.INTERNAL
    assert type(recorded.attributes["fixed"]) is str


def test_otel_span_takes_a_variable_or_a_filtered_name(otel_spans):
    render('{% otel_span name %}{% endotel_span %}{% otel_span "A B"|slugify %}{% endotel_span %}', name="from.context")
    assert [s.name for s in otel_spans] == ["from.context", "a-b"]


def test_a_name_that_is_missing_is_the_name_of_its_variable(otel_spans):
    assert render("{% otel_span section.title %}x{% endotel_span %}") == "x"
    assert otel_spans.one("section.title")


def test_a_name_that_fails_is_the_name_of_its_variable_and_the_page_is_rendered(otel_spans):
    name = SimpleLazyObject(lambda: 1 / 0)
    assert render("{% otel_span title a=title %}x{% endotel_span %}{% otel_count title a=title %}", title=name) == "x"
    assert otel_spans.one("title")


def test_missing_attributes_are_left_out(otel_spans):
    render('{% otel_span "s" a=missing b=1 %}{% endotel_span %}')
    assert otel_spans.one("s").attributes == {"b": 1}


def test_otel_spans_nest_with_the_spans_around_and_inside(otel_spans):
    def load():
        with span("load"):
            return "loaded"

    with span("view"):
        out = render(
            '{% otel_span "page" %}{% otel_span "cart" %}{{ load }}{% endotel_span %}{% endotel_span %}', load=load
        )
    assert out == "loaded"
    assert otel_spans.tree() == [("view", [("page", [("cart", [("load", [])])])])]


def test_otel_span_in_a_loop_is_a_span_per_turn(otel_spans):
    out = render('{% for n in numbers %}{% otel_span "row" n=n %}{{ n }},{% endotel_span %}{% endfor %}', numbers="abc")
    assert out == "a,b,c,"
    assert [s.attributes["n"] for s in otel_spans] == ["a", "b", "c"]


def test_otel_span_in_included_and_inherited_templates(otel_spans):
    engine = Engine(
        loaders=[
            (
                "django.template.loaders.locmem.Loader",
                {
                    "base.html": '{% load otel %}{% otel_span "base" %}[{% block b %}{% endblock %}]{% endotel_span %}',
                    "page.html": '{% extends "base.html" %}{% block b %}{% include row with n=1 %}{% endblock %}',
                    "row.html": '{% load otel %}{% otel_span "row" n=n %}row {{ n }}{% endotel_span %}',
                },
            )
        ],
        libraries={"otel": "django_otel.templatetags.otel"},
    )
    assert engine.get_template("page.html").render(Context({"row": "row.html"})) == "[row 1]"
    assert otel_spans.tree() == [("base", [("row", [])])]


def test_an_exception_in_the_content_is_recorded_and_goes_on(otel_spans):
    def fail():
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        render('{% otel_span "s" %}{{ fail }}{% endotel_span %}', fail=fail)
    assert otel_spans.one("s").status.status_code is trace.StatusCode.ERROR
    assert otel_spans.one("s").attributes["error.type"] == "LookupError"
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_attribute_that_fails_changes_nothing_else(otel_spans):
    guard.reset()

    def fail():
        raise LookupError("gone")

    out = render(
        '{% otel_span "s" a=fail b=1 %}x{% endotel_span %}{% otel_event fail %}{% otel_count "c" %}', fail=fail
    )
    assert out == "x"
    assert otel_spans.one("s").attributes == {"b": 1}
    assert guard.fault_counts() == {"an attribute in a template tag": 1}
    guard.reset()


def test_attributes_of_spans_that_are_not_recorded_are_not_evaluated():
    asked = []
    source = '{% otel_span "s" a=ask %}{% otel_event "e" a=ask %}{% otel_attribute "k" ask %}{% endotel_span %}'
    with override_sampling(0.0):
        render(source, ask=lambda: asked.append(1))
    assert not asked
    render(source, ask=lambda: asked.append(1))
    assert len(asked) == 3


def test_what_a_tag_sets_inside_is_there_after(otel_spans):
    assert render('{% otel_span "s" %}{% otel_trace_id as t %}{% endotel_span %}{{ t|length }}') == "32"


def test_one_compiled_template_renders_in_many_threads_at_once(otel_spans):
    inside = threading.Barrier(4)

    def wait():
        inside.wait(60)
        time.sleep(0.005)
        return ""

    template = Template(
        '{% load otel %}{% otel_span name n=n %}{{ wait }}{% otel_event "e" n=n %}{{ n }}{% endotel_span %}'
    )
    results = {}

    def work(n):
        results[n] = template.render(Context({"name": f"span {n}", "n": n, "wait": wait}))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: str(n) for n in range(4)}
    for n in range(4):
        recorded = otel_spans.one(f"span {n}")
        assert recorded.attributes == {"n": n}
        assert recorded.parent is None
        assert [event.attributes["n"] for event in recorded.events] == [n]


# --- otel_event, otel_attribute, otel_count ---


def test_events_and_attributes_go_to_the_current_span_and_render_nothing(otel_spans):
    with span("view"):
        out = render(
            '[{% otel_event "banner.shown" banner.name=b %}{% otel_attribute "cart.items" items|length %}]',
            b="<sale>",
            items=[1, 2],
        )
    assert out == "[]"
    recorded = otel_spans.one("view")
    assert recorded.attributes == {"cart.items": 2}
    assert recorded.events[0].name == "banner.shown"
    assert recorded.events[0].attributes == {"banner.name": "<sale>"}


def test_otel_count_counts_with_attributes_whatever_is_sampled(otel_metrics):
    with override_sampling(0.0):
        out = render(
            '[{% for b in banners %}{% otel_count "banner.shown" banner=b %}{% endfor %}]', banners=["a", "a", "b"]
        )
    assert out == "[]"
    assert otel_metrics.value("banner.shown", banner="a") == 2
    assert otel_metrics.value("banner.shown", banner="b") == 1


def test_otel_count_of_another_instruments_name_is_contained():
    guard.reset()
    django_otel.gauge("tag.gauge").set(1)
    assert render('a{% otel_count "tag.gauge" %}b') == "ab"
    assert guard.fault_counts() == {"a template tag": 1}
    guard.reset()


# --- otel_trace_id, otel_trace_link ---


def test_otel_trace_id_is_the_active_traces_or_nothing():
    assert render("[{% otel_trace_id %}]") == "[]"
    with span("s"):
        assert render("{% otel_trace_id %}") == django_otel.current_trace_id()


@override_settings(OTEL=TRACE_URL)
def test_otel_trace_link_is_an_escaped_link():
    with span("s"):
        trace_id = django_otel.current_trace_id()
        for autoescape in (True, False):
            assert render("{% otel_trace_link text %}", autoescape, text="<see>") == (
                f'<a href="https://jaeger.example/trace/{trace_id}?a=1&amp;b=&quot;2&quot;">&lt;see&gt;</a>'
            )
        assert render('{% otel_trace_link "see" as link %}[{{ link }}]').startswith("[<a href=")


def test_otel_trace_link_is_the_text_alone_where_there_is_nothing_to_link_to():
    with span("s"):
        assert render('{% otel_trace_link "see it" %}') == "see it"
    with override_settings(OTEL=TRACE_URL):
        assert render("{% otel_trace_link text %}", text="<see>") == "&lt;see&gt;"
        with override_sampling(0.0), span("s"):
            assert render('{% otel_trace_link "see it" %}') == "see it"


# --- otel_traceparent_meta ---


def test_otel_traceparent_meta_is_the_traceparent_and_nothing_of_a_clients_baggage():
    token = otel_context.attach(baggage.set_baggage("role", "admin"))
    try:
        with span("s") as current:
            ids = current.get_span_context()
            out = render("{% otel_traceparent_meta %}")
    finally:
        otel_context.detach(token)
    assert out == (
        f'<meta name="traceparent" content="00-{ids.trace_id:032x}-{ids.span_id:016x}-{int(ids.trace_flags):02x}">'
    )


@pytest.mark.parametrize("is_included", [False, True])
def test_otel_traceparent_meta_is_nothing_in_a_cached_fragment(is_included, caplog):
    """Whose second visitor would get the first one's ids; also in a template that is included there."""
    tag = "{% otel_traceparent_meta %}"
    inner = engines["django"].from_string("{% load otel %}" + tag).template
    cached = "{% include inner %}" if is_included else tag
    source = "{% load cache %}{% cache 60 cached_meta is_included %}(" + cached + "){% endcache %}"
    guard.reset()
    caches["default"].clear()
    for _ in range(2):
        with span("visit"):
            assert render(source, inner=inner, is_included=is_included) == "()"
            # Outside of it, after it, there is one.
            assert "traceparent" in render(source + tag, inner=inner, is_included=is_included)
    assert caplog.text.count("inside a {% cache %} block") == 1


def test_otel_traceparent_meta_is_nothing_without_a_trace():
    assert render("[{% otel_traceparent_meta %}]") == "[]"


@pytest.mark.parametrize(("trace_id", "span_id"), [(1 << 130, 1), (1, 1 << 70), (0, 1), (1, 0)])
def test_otel_traceparent_meta_gives_only_valid_ids(trace_id, span_id):
    ids = trace.SpanContext(trace_id, span_id, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(ids)):
        assert render("[{% otel_traceparent_meta %}]") == "[]"


@pytest.mark.parametrize("has_request", [True, False])
def test_a_page_with_the_traceparent_is_not_stored(rf, has_request):
    from django_otel.middleware import OTelMiddleware

    template = engines["django"].from_string("{% load otel %}{% otel_traceparent_meta %}")

    def page(request):
        if has_request:
            return TemplateResponse(request, template).render()
        return HttpResponse(template.render())

    response = OTelMiddleware(page)(rf.get("/hello/"))
    assert re.fullmatch(rb'<meta name="traceparent" content="00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9]">', response.content)
    assert {part.strip() for part in response["Cache-Control"].split(",")} == {"private", "no-store"}
    assert "Cache-Control" not in OTelMiddleware(lambda request: HttpResponse("x"))(rf.get("/hello/"))


# --- errors at compile time ---


@sizes.each(
    ("source", "message"),
    [
        (
            "{% otel_span %}{% endotel_span %}",
            r"'otel_span' needs a name first: {% otel_span .cart\.render. items",
        ),
        ("{% otel_span items=3 %}{% endotel_span %}", "'otel_span' needs a name first"),
        (
            '{% otel_span "a" "b" %}{% endotel_span %}',
            "takes one name and then attributes as key=value; found",
        ),
        ('{% otel_span "a" b=1 b=2 %}{% endotel_span %}', "'otel_span' was given the attribute 'b' twice"),
        ('{% otel_span "a" %}', "Unclosed tag"),
        ('{% otel_span "a" b=c|nofilter %}{% endotel_span %}', "Invalid filter: 'nofilter'"),
        ('{% otel_span "a" b=_private %}{% endotel_span %}', "may not begin with underscores"),
        ("{% otel_event %}", "'otel_event' needs a name first"),
        ('{% otel_event "a" b %}', "'otel_event' takes one name and then attributes"),
        ("{% otel_count %}", "'otel_count' needs a name first"),
        ('{% otel_attribute "a" %}', "'otel_attribute' takes a name and a value, but found 1 arguments"),
        ("{% otel_attribute %}", "'otel_attribute' takes a name and a value, but found 0 arguments"),
        ("{% otel_trace_link %}", "otel_trace_link"),
        ('{% otel_trace_id "x" %}', "otel_trace_id"),
    ],
)
def test_a_wrong_tag_is_a_syntax_error_that_says_what_to_write(source, message):
    with pytest.raises(TemplateSyntaxError, match=message):
        render(source)


# --- switched off ---


@override_settings(OTEL={"SERVICE_NAME": "tests", "ENABLED": False})
def test_switched_off_every_tag_renders_its_content_or_nothing(otel_spans):
    out = render(
        '{% otel_span "s" a=1 %}x{% otel_event "e" %}{% otel_attribute "k" 1 %}{% otel_trace_id %}'
        '{% otel_traceparent_meta %}{% otel_trace_link "y" %}{% endotel_span %}'
    )
    assert out == "xy"
    assert len(otel_spans) == 0
