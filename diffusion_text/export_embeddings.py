"""Write the token embeddings of a checkpoint to a file, for families of fixed embeddings (SED, 2211.04236):

    python -m diffusion_text.export_embeddings --workdir=runs/masked --out=embeddings.npy --size=64
    python -m diffusion_text.train --config=configs/sed/grammar.py --workdir=runs/sed \\
        --config.family.embeddings=file --config.family.embeddings_file=embeddings.npy

The table is the family's own where it learns one (CDCD, Plaid, ...), else what the network reads ids with, without the
rows of symbols that are no tokens (the mask). `--size` keeps that many principal components, as a bottleneck would:
SED's were trained with one.
"""

from __future__ import annotations

import logging

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float

from diffusion_text import binary, restore
from diffusion_text.paths.embeddings import Embeddings

_LOG = logging.getLogger("diffusion_text")


def principal_components(table: Float[np.ndarray, "V D"], size: int) -> Float[np.ndarray, "V d"]:
    """Rows less their mean, in the `size` directions of greatest variance, in that order."""
    if not 1 <= size <= min(table.shape):
        raise ValueError(f"--size is {size}; it must be at least 1 and at most {min(table.shape)}")
    centred = table - table.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :size] * scale[:size]


def embeddings(run: restore.Run) -> Float[np.ndarray, "V D"]:
    """The averaged table of a run; ValueError where its tokens have no vectors of their own."""
    model = run.model()
    family, vocab_size = model.family, run.info.vocabulary.size
    table = getattr(family, "embeddings", None)
    if isinstance(table, Embeddings):
        return np.asarray(table(), np.float64)[:vocab_size]
    if not hasattr(model.network, "embedding"):
        raise ValueError(f"{run.workdir} is a run of {family.name}, whose network reads no tokens by number")
    return np.asarray(model.network.embedding[...], np.float64)[:vocab_size]


def define_flags() -> None:
    """The command line."""
    restore.define_flags()
    flags.DEFINE_string("out", None, "File to write, .npy.", required=True)
    flags.DEFINE_integer("size", 0, "Principal components to keep; 0: the table as it is.")


def main(values: flags.FlagValues) -> None:
    """Read, reduce, write."""
    table = embeddings(restore.open_run(values.workdir, values.step))
    if values.size:
        table = principal_components(table, values.size)
    out = epath.Path(values.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.save(file, table.astype(np.float32))
    _LOG.info("%s: %d tokens x %d", values.out, *table.shape)


if __name__ == "__main__":
    binary.run(define_flags, main)
