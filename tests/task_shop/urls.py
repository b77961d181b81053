import datetime

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.utils import timezone

from tests.task_shop.celery_app import send_invoice


def place(request: HttpRequest, number: int) -> HttpResponse:
    send_invoice.delay(number, secret="hunter2")
    return HttpResponse(status=201)


def enqueue(request: HttpRequest, number: int) -> HttpResponse:
    from tests.task_shop.jobs import fail, invoice

    invoice.enqueue(number, secret="hunter2")
    fail.enqueue(secret="hunter2")
    return HttpResponse(status=201)


def undo(request: HttpRequest) -> HttpResponse:
    """Enqueue tasks of which some are rolled back."""
    from tests.task_shop.jobs import asynchronous, nap, outer

    for is_undone in (True, False):
        with transaction.atomic():
            nap.enqueue(0)
            with transaction.atomic():
                nap.enqueue(0)
                transaction.set_rollback(True)
            transaction.set_rollback(is_undone)
            transaction.on_commit(lambda: asynchronous.enqueue())
    outer.enqueue()
    nap.using(run_after=timezone.now() + datetime.timedelta(seconds=2)).enqueue(0)
    return HttpResponse(status=201)


def enqueue_rq(request: HttpRequest, number: int) -> HttpResponse:
    from rq import Queue, Retry

    from tests.task_shop.rq_jobs import die, fail, queue, send_invoice

    queue.enqueue(send_invoice, number, secret="hunter2")
    queue.enqueue(fail, "hunter2", retry=Retry(max=1))
    queue.enqueue(die, "hunter2")
    queue.enqueue("tests.task_shop.rq_jobs.gone", "hunter2")
    queue.enqueue_many([Queue.prepare_data(send_invoice, (number + index,)) for index in (1, 2)])
    return HttpResponse(status=201)


def load(request: HttpRequest, number: int, kills: int) -> HttpResponse:
    """Enqueue so many tasks: one in ten fails, and so many kill the worker that runs them."""
    from tests.task_shop.jobs import die, fail, nap

    every = number // kills
    with transaction.atomic():
        for index in range(number):
            if index % every == every // 2:
                die.enqueue()
            elif index % 10 == 0:
                fail.enqueue(secret="hunter2")
            else:
                nap.enqueue(0.001)
    return HttpResponse(status=201)


urlpatterns = [
    path("", include("django_otel.urls")),
    path("orders/<int:number>/", place),
    path("jobs/<int:number>/", enqueue),
    path("undo/", undo),
    path("rq/<int:number>/", enqueue_rq),
    path("load/<int:number>/<int:kills>/", load),
]
