"""Views that do one thing each."""

import asyncio
import io
import json
import time

from django.core.exceptions import PermissionDenied
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

import django_otel
from tests.app.models import Item


def hello(request, **kwargs):
    return HttpResponse("hello")


def json_view(request):
    return JsonResponse({"trace_id": django_otel.current_trace_id()})


def order(request, pk):
    with django_otel.span("order.load", pk=pk):
        return HttpResponse(f"order {pk}")


def article(request, year, page=None):
    return HttpResponse(year)


def boom(request):
    raise ValueError("boom with password=hunter2")


def forbidden(request):
    raise PermissionDenied


def missing(request):
    raise Http404


def system_exit(request):
    raise SystemExit(3)


def chunks(count=3, delay_s=0.05):
    for number in range(count):
        with django_otel.span(f"chunk {number}"):
            time.sleep(delay_s)
        yield f"chunk {number}\n".encode()


def stream(request):
    return StreamingHttpResponse(chunks())


def stream_boom(request):
    def produce():
        yield b"first"
        raise ValueError("in the middle")

    return StreamingHttpResponse(produce())


def file(request):
    return FileResponse(io.BytesIO(b"x" * 10_000), filename="x.bin")


async def async_hello(request):
    with django_otel.span("async work"):
        await asyncio.sleep(0)
    return HttpResponse("hello")


async def async_boom(request):
    raise ValueError("async boom")


#: Paths that `async_slow` has begun to serve in this process.
WAITING = []


async def async_slow(request):
    WAITING.append(request.path)
    await asyncio.sleep(30)
    return HttpResponse("late")


async def async_stream(request):
    async def produce():
        for number in range(3):
            with django_otel.span(f"chunk {number}"):
                await asyncio.sleep(0.05)
            yield f"chunk {number}\n".encode()

    return StreamingHttpResponse(produce())


def queries(request):
    return JsonResponse({"items": Item.objects.count() + len(Item.objects.filter(name="secret-name"))})


@csrf_exempt
def echo(request):
    return JsonResponse({"length": len(request.body), "headers": dict(request.headers)})


def call_out(request):
    import requests

    answer = requests.get(request.GET["url"], timeout=5)
    return HttpResponse(answer.content, content_type="application/json")


@csrf_exempt
def conformance(request):
    """The service under test of W3C's trace-context harness: calls each URL with its arguments."""
    import requests

    for action in json.loads(request.body or b"[]"):
        requests.post(action["url"], json=action["arguments"], timeout=5)
    return HttpResponse("ok")


def sdk_count(request):
    from opentelemetry import metrics

    metrics.get_meter("another library").create_counter("sdk.counted").add(1, {"a": "b"})
    return HttpResponse("counted")


def own_histogram(request):
    import django_otel

    django_otel.histogram("shop.wait", "s", bounds=(1.0, 10.0)).record(float(request.GET["s"]))
    return HttpResponse(django_otel.current_trace_id() or "")


def cache_read(request):
    from django.core.cache import cache

    return HttpResponse(str(cache.get("never stored")))
