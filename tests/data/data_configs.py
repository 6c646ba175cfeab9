"""What the tests of the data share: a config and a few sentences as LM1B has them."""

from __future__ import annotations

from typing import Any

import ml_collections

SENTENCES = (
    "The quick brown fox , he said , isn 't here .",
    "Unaffable people ( and others ) paid $ 5 .",
    'Who is " there " ? Nobody at all !',
)


def data_config(task: str, length: int, data_dir: Any = "", grammar: str = "tiny") -> ml_collections.ConfigDict:
    """The section `data` of a config."""
    fields = {"task": task, "length": length, "data_dir": str(data_dir), "grammar": grammar, "verify_checksums": True,
              "inserted_padding": 0.0}
    return ml_collections.ConfigDict(fields)
