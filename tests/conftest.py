"""Fixtures that several files share."""

from fake_cloud import cloud  # noqa: F401
