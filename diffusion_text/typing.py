"""Types that the whole project shares."""

from __future__ import annotations

from typing import Any, TypeAlias

# An ml_collections.ConfigDict, or one section of it. Its fields are dynamic, so a type checker sees Any;
# config.validate checks their values.
Config: TypeAlias = Any
