"""W3C Trace Context, as the W3C's harness tests it: a service that calls back, under real servers.

Each case sends headers to `/test/`, whose view calls this test's own server
with `requests`, and looks at the headers that arrive there.
Source: W3C trace-context, "test/test.py"; the names of the cases are its own.
"""

from __future__ import annotations

import http.server
import json
import re
import threading

import pytest

from tests import services

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
TRACE_ID = "12345678901234567890123456789012"
PARENT_ID = "1234567890123456"
GOOD = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Caught:
    """The headers of the last call back."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []
        self.url = ""


@pytest.fixture(scope="module")
def caught():
    found = Caught()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.calls.append([(name.lower(), value) for name, value in self.headers.items()])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/callback"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module", params=["gunicorn", "uvicorn"])
def service(request):
    with services.serve(request.param, {"SERVICE_NAME": "conformance", "SAMPLING": {"LIVE": False}}) as server:
        yield server


@pytest.fixture
def call(service, caught):
    def make(*headers: tuple[str, str], times: int = 1):
        """The (trace id, parent id, tracestate dict in order) of each call back."""
        caught.calls.clear()
        body = json.dumps([{"url": caught.url, "arguments": []}] * times).encode()
        status, _, _ = service.request("POST", "/test/", body, list(headers))
        assert status == 200, service.log[-2000:]
        assert len(caught.calls) == times
        found = []
        for arrived in caught.calls:
            parents = [value for name, value in arrived if name == "traceparent"]
            assert len(parents) == 1
            match = TRACEPARENT.fullmatch(parents[0])
            assert match is not None
            version, trace_id, parent_id, _ = match.groups()
            assert version == "00"
            assert trace_id != "0" * 32
            assert parent_id != "0" * 16
            states = ",".join(value for name, value in arrived if name == "tracestate")
            members = dict(member.strip().split("=", 1) for member in states.split(",") if member.strip())
            found.append((trace_id, parent_id, members))
        return found[0] if times == 1 else found

    return make


def test_both_traceparent_and_tracestate_missing(call):
    trace_id, _, members = call()
    assert trace_id != TRACE_ID
    # Ours: the threshold that a trace which begins here was sampled with.
    assert set(members) <= {"ot"}


def test_traceparent_included_tracestate_missing(call):
    trace_id, parent_id, _ = call(("traceparent", GOOD))
    assert trace_id == TRACE_ID
    assert parent_id != PARENT_ID


def test_traceparent_duplicated(call):
    other = GOOD.replace("1234567890123456789012-", "1234567890123456789013-")
    trace_id, _, _ = call(("traceparent", GOOD), ("traceparent", other))
    assert trace_id not in (TRACE_ID, other[3:35])


@pytest.mark.parametrize("name", ["trace-parent", "trace.parent"])
def test_traceparent_header_name(call, name):
    assert call((name, GOOD))[0] != TRACE_ID


@pytest.mark.parametrize("name", ["TraceParent", "TrAcEpArEnT", "TRACEPARENT"])
def test_traceparent_header_name_valid_casing(call, name):
    assert call((name, GOOD))[0] == TRACE_ID


@pytest.mark.parametrize("value", [f"00-{TRACE_ID}-{PARENT_ID}-01.", f"00-{TRACE_ID}-{PARENT_ID}-01-what-the-future"])
def test_traceparent_version_0x00(call, value):
    assert call(("traceparent", value))[0] != TRACE_ID


@pytest.mark.parametrize("value", [f"cc-{TRACE_ID}-{PARENT_ID}-01", f"cc-{TRACE_ID}-{PARENT_ID}-01-what-the-future"])
def test_traceparent_version_0xcc(call, value):
    assert call(("traceparent", value))[0] == TRACE_ID


def test_traceparent_version_0xcc_with_junk(call):
    assert call(("traceparent", f"cc-{TRACE_ID}-{PARENT_ID}-01.what-the-future"))[0] != TRACE_ID


def test_traceparent_version_0xff(call):
    assert call(("traceparent", f"ff-{TRACE_ID}-{PARENT_ID}-01"))[0] != TRACE_ID


@pytest.mark.parametrize("version", [".0", "0.", "0", "000", "KK", "A0"])
def test_traceparent_version_malformed(call, version):
    assert call(("traceparent", f"{version}-{TRACE_ID}-{PARENT_ID}-01"))[0] != TRACE_ID


@pytest.mark.parametrize(
    "trace_id",
    ["0" * 32, ".2345678901234567890123456789012", "1234567890123456789012345678901", TRACE_ID + "3", "A" * 32],
)
def test_traceparent_trace_id_malformed(call, trace_id):
    assert call(("traceparent", f"00-{trace_id}-{PARENT_ID}-01"))[0] != trace_id


@pytest.mark.parametrize("parent_id", ["0" * 16, ".234567890123456", "123456789012345", "12345678901234567", "B" * 16])
def test_traceparent_parent_id_malformed(call, parent_id):
    assert call(("traceparent", f"00-{TRACE_ID}-{parent_id}-01"))[0] != TRACE_ID


@pytest.mark.parametrize("flags", [".0", "0.", "0", "001", "0G"])
def test_traceparent_trace_flags_malformed(call, flags):
    assert call(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flags}"))[0] != TRACE_ID


@pytest.mark.parametrize("value", [f" {GOOD}", f"\t{GOOD}", f"{GOOD} ", f"{GOOD}\t", f"\t {GOOD} \t"])
def test_traceparent_ows_handling(call, value):
    assert call(("traceparent", value))[0] == TRACE_ID


def test_tracestate_included_traceparent_missing(call):
    assert "foo" not in call(("tracestate", "foo=1"))[2]


def test_tracestate_included_traceparent_included(call):
    trace_id, _, members = call(("traceparent", GOOD), ("tracestate", "foo=1,bar=2"))
    assert trace_id == TRACE_ID
    assert list(members.items()) == [("foo", "1"), ("bar", "2")]


@pytest.mark.parametrize("name", ["trace-state", "trace.state"])
def test_tracestate_header_name(call, name):
    assert not call(("traceparent", GOOD), (name, "foo=1"))[2]


@pytest.mark.parametrize("name", ["TraceState", "TrAcEsTaTe", "TRACESTATE"])
def test_tracestate_header_name_valid_casing(call, name):
    assert call(("traceparent", GOOD), (name, "foo=1"))[2] == {"foo": "1"}


@pytest.mark.parametrize("headers", [("",), ("foo=1", ""), ("", "foo=1")])
def test_tracestate_empty_header(call, headers):
    trace_id, _, members = call(("traceparent", GOOD), *(("tracestate", value) for value in headers))
    assert trace_id == TRACE_ID
    assert members == ({"foo": "1"} if "foo=1" in headers else {})


def test_tracestate_multiple_headers_different_keys(call):
    members = call(
        ("traceparent", GOOD), ("tracestate", "foo=1,"), ("tracestate", "bar=2"), ("tracestate", "rojo=1,congo=2,baz=3")
    )[2]
    assert members == {"foo": "1", "bar": "2", "rojo": "1", "congo": "2", "baz": "3"}


def test_tracestate_duplicated_keys(call):
    members = call(("traceparent", GOOD), ("tracestate", "foo=1,foo=2"))[2]
    assert members == {"foo": "1"}


def test_tracestate_all_allowed_characters(call):
    key = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
    value = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
    value = value.replace(" ", "", 1)
    members = call(("traceparent", GOOD), ("tracestate", f"{key}={value},{key}@a-z0-9_-*/={value}"))[2]
    assert members == {key: value, f"{key}@a-z0-9_-*/": value}


@pytest.mark.parametrize(
    "value", ["foo=1 \t , \t bar=2, \t baz=3", "foo=1\t \t,\t \tbar=2,\t \tbaz=3", " foo=1,bar=2,baz=3 "]
)
def test_tracestate_ows_handling(call, value):
    assert call(("traceparent", GOOD), ("tracestate", value))[2] == {"foo": "1", "bar": "2", "baz": "3"}


@pytest.mark.parametrize("value", ["foo =1", "FOO=1", "foo.bar=1", "foo@=1,bar=2", "@foo=1,bar=2", "foo@@bar=1,bar=2"])
def test_tracestate_key_illegal_characters(call, value):
    assert not call(("traceparent", GOOD), ("tracestate", value))[2]


def test_tracestate_key_length_limit(call):
    assert call(("traceparent", GOOD), ("tracestate", "foo=1," + "z" * 256 + "=1"))[2]
    assert call(("traceparent", GOOD), ("tracestate", "t" * 241 + "@" + "v" * 14 + "=1"))[2]
    for key in ("z" * 257, "t" * 242 + "@v", "t@" + "v" * 15):
        assert not call(("traceparent", GOOD), ("tracestate", f"{key}=1"))[2]


def test_tracestate_member_count_limit(call):
    exactly = ",".join(f"bar{number:02d}=1" for number in range(32))
    assert len(call(("traceparent", GOOD), ("tracestate", exactly))[2]) == 32
    assert not call(("traceparent", GOOD), ("tracestate", exactly + ",one=more"))[2]


@pytest.mark.parametrize("value", ["foo=bar=baz", "foo=,bar=3"])
def test_tracestate_value_illegal_characters(call, value):
    assert not call(("traceparent", GOOD), ("tracestate", value))[2]


def test_multiple_requests_with_valid_traceparent(call):
    found = call(("traceparent", GOOD), times=3)
    assert {trace_id for trace_id, _, _ in found} == {TRACE_ID}
    assert len({parent_id for _, parent_id, _ in found}) == 3


def test_multiple_requests_without_traceparent_share_one_new_trace(call):
    found = call(times=3)
    assert len({trace_id for trace_id, _, _ in found}) == 1
    assert found[0][0] != TRACE_ID
