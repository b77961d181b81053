"""`manage.py demo`: the shop and its payment gateway under load, in one command."""

from __future__ import annotations

import signal
from argparse import ArgumentParser, ArgumentTypeError
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from example_project.demo.processes import ProcessFailedError, StopFlag, free_port, is_free
from example_project.demo.run import Demo, Options, StoppedEarlyError

DEFAULT_PORT = 8000
_HIGHEST_RATE = 500.0


class Command(BaseCommand):
    help = (
        "Prepares a database of its own, starts the shop under gunicorn with two workers and the payment gateway as a "
        "second service, and sends visitors. Everything listens on 127.0.0.1 and stops with Ctrl-C."
    )
    # The servers check for themselves; checking here could touch the database of the checkout.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--seconds", type=positive_number, help="end after so many seconds, with a table")
        parser.add_argument("--port", type=port_number, help=f"of the shop (default {DEFAULT_PORT}, or a free one)")
        parser.add_argument(
            "--services", action="store_true", help="run on PostgreSQL and Valkey, which are started too"
        )
        parser.add_argument("--rate", type=rate, default=20.0, help="requests a second at most (default %(default)g)")

    def handle(
        self, *args: Any, seconds: float | None, port: int | None, services: bool, rate: float, **options: Any
    ) -> None:
        stop = StopFlag()

        def note(signal_number: int, frame: FrameType | None) -> None:
            stop.set()

        # Before the first child exists, so that none is ever left behind.
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signal_number, note)
        demo = Demo(Options(self._choose_port(port), seconds, rate, services), stop, self._say)
        try:
            demo.run()
        except StoppedEarlyError:
            raise CommandError("Stopped before the shop was open.", returncode=130) from None
        except ProcessFailedError as failure:
            raise CommandError(str(failure)) from None
        finally:
            demo.close()

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def _choose_port(self, port: int | None) -> int:
        if port is not None:
            if not is_free(port):
                raise CommandError(f"Port {port} of 127.0.0.1 is in use; choose another one with --port.")
            return port
        return DEFAULT_PORT if is_free(DEFAULT_PORT) else free_port()


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ArgumentTypeError("expected a number of seconds greater than zero")
    return number


def rate(text: str) -> float:
    number = float(text)
    if not 0 < number <= _HIGHEST_RATE:
        raise ArgumentTypeError(f"expected a number from above 0 to {_HIGHEST_RATE:g} requests a second")
    return number


def port_number(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise ArgumentTypeError("expected a port from 1 to 65535")
    return number
