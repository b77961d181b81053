"""Tokens in paths: no link that lets in who has it leaves, under any route, and ordinary paths stay."""

from __future__ import annotations

import logging

import pytest
from django.core import signing
from django.http import HttpResponse
from django.test import Client
from django.urls import path, re_path

from django_otel.redaction.scrub import REDACTED, Scrubber
from tests import sizes
from tests.redaction.fakes import Fakes

SCRUBBER = Scrubber()
FAKES = Fakes(11)


def _page(request, *args, **kwargs):
    logging.getLogger("shop").warning("in the view of %s", request.get_full_path())
    return HttpResponse("ok")


urlpatterns = [
    path("reset/<uidb64>/<token>/", _page),
    path("go/<key>/", _page),
    path("enter/<code>/", _page),
    path("file/<path:signed>/", _page),
    path("item/<slug:slug>/", _page),
    path("order/<uuid:pk>/", _page),
    re_path(r"^un/([\w\-]+)/([\w:\-.]+)/$", _page),
]

SECRET_PATHS = [
    # With its slash and without, which no route matches.
    ("/reset/MQ/{}/", FAKES.draw("reset")),
    ("/reset/MQ/{}", FAKES.draw("reset")),
    ("/go/{}/", "hunter2xyz"),
    ("/enter/{}/", "abcdefgh"),
    ("/file/{}/", signing.dumps({"user": 12}, key="k")),
    ("/file/{}/", signing.dumps({"user": "x" * 500}, key="k", compress=True)),
    ("/file/{}/", signing.TimestampSigner(key="k").sign("12")),
    ("/un/12/{}/", FAKES.draw("opaque")),
    ("/un/12/{}/", signing.Signer(key="k").sign("12")),
    ("/item/{}/", FAKES.draw("url64")),
    ("/nowhere/{}", FAKES.draw("opaque")),
    ("/nowhere/{}/x", FAKES.draw("url64")),
    ("/nowhere/{}/", FAKES.draw("hex64")),
    ("/nowhere/at/all/{}", FAKES.draw("jwt")),
    ("/nowhere/{}", signing.dumps([1, 2], key="k")),
    ("/.well-known/{}", FAKES.draw("github")),
    # Short, behind a word that says what it is; and a file under a name that cannot be guessed.
    ("/invite/{}", FAKES.draw("pass")),
    ("/nowhere/share/{}/", FAKES.draw("pass")),
    ("/nowhere/{}.pdf", FAKES.draw("opaque")),
]


def _all_texts(spans, logs):
    texts = [str(value) for span in spans for value in (span.name, *span.attributes.values())]
    texts += [str(value) for span in spans for event in span.events for value in event.attributes.values()]
    return texts + [f"{log.log_record.body} {dict(log.log_record.attributes)}" for log in logs]


# Numbers for names: a signature holds the second in which it was made, and all workers must name a test alike.
@pytest.mark.parametrize(("pattern", "token"), SECRET_PATHS, ids=range(len(SECRET_PATHS)))
def test_a_token_in_a_path_leaves_neither_by_the_span_nor_by_the_log(pattern, token, otel_spans, otel_logs, settings):
    settings.ROOT_URLCONF = __name__
    settings.DEBUG = False
    url = pattern.format(token)
    Client(raise_request_exception=False).get(url)
    assert otel_spans
    # Django writes `:` and others as they are; a quoted form would be another text.
    texts = _all_texts(otel_spans, otel_logs)
    parts = [part for part in token.replace(":", "/").split("/") if len(part) > 7]
    assert [text for text in texts if token in text or any(part in text for part in parts)] == []


def test_a_captured_referer_has_no_token(otel_spans, settings):
    settings.ROOT_URLCONF = __name__
    settings.OTEL = {**settings.OTEL, "REQUEST": {**settings.OTEL.get("REQUEST", {}), "REQUEST_HEADERS": ["referer"]}}
    from django_otel import conf, runtime

    conf.forget()
    runtime.restart()
    token = FAKES.draw("reset")
    for referer in (f"https://shop.example/reset/MQ/{token}/", f"https://shop.example/reset/MQ/{token}"):
        Client().get("/item/a-plain-slug/", headers={"referer": referer})
    recorded = [span.attributes.get("http.request.header.referer") for span in otel_spans]
    assert any("shop.example" in str(value) for value in recorded)
    assert not any(token in str(value) for value in recorded)


@pytest.mark.parametrize(
    "url",
    ["/item/how-to-write-1000-tests-in-10-minutes/", "/order/550e8400-e29b-41d4-a716-446655440000/", "/nowhere/at/all/",
     "/nowhere/2024/05/report-final-v2.pdf", "/nowhere/550e8400-e29b-41d4-a716-446655440000/", "/wp-login.php",
     "/nowhere/static/app.3f2a9b8c7d6e.js", "/invite/2024-team/", "/share/report2024/", "/webhook/v2/orders",
     "/nowhere/fonts/KFOmCnqEu92Fr1Mu4mxK.woff2", "/nowhere/Qx7kTb2w/"],
)  # fmt: skip
def test_an_ordinary_path_stays_readable(url, otel_spans, settings):
    settings.ROOT_URLCONF = __name__
    Client(raise_request_exception=False).get(url)
    assert [span.attributes["url.path"] for span in otel_spans if "url.path" in span.attributes] == [url]


@sizes.each(
    ("pattern", "form"),
    [
        ("https://hooks.slack.com/services/{}", "slack_hook"),
        ("https://hooks.slack.com/triggers/{}", "slack_hook"),
        ("https://api.telegram.org/bot{}/sendMessage", "telegram"),
        ("https://api.telegram.org/file/bot{}/a.jpg", "telegram"),
        ("/bot{}/getUpdates", "telegram"),
        ("https://discord.com/api/webhooks/{}", "discord_hook"),
        ("https://discordapp.com/api/v10/webhooks/{}?wait=true", "discord_hook"),
        ("https://ptb.discord.com/api/webhooks/{}", "discord_hook"),
        ("https://acme.webhook.office.com/webhookb2/{}", "teams_hook"),
        ("https://outlook.office.com/webhook/{}", "teams_hook"),
        ("https://outlook.office365.com/webhook/{}", "teams_hook"),
    ],
)
@sizes.each(
    "around", ["{}", "POST {} failed", "url='{}'", '{{"hook": "{}"}}', "Max retries exceeded with url: {} (Caused"]
)
def test_the_address_of_a_webhook_is_a_secret(pattern, form, around):
    secret = FAKES.draw(form)
    scrubbed = SCRUBBER.text(around.format(pattern.format(secret)))
    assert REDACTED in scrubbed
    last = secret.rpartition("/")[2].rpartition(":")[2]
    assert last not in scrubbed


SIGNED = [
    signing.dumps({"a": 1}, key="k"),
    signing.dumps({"a": "b" * 300}, key="k", compress=True),
    signing.dumps("x", key="k"),
    signing.Signer(key="k").sign("12"),
    signing.Signer(key="k").sign("ann@shop.example"),
    signing.Signer(key="k", algorithm="sha1").sign("12"),
    signing.TimestampSigner(key="k").sign("order-12"),
    signing.Signer(key="k").sign_object([1, 2, 3]),
    signing.Signer(key="k").sign_object(["x" * 400], compress=True),
]


@sizes.each("value", SIGNED)
@sizes.each("around", ["{}", "value {} is bad", "/download/{}", "https://x.example/d/{}/", "?next=/&s={}"])
def test_no_signature_of_a_signed_value_leaves(value, around):
    scrubbed = SCRUBBER.text(around.format(value))
    assert value.rpartition(":")[2] not in scrubbed
