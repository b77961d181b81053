"""The `requests` session of the stock OTLP exporters, which trusts no receiver.

`requests` reads every answer to its end and unpacks it, at any size, and
status, and its timeout is that of each single read: one receiver that sends a
byte a second holds the exporting thread for hours, one that answers with
compressed zeros takes all memory. It also prefers REQUESTS_CA_BUNDLE to the
certificate of the OTLP variables.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django_otel.base import sdk_compat
from django_otel.export.answers import Answers

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import PoolManager

#: Of an answer of success, packed and unpacked; bodies of other answers are not read (bytes).
MAX_ANSWER_BYTES = 4 * 2**20
_CHUNK_BYTES = 65_536
#: Timeout where the exporter gives none, in seconds.
_DEFAULT_TIMEOUT_S = 10.0


class _Watchdog:
    """Ends the connection in use when the time for a request is over."""

    def __init__(self) -> None:
        self.connection: object = None
        self.has_bitten = False

    @contextlib.contextmanager
    def watch(self, timeout_s: float) -> Iterator[None]:
        self.connection = None
        self.has_bitten = False
        timer = threading.Timer(timeout_s, self._bite)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            # The interpreter is shutting down and gives out no new thread: the timeout of each read has to do.
            pass
        try:
            yield
        finally:
            timer.cancel()
            self.connection = None

    def _bite(self) -> None:
        self.has_bitten = True
        sock = getattr(self.connection, "sock", None)
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                # That of the plain socket: TLS's own would first change what the reading thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def build_session(answers: Answers, base: Any = None, *arguments: object) -> requests.Session:
    """A session for one exporting thread at a time; what receivers answer goes to `answers`.

    `base` is the class of sessions to build on, `arguments` are those of its constructor.
    """
    # The first request would import these, where no fork waits for it.
    import encodings.idna  # noqa: F401 (imported before a fork)
    import netrc  # noqa: F401 (imported before a fork)

    import requests

    watchdog = _Watchdog()

    base = requests.Session if base is None else base

    class Session(base):  # type: ignore[misc]
        def get_redirect_target(self, resp: object) -> None:
            """Find none: `requests` reads the whole answer before it says where a redirect leads, followed or not."""

        def request(self, method: object, url: object, *args: object, **options: object) -> requests.Response:
            given_s = options.get("timeout")
            timeout_s = float(given_s) if isinstance(given_s, (int, float)) else _DEFAULT_TIMEOUT_S
            if options.get("verify") is None and self.verify is not True:
                # Settings for OTLP take precedence over REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE.
                options["verify"] = self.verify
            options["stream"] = True
            options["allow_redirects"] = False
            answers.status = None
            deadline_s = time.monotonic() + timeout_s
            with watchdog.watch(timeout_s):
                try:
                    response: requests.Response = super().request(method, url, *args, **options)
                    body = _read_answer(response)
                except Exception as error:
                    if watchdog.has_bitten or time.monotonic() >= deadline_s:
                        raise requests.exceptions.ReadTimeout(f"no whole answer within {timeout_s:g} s") from error
                    if isinstance(error, requests.exceptions.RequestException):
                        raise
                    raise requests.exceptions.ConnectionError(f"the answer broke off: {error}") from error
            if watchdog.has_bitten and 200 <= response.status_code < 300:
                raise requests.exceptions.ReadTimeout(f"no whole answer within {timeout_s:g} s")
            _judge(response, body, answers)
            return response

    session = Session(*arguments)
    adapter = _build_adapter(watchdog)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def watch_session(exporter_class: Any, answers: Answers) -> object:
    """A subclass of a stock exporter with a session of its own, of which what receivers answer goes to `answers`."""

    def watch(response: requests.Response, **_: object) -> None:
        # Called before a redirect is followed and before the body is read.
        _judge(response, _read_answer(response), answers)

    class Watched(exporter_class):  # type: ignore[misc]
        def __init__(self, **arguments: object) -> None:
            super().__init__(**arguments)
            session = sdk_compat.find_http_session(self)
            if session is not None:
                session.hooks.setdefault("response", []).append(watch)

    Watched.__name__ = exporter_class.__name__
    return Watched


def _judge(response: requests.Response, body: bytes, answers: Answers) -> None:
    """Note the answer. Errors: `RequestException` for a redirect or 101, which stock exporters take for a success."""
    import requests

    status = answers.status = response.status_code
    if 200 <= status < 300:
        answers.read(body, is_json="json" in (response.headers.get("Content-Type") or ""))
    elif 300 <= status < 400:
        answers.refuse_redirect(status, _find_place(response.headers.get("Location") or ""))
        raise requests.exceptions.TooManyRedirects(f"the receiver answered {status}, and redirects are not followed")
    elif status < 200:
        raise requests.exceptions.RequestException(f"the receiver answered {status}, which is not a final answer")


def _find_place(url: str) -> str:
    """Scheme and host of an address, without what may be secret; "" where it has none."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.hostname:
            return f"{parts.scheme or 'http'}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"[:200]
    return ""


