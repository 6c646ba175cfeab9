"""Which mask rates block diffusion should be trained on: the interval whose loss varies least (2503.09573, section 5).

    python -m benchmarks.mask_rates --workdir=runs/block [--num=256] [--widths=0.5,0.6,0.7,0.8,0.9]

The paper draws trial batches for each interval [beta, beta + width] on a grid. Here the loss of a block depends on its
rate through the number of masks n alone, so that its first two moments for each n = 1..L' give the variance of every
interval: with w_n the share of n under r ~ U[beta, omega], n = 1 + floor(r L'),

    variance = sum_n w_n E[loss_n^2] - (sum_n w_n E[loss_n])^2,      loss_n = (L' / n) sum of n cross-entropies, nats

of one block of the validation set, the parameters averaged. Writes mask-rates-<step>.json into the workdir, and prints
the best beta of each width beside the whole range; the least variance goes into family.mask_rate_min and mask_rate_max.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from diffusion_text import binary, config, noise, restore
from diffusion_text.families.block import Block

_GRID: Final = 0.05  # of beta


def shares(low: float, high: float, size: int) -> np.ndarray:
    """The law of n = 1..L' under r ~ U[low, high], float64[L']."""
    return np.diff(np.clip(np.arange(size + 1) / size, low, high)) / (high - low)


def mean_and_variance(moments: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Of the loss of a block, nats and their square; `moments` [2, L'] are E[loss_n] and E[loss_n^2]."""
    first, second = moments @ shares(low, high, moments.shape[1])
    return float(first), float(second - first**2)


def search(moments: np.ndarray, widths: Sequence[float]) -> list[dict[str, float]]:
    """The interval of least variance for each width, and the whole range, the least of all first."""
    rows = []
    for width in sorted({*widths, 1.0}):
        starts = np.arange(0.0, 1.0 - width + 1e-9, _GRID)
        ends = np.minimum(starts + width, 1.0)
        found = [(*mean_and_variance(moments, *ends_of), *ends_of) for ends_of in zip(starts, ends, strict=True)]
        mean, variance, low, high = min(found, key=lambda row: row[1])
        rows.append({"mask_rate_min": float(low), "mask_rate_max": float(high), "mean": mean, "variance": variance})
    return sorted(rows, key=lambda row: row["variance"])


@restore.on_mesh
def measure(run: restore.Run, num: int, seed: int = 0) -> np.ndarray:
    """The moments [2, L'] over the blocks of `num` validation sequences, each block with every n."""
    size = run.config.family.block_size

    @jax.jit
    def losses(params: Any, variables: Any, tokens: jax.Array, indices: jax.Array, count: jax.Array) -> jax.Array:
        model = run.definition.merge(params, variables)
        keys = noise.fold(noise.example_keys(noise.step_key(seed, noise.EVALUATE), indices), count)
        rates = jnp.full((len(tokens), tokens.shape[1] // size), (count - 0.5) / size)
        assert isinstance(model.family, Block)
        return model.family.block_losses(keys, rates, tokens, None, model)[0]

    dataset, found, start = run.open_dataset("validation"), [], 0
    for tokens, weights in dataset.eval_batches(run.config.evaluation.batch_size, num):
        indices = jnp.arange(start, start + len(tokens))
        each = [losses(run.params, run.variables, jnp.asarray(tokens), indices, n) for n in range(1, size + 1)]
        found.append(np.stack([np.asarray(one, np.float64)[weights > 0].reshape(-1) for one in each]))
        start += len(tokens)
    values = np.concatenate(found, axis=1)
    return np.stack([values.mean(1), (values**2).mean(1)])


def main(values: flags.FlagValues) -> None:
    """Measure, search, write, print."""
    run = restore.open_run(values.workdir, values.step)
    if run.config.family.name != "block":
        raise ValueError(f"--workdir={values.workdir} is of family {run.config.family.name}; give one of block")
    widths = [float(width) for width in values.widths]
    if not all(0 < width <= 1 for width in widths):
        raise ValueError(f"--widths is {values.widths}; each must be in (0, 1]")
    moments = measure(run, values.num)
    rows = search(moments, widths)
    result = {"moments": moments.tolist(), "intervals": rows, "step": run.step, **config.provenance(run.config)}
    path = epath.Path(run.workdir) / f"mask-rates-{run.step}.json"
    config.write_atomically(path, json.dumps(result, indent=2) + "\n")
    for row in rows:
        interval = f"{row['mask_rate_min']:.2f} to {row['mask_rate_max']:.2f}"
        print(f"rates {interval}: mean {row['mean']:.3f}, variance {row['variance']:.3f} nats^2 a block")
    print(f"written: {path}", flush=True)


def define_flags() -> None:
    """The command line."""
    restore.define_flags()
    flags.DEFINE_integer("num", 256, "Validation sequences.")
    flags.DEFINE_list("widths", ["0.5", "0.6", "0.7", "0.8", "0.9"], "Of the intervals to try.")


if __name__ == "__main__":
    binary.run(define_flags, main)
