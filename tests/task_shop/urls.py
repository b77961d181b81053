from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from tests.task_shop.celery_app import send_invoice


def place(request: HttpRequest, number: int) -> HttpResponse:
    send_invoice.delay(number, secret="hunter2")
    return HttpResponse(status=201)


def enqueue(request: HttpRequest, number: int) -> HttpResponse:
    from tests.task_shop.jobs import fail, invoice

    invoice.enqueue(number, secret="hunter2")
    fail.enqueue(secret="hunter2")
    return HttpResponse(status=201)


urlpatterns = [
    path("", include("django_otel.urls")),
    path("orders/<int:number>/", place),
    path("jobs/<int:number>/", enqueue),
]
