"""`{% load otel %}`: spans, events, attributes and counts from a template, and the trace's id for the page.

Nodes hold no state: the cached loader renders one node in many threads at
once. A telemetry fault never changes what is rendered; an exception in the
content of `otel_span` is recorded and goes on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping

from django import template
from django.http import HttpRequest
from django.template.base import FilterExpression, NodeList, Parser, Token
from django.template.context import Context
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe
from opentelemetry import trace

from django_otel import api
from django_otel.base import attribute_values, guard

register = template.Library()

#: Attribute names may hold dots, unlike Python's keywords.
_ATTRIBUTE = re.compile(r"([A-Za-z_][\w.-]*)=(.+)", re.DOTALL)
#: Source: W3C Trace Context, "traceparent header field values", version 00.
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Attributes = Mapping[str, FilterExpression]


def _parse(parser: Parser, token: Token, example: str) -> tuple[str, FilterExpression, dict[str, FilterExpression]]:
    """Read `tag name key=value ...`.

    Errors: `TemplateSyntaxError` when the name is missing, something is neither
        name nor attribute, or an attribute is given twice.
    """
    tag, *words = token.split_contents()
    if not words or _ATTRIBUTE.fullmatch(words[0]):
        raise template.TemplateSyntaxError(f"{tag!r} needs a name first: {{% {tag} {example} %}}.")
    attributes: dict[str, FilterExpression] = {}
    for word in words[1:]:
        match = _ATTRIBUTE.fullmatch(word)
        if match is None:
            raise template.TemplateSyntaxError(
                f"{tag!r} takes one name and then attributes as key=value; found {word!r}. "
                f"Write {{% {tag} {example} %}}."
            )
        key, value = match.groups()
        if key in attributes:
            raise template.TemplateSyntaxError(f"{tag!r} was given the attribute {key!r} twice.")
        attributes[key] = parser.compile_filter(value)
    return tag, parser.compile_filter(words[0]), attributes


def _resolve(expressions: Attributes, context: Context) -> dict[str, object]:
    """Evaluate attributes; a variable that is missing or fails is left out."""
    values = {}
    for key, expression in expressions.items():
        with guard.contained("an attribute in a template tag"):
            values[key] = expression.resolve(context, ignore_failures=True)
    return values


def _resolve_name(expression: FilterExpression, context: Context) -> str:
    """Evaluate a name; one that is missing, empty or fails is the source text of its expression."""
    with guard.contained("a name in a template tag"):
        name = expression.resolve(context, ignore_failures=True)
        if name is not None and (text := str(name)):
            return text
    return str(expression)


class SpanNode(template.Node):
    """A span while the content between the tags is rendered."""

    def __init__(self, name: FilterExpression, attributes: Attributes, nodelist: NodeList) -> None:
        self.name = name
        self.attributes = attributes
        self.nodelist = nodelist

    def render(self, context: Context) -> SafeString:
        with api.span(_resolve_name(self.name, context)) as span:
            # Attributes of a span that is not recorded are not evaluated: they may cost queries.
            if self.attributes and span.is_recording():
                with guard.contained("the attributes of otel_span"):
                    span.set_attributes(attribute_values.clean_attributes(_resolve(self.attributes, context)))
            return self.nodelist.render(context)


def _find_span() -> trace.Span:
    """The current span, or the one around the renders: a render that is timed leaves a span only if it was long."""
    span = trace.get_current_span()
    while (outer := getattr(span, "outer_span", None)) is not None:
        span = outer
    return span


class SignalNode(template.Node):
    """Something that is reported when it is rendered, and renders nothing."""

    def __init__(
        self,
        report: Callable[[str, dict[str, object]], None],
        name: FilterExpression,
        attributes: Attributes,
        *,
        only_recorded: bool,
    ) -> None:
        self.report = report
        self.name = name
        self.attributes = attributes
        self.only_recorded = only_recorded

    def render(self, context: Context) -> str:
        span = _find_span()
        if not self.only_recorded or span.is_recording():
            with guard.contained("a template tag"):
                name, attributes = _resolve_name(self.name, context), _resolve(self.attributes, context)
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    self.report(name, attributes)
        return ""


@register.tag
def otel_span(parser: Parser, token: Token) -> SpanNode:
    """A span around a part of a template: `{% otel_span "cart.render" items=n %} ... {% endotel_span %}`."""
    _, name, attributes = _parse(parser, token, '"cart.render" items=n')
    nodelist = parser.parse(("endotel_span",))
    parser.delete_first_token()
    return SpanNode(name, attributes, nodelist)


@register.tag
def otel_event(parser: Parser, token: Token) -> SignalNode:
    """An event on the current span: `{% otel_event "banner.shown" banner=b.name %}`."""
    _, name, attributes = _parse(parser, token, '"banner.shown" banner=b.name')
    return SignalNode(_event, name, attributes, only_recorded=True)


@register.tag
def otel_count(parser: Parser, token: Token) -> SignalNode:
    """Add one to a counter: `{% otel_count "banner.shown" banner=b.name %}`. Counts whatever is sampled."""
    _, name, attributes = _parse(parser, token, '"banner.shown" banner=b.name')
    return SignalNode(_count, name, attributes, only_recorded=False)


@register.tag
def otel_attribute(parser: Parser, token: Token) -> SignalNode:
    """An attribute of the current span: `{% otel_attribute "cart.items" cart.items|length %}`."""
    tag, *words = token.split_contents()
    if len(words) != 2:
        raise template.TemplateSyntaxError(
            f"{tag!r} takes a name and a value, but found {len(words)} arguments. "
            f'Write {{% {tag} "cart.items" cart.items|length %}}.'
        )
    name, value = (parser.compile_filter(word) for word in words)
    return SignalNode(_attribute, name, {"value": value}, only_recorded=True)


def _event(name: str, attributes: dict[str, object]) -> None:
    api.event(name, **attributes)


def _attribute(name: str, values: dict[str, object]) -> None:
    api.set_attributes(**{name: values.get("value")})


def _count(name: str, attributes: dict[str, object]) -> None:
    api.counter(name).add(1, attribute_values.clean_attributes(attributes))


@register.simple_tag
def otel_trace_id() -> str:
    """The id of the active trace, 32 hexadecimal digits; nothing without a trace."""
    return api.current_trace_id() or ""


@register.simple_tag
def otel_failure() -> dict[str, str]:
    """For `django_otel/500.html`: `trace_id`, `address` (where the trace can be looked at) and `stylesheet`.

    Each may be empty. Needs no request and makes no query: whatever has failed may fail again here.
    """
    found = {"trace_id": "", "address": "", "stylesheet": ""}
    with guard.contained("the style sheet of the failure page"):
        from django.templatetags.static import static

        found["stylesheet"] = static("django_otel/failure.css")
    with guard.contained("the trace on the failure page"):
        from django_otel.console import failures
        from django_otel.requests import record

        current = record.current()
        request = current.request if current is not None and isinstance(current.request, HttpRequest) else None
        traced = failures.trace_of(request)
        if traced is not None:
            found["trace_id"], is_recorded = traced
            address = api.trace_url()
            if address is None and is_recorded and failures.may_see_console(request):
                # The admin's address is not for everybody.
                address = failures.trace_address(found["trace_id"], request)
            found["address"] = address or ""
    return found


@register.simple_tag
def otel_trace_link(text: object) -> SafeString:
    """A link to the active trace at `OTEL["TRACE_URL"]`; the text alone where there is nothing to link to."""
    url = api.trace_url()
    return conditional_escape(str(text)) if url is None else format_html('<a href="{}">{}</a>', url, text)


@register.simple_tag(takes_context=True)
def otel_traceparent_meta(context: Context) -> SafeString:
    """`<meta name="traceparent" content="...">`, with which scripts in the page continue the trace.

    Nothing without a trace. Marks the response as not to be stored: a cached
    page would put every visitor into one trace. So would a fragment inside
    `{% cache %}`, where it renders nothing and warns once. Never renders baggage.
    """
    ids = _find_span().get_span_context()
    if not ids.is_valid:
        return mark_safe("")
    value = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{int(ids.trace_flags) & 0xFF:02x}"
    if _TRACEPARENT.fullmatch(value) is None:
        # Ids wider than the format's, from a foreign id generator.
        return mark_safe("")
    if _is_in_cached_fragment():
        guard.warn_once(
            "traceparent in cache",
            "otel_traceparent_meta is inside a {% cache %} block and renders nothing there, because the stored "
            "fragment would put all visitors into one trace. Move it out of the block.",
        )
        return mark_safe("")
    with guard.contained("otel_traceparent_meta"):
        _forbid_storing(context)
    return format_html('<meta name="traceparent" content="{}">', value)


def _is_in_cached_fragment() -> bool:
    """Return whether the template that is being rendered, or one that includes it, is inside `{% cache %}`."""
    module = sys.modules.get("django.templatetags.cache")
    if module is None:
        return False
    # The context does not say so; a node that is rendered is on the stack.
    code = module.CacheNode.render.__code__
    frame = sys._getframe(1)  # noqa: SLF001 (Django has no public name for it)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _forbid_storing(context: Context) -> None:
    from django_otel.requests import record

    request = context.get("request")
    observed = record.find(request) or record.current()
    if observed is not None:
        observed.no_store = True
        if request is None:
            request = observed.request
    if request is not None:
        # The header comes with the middleware, after Django's cache (`cache_page`, or its middlewares) has stored the
        # page. UpdateCacheMiddleware stores nothing with this.
        request._cache_update_cache = False  # noqa: SLF001 (Django has no public name for it)
