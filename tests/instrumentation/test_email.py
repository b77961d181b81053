"""Mail is counted by outcome, with a span inside a trace and never an address."""

from __future__ import annotations

import django
import pytest
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.test import override_settings

import django_otel

ON = {"EMAIL": True}
LOCMEM = "django.core.mail.backends.locmem.EmailBackend"


class Half(BaseEmailBackend):
    """A server that takes every second message."""

    def send_messages(self, messages):
        return len(messages) // 2


class Down(BaseEmailBackend):
    def send_messages(self, messages):
        raise ConnectionError("no server for ann@example.org")


class Silent(BaseEmailBackend):
    """As some backends do, it does not say how many it has sent."""

    def send_messages(self, messages):
        return None


class Agreeing(BaseEmailBackend):
    """Says that all went well, and not how many messages that were."""

    def send_messages(self, messages):
        return True


class Negative(BaseEmailBackend):
    """As one that answers as a file's read does."""

    def send_messages(self, messages):
        return -1


class Passing(BaseEmailBackend):
    """Passes messages on to another backend, as queues and debug tools do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.other = Half()

    def send_messages(self, messages):
        return self.other.send_messages(messages)


@pytest.fixture(autouse=True)
def is_on(settings):
    settings.OTEL = ON


def sending_by(backend: str):
    if django.VERSION >= (6, 1):
        return override_settings(MAILERS={"default": {"BACKEND": backend}})
    return override_settings(EMAIL_BACKEND=backend)


def send(number: int, backend: str = LOCMEM) -> None:
    with sending_by(backend):
        mail.send_mass_mail([("secret subject", "secret text", "a@example.org", ["b@example.org"])] * number)


def counts(otel_metrics) -> dict[str, float]:
    return {
        outcome: otel_metrics.value("django.email.sent", django__email__outcome=outcome)
        for outcome in ("sent", "failed")
    }


def test_messages_are_counted(otel_metrics, mailoutbox):
    send(3)
    with sending_by(LOCMEM):
        mail.EmailMessage("secret", "text", "a@example.org", ["b@example.org"]).send()
    assert len(mailoutbox) == 4
    assert counts(otel_metrics) == {"sent": 4, "failed": 0}


@pytest.mark.parametrize(
    ("backend", "sent", "failed"),
    [("Half", 2, 3), ("Silent", 5, 0), ("Agreeing", 5, 0), ("Negative", 0, 5), ("Passing", 2, 3)],
)
def test_the_outcome_is_what_the_backend_reports(otel_metrics, backend, sent, failed):
    send(5, f"{__name__}.{backend}")
    assert counts(otel_metrics) == {"sent": sent, "failed": failed}


def test_an_error_counts_all_messages_as_failed_and_goes_on(otel_metrics):
    with pytest.raises(ConnectionError):
        send(2, f"{__name__}.Down")
    assert counts(otel_metrics) == {"sent": 0, "failed": 2}


def test_a_span_stands_in_the_trace_and_names_no_address(otel_spans):
    send(1)
    assert len(otel_spans) == 0
    with django_otel.span("signup"):
        send(2)
    found = otel_spans.one("send mail")
    assert found.parent.span_id == otel_spans.one("signup").context.span_id
    assert dict(found.attributes) == {"django.email.messages": 2}
    assert "example.org" not in found.to_json() and "secret" not in found.to_json()


def test_an_error_is_recorded_on_the_span_without_its_secrets(otel_spans):
    with pytest.raises(ConnectionError), django_otel.span("signup"):
        send(1, f"{__name__}.Down")
    assert otel_spans.one("send mail").attributes["error.type"] == "ConnectionError"


def test_nothing_is_sent_by_an_empty_list(otel_metrics):
    send(0)
    assert counts(otel_metrics) == {"sent": 0, "failed": 0}


def test_off_leaves_django_as_it_is(settings, otel_metrics):
    settings.OTEL = {"EMAIL": False}
    assert "send_messages" not in vars(Half())
    send(1)
    assert counts(otel_metrics) == {"sent": 0, "failed": 0}
