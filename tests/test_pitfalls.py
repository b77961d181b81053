"""Faults of other libraries, each of which a test here would find in ours; hard cases under real servers.

"pitfalls A6" and the like name the fault in the project's list of pitfalls. Most
of that list is tested beside the part it belongs to; this file has the rest.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import services

HARD = {"DJANGO_SETTINGS_MODULE": "tests.hard_settings"}
OPEN = {"METRICS_VIEW": {"ALLOW": "all"}, "SAMPLING": {"LIVE": False}}


def exporting(receiver, **more):
    return {
        "SERVICE_NAME": "hard",
        **OPEN,
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "INTERVAL_S": 0.3},
        "LOGS": {"EXPORTERS": ["otlp"]},
        **more,
    }


def samples(page: bytes, name: str) -> list[str]:
    return [line for line in page.decode().splitlines() if line.startswith(name + "{")]


def total(page: bytes, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in samples(page, name))


def all_bytes(receiver) -> bytes:
    """What arrived, decoded and undone from its compression, as the bytes it was."""
    return b"".join(message.SerializeToString() for _, _, message in list(receiver.requests))


# --- Secrets: pitfalls, section 3. ---


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_no_planted_secret_is_among_the_bytes_a_receiver_gets(kind, receiver):
    """pitfalls 3.1, 3.2, 3.3, 3.5, 3.8: by URL, header, body of a log, SQL, exception, status, event, label, baggage."""
    secret, credential, in_path = "Zx81secretQ", "Qv77headerW", "Pk55pathR"
    otel = exporting(
        receiver,
        REQUEST={"QUERY": True, "REQUEST_HEADERS": ["*"], "RESPONSE_HEADERS": ["*"]},
        RESOURCE={"deploy.api_key": secret},
        PROPAGATION={"BAGGAGE_KEYS": ["password"]},
    )
    with services.serve(kind, otel, **HARD) as server:
        headers = {
            "Authorization": f"Bearer {credential}",
            "Cookie": f"sessionid={secret}",
            "X-Api-Key": secret,
            "Referer": f"https://shop.example/?access_token={secret}",
            "baggage": f"password={secret}",
        }
        status, _, _ = server.get(f"/leak/{in_path}/?password={secret}&X-Amz-Signature={secret}&q=ok", headers)
        assert status == 500
        services.wait_until(lambda: any(span.kind == 2 for _, span in receiver.spans()), what="the server span")
        services.wait_until(lambda: any("Internal" in str(record.body) for _, record in receiver.logs()), what="its log")
        services.wait_until(lambda: any(m.name == "leaks" for _, _, m in receiver.metrics()), what="the metrics")
        page = server.get("/metrics")[2]
    sent = all_bytes(receiver)
    found = [
        (path, text)
        for path, _, message in receiver.requests
        for text in re.findall(rf"(?:.*\n){{2}}.*(?:{secret}|{credential}|{in_path}).*", str(message))
    ]
    assert found == [], "\n".join(f"{path}: {text}" for path, text in found)
    for planted in (secret, credential, in_path):
        assert planted.encode() not in sent
        assert planted.encode() not in page
    # What is no secret is still there.
    assert b"q=ok" in sent
    assert b"refused" in sent
    names = {span.name for _, span in receiver.spans()}
    assert "GET /leak/<str:token>/" in names
    assert "payment" in names


def test_text_that_no_encoder_takes_costs_no_batch(receiver):
    """A lone surrogate from a client's JSON, or an integer of 70 bits, must not take a batch of 512 spans along."""
    with services.serve("gunicorn", exporting(receiver), **HARD) as server:
        for _ in range(3):
            assert server.get("/surrogates/")[0] == 200
            assert server.get("/fine/")[0] == 200
        services.wait_until(lambda: sum(span.kind == 2 for _, span in receiver.spans()) == 6, 10, "all spans")
        services.wait_until(
            lambda: sum("body" in str(record.body) for _, record in receiver.logs()) == 3, 10, "all log records"
        )
        services.wait_until(lambda: any(m.name == "surrogates" for _, _, m in receiver.metrics()), what="the metric")
        assert server.get("/metrics")[0] == 200
        assert "Traceback" not in server.log
    span = next(span for _, span in receiver.spans() if span.name == "GET /surrogates/")
    attributes = services.attributes_of(span)
    assert attributes["raw"] == "? lone"
    assert attributes["null"] == "a\x00b"
