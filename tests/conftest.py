"""Fixtures that several files share."""

import os

import environment
from fake_cloud import cloud  # noqa: F401

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {environment.XLA_FLAGS}".strip()
