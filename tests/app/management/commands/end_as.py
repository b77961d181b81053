"""Ends as its argument says, after a command inside it."""

import sys

from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

ENDS = {
    "error": lambda text: CommandError(f"nothing is known of {text}"),
    "fault": lambda text: ValueError(f"bad {text}"),
    "exit": lambda text: SystemExit(3),
    "exit_text": lambda text: SystemExit("that is all"),
    "exit_well": lambda text: SystemExit(0),
    "exit_none": lambda text: SystemExit(),
    "interrupt": lambda text: KeyboardInterrupt(),
}


class Command(BaseCommand):
    requires_system_checks = ()

    def add_arguments(self, parser):
        parser.add_argument("end")
        parser.add_argument("--text", default="")
        parser.add_argument("--count-users", action="store_true")

    def handle(self, *args, end, text, count_users, **options):
        if count_users:
            self.stdout.write(str(User.objects.count()))
        if end == "nested":
            call_command("end_as", "well")
        elif end == "nested_error":
            try:
                call_command("end_as", "error")
            except CommandError:
                self.stderr.write("that did not work")
        elif end != "well":
            raise ENDS[end](text)
        sys.stdout.flush()
