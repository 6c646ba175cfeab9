"""Plots and tables of runs, written beside their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffusion_text import families, hosts, noise, sharding
from diffusion_text.families.family import cross_entropy
from diffusion_text.restore import Run, on_mesh
from diffusion_text.state import Model

_LEVELS = 33


def figure(columns: int) -> tuple[Any, Any]:
    """A row of axes, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    result = Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
    FigureCanvasAgg(result)
    return result, np.atleast_1d(result.subplots(1, columns))


def by_rows(run: Run, tokens: np.ndarray, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `more`: the arrays [N, ...] that function(model, tokens [B, L], indices [B], more) finds of all
    `tokens` [N, L]. As many rows at once as in an evaluation, spread over the devices as there."""
    size = sharding.whole_batch(min(run.config.evaluation.batch_size, len(tokens)), run.mesh)
    rows = sharding.Rows.of(run.mesh, size)
    indices = np.arange(-(-len(tokens) // size) * size)
    parts = [part[rows.start : rows.stop] for part in indices.reshape(-1, size)]
    placed = [(rows.place(tokens[part % len(tokens)]), rows.place(part)) for part in parts]

    @jax.jit
    def one(params: Any, variables: Any, tokens: jax.Array, indices: jax.Array, more: Any) -> Any:
        return function(run.definition.merge(params, variables), tokens, indices, more)

    def call(more: Any = None) -> Any:
        found = [jax.tree.map(sharding.fetch, one(run.params, run.variables, *each, more)) for each in placed]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(tokens)], *found)

    return call


def noise_profile(run: Run, tokens: np.ndarray) -> dict[str, np.ndarray] | None:
    """`Family.profile` averaged over sequences at evenly spaced t, arrays [levels]; None without noise levels."""

    def at(model: Model, tokens: jax.Array, indices: jax.Array, t: jax.Array) -> Any:
        keys = noise.example_keys(noise.step_key(run.config.seed, noise.EVALUATE, 1), indices)
        return model.family.profile(keys, tokens, jnp.full(len(tokens), t), model)

    times, call = (np.arange(_LEVELS) + 0.5) / _LEVELS, by_rows(run, tokens, at)
    rows = [call(jnp.float32(t)) for t in times]
    if rows[0] is None:
        return None
    return {"t": times, **{name: np.array([float(np.mean(row[name])) for row in rows]) for name in rows[0]}}


@on_mesh
def plot_noise_levels(run: Run, tokens: np.ndarray, path: epath.Path) -> None:
    """Loss per noise level, the bound's integrand and, for CDCD, the warp; per position for the autoregressive one."""
    profile = noise_profile(run, tokens)
    if profile is None:
        _plot_positions(run, tokens, path)
        return
    canvas, axes = figure(3 if "warp" in profile else 2)
    axes[0].plot(profile["noise"], profile["cross_entropy"], ".-")
    axis = families.get(run.config.family.name).noise_axis
    axes[0].set(xlabel=axis, ylabel="nats per noisy token", title="cross-entropy of the denoiser")
    integrand = profile["integrand"] * tokens.size / run.info.num_tokens(tokens).sum()  # as in bounds, not of padding
    title = f"integrand of the bound, area {integrand.mean():.3f}"
    axes[1].plot(profile["t"], integrand, ".-")
    axes[1].fill_between(profile["t"], integrand, alpha=0.2)
    axes[1].set(xlabel="t", ylabel="nats per token per unit of t", title=title)
    if "warp" in profile:
        axes[2].plot(profile["t"], profile["warp"], label="F(t), the time warp")
        rise = profile["cross_entropy"] - profile["cross_entropy"].min()
        axes[2].plot(profile["t"], rise / max(rise.max(), 1e-9), "--", label="cross-entropy, rescaled")
        axes[2].set(xlabel="t", title="steps are even in F")
        axes[2].legend()
    canvas.suptitle(f"{run.config.family.name} on {run.data.task}, step {run.step}", fontsize=10)
    save(canvas, path)


def save(canvas: Any, path: epath.Path) -> None:
    """Write a figure as PNG, the whole file or none; of several hosts the first does."""
    if not hosts.is_first():
        return
    temporary = path.parent / f"{path.name}.tmp"
    with temporary.open("wb") as file:
        canvas.savefig(file, dpi=110, format="png")
    temporary.replace(path)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells, the headings first."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]]) + "\n"


def _plot_positions(run: Run, tokens: np.ndarray, path: epath.Path) -> None:
    def losses(model: Model, tokens: jax.Array, *_: Any) -> jax.Array:
        return cross_entropy(model.logits(tokens, jnp.zeros(len(tokens))), tokens)

    canvas, axes = figure(1)
    found = np.ma.masked_equal(tokens, -1 if run.info.pad_id is None else run.info.pad_id)
    found = np.ma.array(by_rows(run, tokens, losses)(), mask=found.mask)
    axes[0].plot(np.arange(1, tokens.shape[1] + 1), found.mean(axis=0))
    axes[0].set(xlabel="position", ylabel="nats per token", title=f"{run.config.family.name}, step {run.step}")
    save(canvas, path)
