"""Texts are redacted before they are cut: no cut hides the name of a secret or leaves its tail."""

from __future__ import annotations

import logging
import traceback

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.trace import Link, SpanContext

from django_otel import runtime, span
from django_otel.api import _record_error
from django_otel.redaction import cutting
from django_otel.redaction.scrub import Scrubber
from django_otel.tracing.exceptions import MAX_STACK, format_stack, message_of
from tests import sizes
from tests.redaction.fakes import Fakes

SCRUB = Scrubber().text


def _texts(secret: str) -> list[str]:
    pem = "-----BEGIN RSA PRIVATE KEY-----\n" + Fakes(5).pem("", "\n") + "\n-----END RSA PRIVATE KEY-----"
    return [
        f'{{"password": "{secret * 3}", "n": 1}}',
        f"token={secret}",
        f"Cookie: {secret}",
        pem.replace("\n", f"\n{secret}\n", 2),
        f"postgres://bob:{secret}@db/x",
        f"eyJhbGciOiJIUzI1NiJ9.{secret * 8}.{secret * 2}",
    ]


@pytest.mark.heavy
@pytest.mark.scaled
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("length", [100, 1000, 4000])
def test_no_part_of_a_secret_survives_a_cut_at_any_place(number, length):
    secret = "Qz7Xk2Vb9Wn4"
    text = _texts(secret)[number]
    for before in range(max(0, length - len(text) - 20), length + 5, sizes.scaled(61, 7)):
        whole = "a b c d " * (before // 8) + "- " * ((before % 8) // 2) + " " + text + " e f" * length
        assert secret[:6] not in cutting.cut(whole, length, SCRUB)
        assert secret[:6] not in cutting.cut_stack(whole, length, SCRUB)
        assert secret[:6] not in cutting.cut_stack(whole + text, length, SCRUB)


def test_a_cut_text_has_its_length_and_a_short_one_is_the_same():
    assert cutting.cut("abc", 3, SCRUB) == "abc"
    assert len(cutting.cut("ab " * 100_000, 50, SCRUB)) == 50
    assert len(cutting.cut_stack("ab " * 100_000, 50, SCRUB)) <= 50


@pytest.mark.heavy
@pytest.mark.parametrize("size", [2_000, 20_000, 300_000])
def test_the_stack_and_the_message_of_an_exception_hold_no_secret(size):
    secret = "Qz7Xk2Vb9Wn4"
    for text in _texts(secret):
        try:
            raise ValueError("x " * (size // 2) + text + " y" * 100)
        except ValueError as error:
            stack, message = format_stack(error, SCRUB), message_of(error, SCRUB)
        # A text that was short enough is redacted when it is exported.
        assert secret[:6] not in SCRUB(stack)
        assert secret[:6] not in SCRUB(message)
        assert len(stack) <= MAX_STACK
        assert stack.startswith("Traceback")


@pytest.mark.heavy
def test_a_long_attribute_of_a_span_is_redacted_before_it_is_cut(otel_spans):
    secret = "Qz7Xk2Vb9Wn4"
    with span("work") as current:
        for number, text in enumerate(_texts(secret)):
            for shift in (4080, 4050, 4000):
                current.set_attribute(f"one.{number}.{shift}", "a " * ((shift - len(text) // 2) // 2) + text)
                current.set_attributes({f"many.{number}.{shift}": "a " * ((shift - len(text) // 2) // 2) + text})
                current.add_event("happened", {"text": "a " * ((shift - len(text) // 2) // 2) + text})
    found = otel_spans.one("work")
    texts = [*found.attributes.values(), *(value for event in found.events for value in event.attributes.values())]
    assert not any(secret[:6] in str(value) for value in texts)


@pytest.mark.heavy
@pytest.mark.scaled
def test_a_long_log_record_is_redacted_before_it_is_cut(otel_logs):
    secret = "Qz7Xk2Vb9Wn4"
    for text in _texts(secret)[:: sizes.scaled(6, 1)]:
        try:
            raise ValueError("x " * 32_700 + text)
        except ValueError:
            message = "y " * 32_750 + text
            logging.getLogger("shop").exception(message, extra={"note": "z " * 32_750 + text})
    assert otel_logs
    for record in otel_logs:
        shown = f"{record.log_record.body} {dict(record.log_record.attributes)}"
        assert secret[:6] not in shown


def test_a_source_line_in_a_stack_stays_readable():
    def get_token():
        raise ValueError("no")

    try:
        token = get_token()
        print(token)
    except ValueError:
        stack = traceback.format_exc()
    assert SCRUB(stack) == stack


# --- Attributes that an instrumentor sets, on spans of every provider. ---

SECRET = "Qz7Xk2Vb9Wn4"
LIMIT = 4096
LINKED = SpanContext(1, 2, False)


class Ending(SpanProcessor):
    """A processor with the private hook: reason enough for the SDK's own spans."""

    def _on_ending(self, span):
        pass


class Bodiless:
    """An object of the application, of which the SDK makes a text."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


@pytest.fixture(params=["our spans", "spans of the SDK"])
def tracer(request, otel_spans, settings):
    """A tracer of our provider, whose spans we make or the SDK."""
    # Another test may have installed a provider, which stays for the process.
    settings.OTEL = {**settings.OTEL, "PROVIDERS": "own"}
    switch = runtime.current().traces.switch
    before = switch.parts
    if request.param == "spans of the SDK":
        switch.parts = (*before, Ending())
    assert runtime.tracer().is_sdk_path == (request.param != "our spans")
    yield runtime.tracer()
    switch.parts = before


def _across_the_limit(text, length=LIMIT):
    """Texts in which a secret lies across the limit, at several places."""
    return [("a " * length)[: length - cut] + " " + text + " b" * 3000 for cut in (len(text) - 3, len(text) // 2, 20)]


FORMS = {
    "plain": lambda text: text,
    "list": lambda text: ["x", text],
    "nested list": lambda text: [["x"], [text]],
    "mapping": lambda text: {"a": {"b": text}},
    "object": Bodiless,
}


def _texts_in(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) or hasattr(value, "values"):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("form", "number"),
    [
        pytest.param(form, number, marks=[pytest.mark.long] if index and number != index else [])
        for index, form in enumerate(FORMS)
        for number in range(6)
        if not index or number == index or sizes.IS_LONG
    ],
)
def test_no_tail_of_a_secret_leaves_with_a_span(tracer, otel_spans, number, form):
    make = FORMS[form]
    # One of three places of the cut; in a long run all.
    places = _across_the_limit(_texts(SECRET)[number])[slice(*sizes.scaled((number % 3, None, 3), (None,)))]
    values = {f"v{index}": make(text) for index, text in enumerate(places)}
    later = tracer.start_span("later", attributes=values, links=[Link(LINKED, values)])
    for key, value in values.items():
        later.set_attribute(f"{key}.one", value)
    later.set_attributes({f"{key}.many": value for key, value in values.items()})
    later.add_event("happened", values)
    later.add_link(LINKED, values)
    later.end()
    found = otel_spans.one("later")
    groups = [found.attributes, *(part.attributes for part in (*found.events, *found.links))]
    texts = [text for group in groups for value in group.values() for text in _texts_in(value)]
    assert len(found.events) == 1
    assert len(found.links) == 2
    # A version of the SDK may leave out what is no plain value.
    assert len(texts) >= 5 * len(places) or form in ("nested list", "mapping", "object")
    assert not any(SECRET[:6] in text for text in texts)
    assert max(map(len, texts), default=0) <= LIMIT


@pytest.mark.heavy
@pytest.mark.scaled
@pytest.mark.parametrize("number", range(6))
def test_no_tail_of_a_secret_leaves_with_the_exception_of_a_span(tracer, otel_spans, number):
    texts = [text for length in (1000, LIMIT, MAX_STACK) for text in _across_the_limit(_texts(SECRET)[number], length)]
    # Every length with some secret, every secret at some place; in a long run all of them.
    texts = sizes.scaled(texts[number::6], texts)
    for text in texts:
        with pytest.raises(ValueError, match="a a"), tracer.start_as_current_span("failed"):
            raise ValueError(text)
    assert len(otel_spans) == len(texts)
    for found in otel_spans:
        attributes = found.events[0].attributes
        assert attributes["exception.type"] == "ValueError"
        assert len(attributes["exception.message"]) <= LIMIT
        assert len(attributes["exception.stacktrace"]) <= MAX_STACK
        assert attributes["exception.stacktrace"].startswith("Traceback")
        assert not any(SECRET[:6] in str(value) for value in (*attributes.values(), found.status.description))


def test_short_texts_and_counts_of_a_span_stay(tracer, otel_spans):
    later = tracer.start_span("later", attributes={str(number): "x" for number in range(130)})
    later.add_event("happened", {"long": "x " * 5000, "short": "y", **{str(number): 1 for number in range(130)}})
    later.end()
    found = otel_spans.one("later")
    assert found.dropped_attributes == 2
    assert found.events[0].dropped_attributes == 4


@pytest.mark.parametrize("number", range(6))
def test_no_tail_of_a_secret_leaves_with_a_log_record(otel_logs, settings, number):
    settings.OTEL = {**settings.OTEL, "LOGS": {"LIMITS": {"ATTRIBUTE_LENGTH": 1000}}}
    texts = _across_the_limit(_texts(SECRET)[number], 1000)
    for text in texts:
        logging.getLogger("shop").warning("said", extra={"note": text})
    # As an instrumentor does it.
    runtime.current().logger_provider.get_logger("some").emit(
        LogRecord(
            timestamp=1,
            severity_number=SeverityNumber.ERROR,
            body="said",
            attributes={"texts": texts, "inside": {"a": texts[0]}, "n": 1},
        )  # fmt: skip
    )
    assert len(otel_logs) == 4
    for record in otel_logs:
        found = [text for value in record.log_record.attributes.values() for text in _texts_in(value)]
        assert not any(SECRET[:6] in text for text in found)
        assert max(map(len, found)) <= 1000


def test_no_cut_goes_through_the_mark_of_a_redaction():
    text = f"{'a ' * 40}token={SECRET} {'b ' * 40}"
    for length in range(70, 110):
        found = cutting.cut(text, length, SCRUB)
        assert SCRUB(found) == found
        assert len(found) <= length
        assert "[redacted]" in found or "[" not in found


@pytest.mark.heavy
@pytest.mark.parametrize("length", [100, 4096])
@pytest.mark.parametrize("number", range(6))
def test_an_exception_is_redacted_where_another_provider_exports_and_cuts_the_span(number, length):
    limits = SpanLimits(max_attribute_length=length, max_span_attribute_length=length)
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    for before in (0, 20, 90, 600, 990, 5000):
        text = "a " * (before // 2) + _texts(SECRET)[number] + " b" * 50
        started = provider.get_tracer("other").start_span("work")
        try:
            raise ValueError(text)
        except ValueError as error:
            _record_error(started, error)
        started.end()
        attributes = started.events[0].attributes
        assert not any(SECRET[:6] in str(value) for value in (*attributes.values(), started.status.description))
