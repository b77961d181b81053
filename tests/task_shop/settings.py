"""The test project with a broker."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

ROOT_URLCONF = "tests.task_shop.urls"
# Several tasks write at a time: SQLite refuses at once where a transaction that has read wants to write as well.
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 60}
