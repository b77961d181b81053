"""The template tags as an extension of Jinja2: `"extensions": ["django_otel.jinja2.OTelExtension"]`.

The tags are those of `{% load otel %}`: `otel_span` to `endotel_span`, `otel_event`, `otel_attribute`, `otel_count`,
`otel_trace_id`, `otel_trace_link` and `otel_traceparent_meta`. A telemetry fault never changes what is rendered; an
exception in the content of `otel_span` is recorded and goes on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from jinja2 import Undefined, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from markupsafe import Markup

from django_otel import api
from django_otel.base import attribute_values, guard
from django_otel.templatetags import otel

#: Tags with a name and attributes, by the method that they call.
_SIGNALS = {"otel_event": "_event", "otel_count": "_count"}
#: Tags that write something, without a word after them.
_OUTPUTS = {"otel_trace_id": "_trace_id", "otel_traceparent_meta": "_traceparent_meta"}


class OTelExtension(Extension):
    """Spans, events, attributes and counts from a Jinja2 template, and the trace's id for the page."""

    tags = {"otel_span", "otel_attribute", "otel_trace_link", *_SIGNALS, *_OUTPUTS}

    def parse(self, parser: Parser) -> nodes.Node:
        """Read one tag. Errors: `TemplateSyntaxError` where a name or the value of an attribute is missing."""
        token = next(parser.stream)
        tag, line = token.value, token.lineno
        if tag in _OUTPUTS:
            return nodes.Output([self.call_method(_OUTPUTS[tag], [nodes.ContextReference()])], lineno=line)
        words: list[nodes.Expr] = [parser.parse_expression()]
        if tag == "otel_trace_link":
            return nodes.Output([self.call_method("_trace_link", words)], lineno=line)
        if tag == "otel_attribute":
            words.append(parser.parse_expression())
            return nodes.Output([self.call_method("_attribute", words)], lineno=line)
        words.append(_parse_attributes(parser))
        if tag in _SIGNALS:
            return nodes.Output([self.call_method(_SIGNALS[tag], words)], lineno=line)
        body = parser.parse_statements(("name:endotel_span",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_span", words), [], [], body, lineno=line)

    def _span(self, name: object, attributes: Mapping[str, object], caller: Callable[[], object]) -> object:
        title, known = _name(name), _clean(attributes)
        if not self.environment.is_async:
            with api.span(title, **known):
                return caller()

        async def render() -> object:
            with api.span(title, **known):
                rendered = caller()
                return await rendered if inspect.isawaitable(rendered) else rendered

        # Jinja2 awaits it.
        return render()

    def _event(self, name: object, attributes: Mapping[str, object]) -> str:
        with guard.contained("a template tag"):
            api.event(_name(name), **_clean(attributes))
        return ""

    def _count(self, name: object, attributes: Mapping[str, object]) -> str:
        with guard.contained("a template tag"):
            api.counter(_name(name)).add(1, attribute_values.clean_attributes(_clean(attributes)))
        return ""

    def _attribute(self, name: object, value: object) -> str:
        with guard.contained("a template tag"):
            api.set_attributes(**_clean({_name(name): value}))
        return ""

    def _trace_id(self, context: Context) -> str:
        return otel.otel_trace_id()

    def _trace_link(self, text: object) -> Markup:
        return Markup(otel.otel_trace_link(text))  # noqa: S704 (escaped there)

    def _traceparent_meta(self, context: Context) -> Markup:
        return Markup(otel.otel_traceparent_meta(context))  # type: ignore[arg-type]  # noqa: S704 (only hexadecimal digits)


def _parse_attributes(parser: Parser) -> nodes.Dict:
    """Read `key=value ...`; a key may hold dots."""
    stream, pairs = parser.stream, []
    while stream.current.type != "block_end":
        stream.skip_if("comma")
        token = stream.expect("name")
        key = token.value
        while stream.skip_if("dot"):
            key = f"{key}.{stream.expect('name').value}"
        stream.expect("assign")
        pairs.append(nodes.Pair(nodes.Const(key), parser.parse_expression(), lineno=token.lineno))
    return nodes.Dict(pairs)


def _name(given: object) -> str:
    """A name; one whose variable is missing or fails is `unnamed`."""
    with guard.contained("a name in a template tag"):
        return str(given) or "unnamed"
    return "unnamed"


def _clean(attributes: Mapping[str, object]) -> dict[str, object]:
    """The attributes without those whose variable is missing."""
    return {name: value for name, value in attributes.items() if not issubclass(type(value), Undefined)}
