from django.apps import AppConfig


class MovedConfig(AppConfig):
    name = "tests.moved"
    label = "moved"
