"""A stand-in for a task worker: counts some jobs, and with `--wait` stays until it reads a line."""

import sys

from django.core.management.base import BaseCommand

import django_otel

jobs_done = django_otel.counter("jobs.done", unit="{job}")
jobs_running = django_otel.up_down_counter("jobs.running")


class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("number", type=int)
        parser.add_argument("--wait", action="store_true")

    def handle(self, *args, number, wait, **options):
        jobs_running.add(1)
        jobs_done.add(number)
        self.stdout.write("counted")
        self.stdout.flush()
        if wait:
            sys.stdin.readline()
