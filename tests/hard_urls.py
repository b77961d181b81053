"""Views that are hard on telemetry: slow, concurrent, streamed, broken, full of secrets."""

import asyncio
import logging
import threading
import time

from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from opentelemetry import baggage, trace

import django_otel

logger = logging.getLogger("shop.hard")


def ids(request, number):
    """The trace id at the begin and after a wait in which other requests run, and a query's."""
    before = django_otel.current_trace_id()
    with django_otel.span("inner", number=number):
        time.sleep(0.02)
        inner = django_otel.current_trace_id()
    time.sleep(0.02)
    return JsonResponse({"ids": [before, inner, django_otel.current_trace_id()], "thread": threading.get_ident()})


MEETING = []


def meet(request, number):
    """Answer when so many requests are here at once."""
    MEETING.append(request)
    end_s = time.monotonic() + 60
    while len(MEETING) < number and time.monotonic() < end_s:
        time.sleep(0.01)
    return HttpResponse(status=200 if len(MEETING) >= number else 504)


def stream(request, number):
    """Chunks that tell the trace they are produced in, slowly."""

    def produce():
        for _ in range(number):
            time.sleep(0.01)
            with django_otel.span("chunk"):
                yield f"{django_otel.current_trace_id()}\n".encode()

    return StreamingHttpResponse(produce())


async def async_stream(request, number):
    async def produce():
        for _ in range(number):
            await asyncio.sleep(0.01)
            yield f"{django_otel.current_trace_id()}\n".encode()

    return StreamingHttpResponse(produce())


async def async_ids(request, number):
    before = django_otel.current_trace_id()
    with django_otel.span("inner", number=number):
        await asyncio.sleep(0.02)
        inner = django_otel.current_trace_id()
    await asyncio.sleep(0.02)
    return JsonResponse({"ids": [before, inner, django_otel.current_trace_id()]})


async def async_slow(request):
    await asyncio.sleep(30)
    return HttpResponse("late")


def big(request):
    """More than the socket buffers take, so that a client that goes away is noticed."""

    def produce():
        for _ in range(2000):
            time.sleep(0.001)
            yield b"x" * 65536

    return StreamingHttpResponse(produce())


def fine(request, **kwargs):
    return HttpResponse("fine")


def no_content(request):
    return HttpResponse(status=204)


@csrf_exempt
def leak(request, token):
    """Puts what the client sent into every place that telemetry is made of."""
    from django.db import connection

    secret = request.GET["password"]
    header = request.headers["Authorization"].split()[1]
    span = trace.get_current_span()
    span.set_attribute("user.password", secret)
    span.set_attribute("note", f"login with password={secret} and Bearer {header}")
    span.add_event("tried", {"api_key": secret, "url": f"https://ann:{secret}@shop.example/?token={secret}"})
    django_otel.set_attributes(session_token=secret)
    django_otel.event("signed in", secret=secret)
    logger.error("password=%s for ann, authorization: Bearer %s", secret, header, extra={"token": secret})
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT '{secret}', '{header}' -- {secret}")
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT broken('{secret}', '{header}")
    except Exception:
        logger.exception("a query failed")
    try:
        with django_otel.span("payment", card_password=secret):
            raise ValueError(f"refused: api_key={secret}, cookie: sessionid={header}")
    except ValueError:
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"refused: api_key={secret}"))
    django_otel.counter("leaks").add(1, {"token": secret})
    seen = baggage.get_baggage("password")
    span.set_attribute("seen.password", seen or "")
    import requests

    try:
        requests.get(f"http://ann:{secret}@127.0.0.1:9/?password={secret}&access_token={header}", timeout=1)
    except Exception:
        logger.exception("the call failed")
    raise RuntimeError(f"password={secret} token={header}")


def surrogates(request):
    """What JSON from a client may hold, and no encoder takes."""
    bad = "\ud800 lone"
    span = trace.get_current_span()
    span.set_attribute("raw", bad)
    span.set_attribute("null", "a\x00b")
    span.set_attribute("list", [bad, "x"])
    span.add_event(bad, {"k": bad})
    span.set_status(trace.Status(trace.StatusCode.ERROR, bad))
    span.set_attribute("huge", 2**70)
    django_otel.set_attributes(clean=bad, big=2**70)
    logger.warning("body %s", bad, extra={"more": bad, "large": 2**70})
    django_otel.counter("surrogates").add(1, {"k": bad})
    return HttpResponse("fine")


def flush(request):
    return JsonResponse({"done": django_otel.flush(float(request.GET.get("s", 0.5)))})


def watch_slowly(request):
    """An instrument of the SDK whose callback waits, as one that asks a database does."""
    from opentelemetry import metrics
    from opentelemetry.metrics import Observation

    def callback(options):
        time.sleep(0.5)
        return [Observation(1)]

    metrics.get_meter("slow").create_observable_gauge("slow.gauge", [callback])
    return HttpResponse("fine")


urlpatterns = [
    path("flush/", flush),
    path("watch-slowly/", watch_slowly),
    path("", include("django_otel.urls")),
    path("ids/<int:number>/", ids),
    path("meet/<int:number>/", meet),
    path("stream/<int:number>/", stream),
    path("async-stream/<int:number>/", async_stream),
    path("async-ids/<int:number>/", async_ids),
    path("async-slow/", async_slow),
    path("big/", big),
    path("fine/", fine),
    path("fine/<str:token>/", fine),
    path("no-content/", no_content),
    path("leak/<str:token>/", leak),
    path("surrogates/", surrogates),
]