def _read_answer(response: requests.Response) -> bytes:
    """Read the body of an answer of success to its bound, no other, and give the response that body.

    One that breaks off is none: what its status says holds, and another try would send everything twice.
    """
    from urllib3.exceptions import HTTPError, TimeoutError  # noqa: A004 (of urllib3 here)

    body = b""
    is_whole = False
    try:
        if 200 <= response.status_code < 300:
            body, is_whole = _read_bounded(response)
    except TimeoutError:
        raise
    except (HTTPError, http.client.HTTPException, OSError, ValueError):
        pass
    finally:
        if not is_whole:
            response.raw.close()
        sdk_compat.set_body(response, body)
        response.close()
    return body


def _read_bounded(response: requests.Response) -> tuple[bytes, bool]:
    """The unpacked body, and whether the connection can be used again; b"" for one that is too large."""
    encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        return b"", False
    # 32 more than the largest window: zlib recognises gzip and its own container.
    unpack = None if encoding == "identity" else zlib.decompressobj(47)
    body = bytearray()
    packed = 0
    while True:
        chunk = response.raw.read(_CHUNK_BYTES, decode_content=False)
        if not chunk:
            return bytes(body), True
        packed += len(chunk)
        if unpack is not None:
            try:
                chunk = unpack.decompress(chunk, MAX_ANSWER_BYTES + 1 - len(body))
            except zlib.error:
                return b"", False
        body += chunk
        if max(packed, len(body)) > MAX_ANSWER_BYTES:
            return b"", False


class _HTTPResponse(http.client.HTTPResponse):
    """Skips every interim answer; the standard library skips 100 alone and takes another one for the answer.

    Source: RFC 9110, 15.2.
    """

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 102 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)


def _build_adapter(watchdog: _Watchdog) -> HTTPAdapter:
    """A transport adapter whose connections the watchdog knows while they are used."""
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    def watched(connection_class: Any) -> Any:
        class Connection(connection_class):  # type: ignore[misc]
            response_class = _HTTPResponse

            def connect(self) -> None:
                watchdog.connection = self
                super().connect()

            def putrequest(self, *args: object, **options: object) -> object:
                watchdog.connection = self
                return super().putrequest(*args, **options)

        return Connection

    class Plain(HTTPConnectionPool):
        ConnectionCls = watched(HTTPConnectionPool.ConnectionCls)

    class Encrypted(HTTPSConnectionPool):
        ConnectionCls = watched(HTTPSConnectionPool.ConnectionCls)

    pools = {"http": Plain, "https": Encrypted}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **options: Any) -> PoolManager:
            manager: PoolManager = super().proxy_manager_for(*args, **options)
            manager.pool_classes_by_scheme = pools
            return manager

    return Adapter()
