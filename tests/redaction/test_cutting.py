"""Texts are redacted before they are cut: no cut hides the name of a secret or leaves its tail."""

from __future__ import annotations

import logging
import traceback

import pytest

from django_otel import span
from django_otel.redaction import cutting
from django_otel.redaction.scrub import Scrubber
from django_otel.tracing.exceptions import MAX_STACK, format_stack, message_of
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


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("length", [100, 1000, 4000])
def test_no_part_of_a_secret_survives_a_cut_at_any_place(number, length):
    secret = "Qz7Xk2Vb9Wn4"
    text = _texts(secret)[number]
    for before in range(max(0, length - len(text) - 20), length + 5, 7):
        whole = "a b c d " * (before // 8) + "- " * ((before % 8) // 2) + " " + text + " e f" * 3000
        assert secret[:6] not in cutting.cut(whole, length, SCRUB)
        assert secret[:6] not in cutting.cut_stack(whole, length, SCRUB)
        assert secret[:6] not in cutting.cut_stack(whole + text, length, SCRUB)


def test_a_cut_text_has_its_length_and_a_short_one_is_the_same():
    assert cutting.cut("abc", 3, SCRUB) == "abc"
    assert len(cutting.cut("ab " * 100_000, 50, SCRUB)) == 50
    assert len(cutting.cut_stack("ab " * 100_000, 50, SCRUB)) <= 50


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


def test_a_long_log_record_is_redacted_before_it_is_cut(otel_logs):
    secret = "Qz7Xk2Vb9Wn4"
    for text in _texts(secret):
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
