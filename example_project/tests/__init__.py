"""The shop's own tests: `python -m pytest example_project/tests --ds=example_project.settings`."""
