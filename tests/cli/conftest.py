"""Fixtures of the command-line tests."""

from cli_fixtures import model, run  # noqa: F401  # pytest finds fixtures by name
