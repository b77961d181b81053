"""What a project's own test suite does with the app; run by test_live_processes.py with `manage.py test`."""

from django.test import TransactionTestCase

from django_otel import runtime
from django_otel.live_sampling import follower
from django_otel.models import SamplingPolicy


class UsesTheApp(TransactionTestCase):
    def test_a_policy_is_saved_and_requests_are_measured(self):
        assert self.client.get("/hello/").status_code == 200
        SamplingPolicy(ratio=0.25).save()
        assert runtime.current().sampler.ratio_now() == 0.25
        follower.ensure_started()
        assert self.client.get("/hello/").status_code == 200
        assert follower.status()["following"] is False
