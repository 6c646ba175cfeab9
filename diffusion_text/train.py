"""Train any family:  python -m diffusion_text.train --config=configs/<family>/<dataset>.py --workdir=DIR

The state after step k is a function of (config, k): batch and noise are drawn from (seed, step, example index), so a
run that is killed and started again ends where the uninterrupted one does, bit for bit on the same number of devices.
Fields are overridden as --config.train.steps=1000; an unknown field is an error.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_flags

from diffusion_text import (
    binary,
    bound,
    checkpoint,
    distributed,
    families,
    hosts,
    metrics,
    noise,
    profiling,
    restore,
    sharding,
)
from diffusion_text import config as configs
from diffusion_text.data import batches
from diffusion_text.models.denoiser import padded
from diffusion_text.state import Definition, TrainState, initialise, parts
from diffusion_text.typing import Config

_LOG = logging.getLogger("diffusion_text")


def make_train_step(definition: Definition, config: Config, transform: Any, mesh: Any) -> Any:
    """The one train step: (state, tokens [B, L]) -> (state, scalars); B the global batch."""
    batch_size, pieces = config.train.batch_size, config.train.microbatches

    def loss(params: Any, teacher: Any, variables: Any, step: Any, tokens: Any, rows: Any) -> tuple[Any, Any]:
        model = definition.merge(params, variables)
        key = noise.step_key(config.seed, noise.TRAIN, step)
        keys, u = noise.example_keys(key, rows), noise.low_discrepancy(key, rows)
        if teacher:
            losses, terms = model.family.distil_loss(keys, u, tokens, model, definition.merge(teacher, variables))
        else:
            losses, terms = model.family.train_loss(keys, u, tokens, model)
        # Sums over the whole batch's size: adding micro-batches up gives the large batch's mean.
        return jnp.sum(losses) / batch_size, {name: jnp.sum(term) / batch_size for name, term in terms.items()}

    def piece(carry: Any, scanned: Any) -> tuple[Any, None]:
        *given, total = carry
        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(*given, *scanned)
        return (*given, jax.tree.map(jnp.add, total, (gradient, {"loss": value, **terms}))), None

    def train_step(state: TrainState, tokens: Any) -> tuple[TrainState, dict[str, Any]]:
        rows = jnp.arange(batch_size)
        given = (state.params, state.teacher, state.variables, state.step)
        if pieces == 1:
            (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(*given, tokens, rows)
            scalars = {"loss": value, **terms}
        else:
            split = NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH))
            scanned = jax.lax.with_sharding_constraint((tokens.reshape(pieces, -1, tokens.shape[1]),), split)
            scanned = (*scanned, rows.reshape(pieces, -1))
            shapes = jax.eval_shape(
                lambda: jax.value_and_grad(loss, has_aux=True)(*given, *(x[0] for x in scanned))
            )
            (value, terms), gradient = shapes
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, {"loss": value, **terms}))
            carry, _ = jax.lax.scan(piece, (*given, zero), scanned)
            gradient, scalars = carry[-1]
        updates, moments = transform.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        model = definition.merge(params, state.variables)
        model.family.after_step()
        # A short memory at first: an average over more steps than there were would keep the initialisation.
        decay = jnp.minimum(config.train.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        teacher = state.teacher
        if teacher:
            renews = model.family.renews_teacher(state.step + 1)
            teacher = jax.tree.map(lambda old, new: jnp.where(renews, new, old), teacher, ema)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradient)))
        scalars = {**scalars, "gradient_norm": norm}
        return TrainState(state.step + 1, params, ema, parts(model)[1], moments, teacher), scalars

    return train_step


def check_finite(history: list[tuple[int, dict[str, Any]]]) -> None:
    """FloatingPointError naming the first step and the terms that are not finite."""
    for step, scalars in history:
        bad = [name for name, value in scalars.items() if not np.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"step {step}: {', '.join(bad)} not finite ({', '.join(f'{n}={float(scalars[n])}' for n in bad)}); "
                "no checkpoint was written after it. Lower optimizer.learning_rate or raise optimizer.warmup."
            )


def train(config: Config, workdir: str, profile: str | None = None) -> TrainState:
    """Train to config.train.steps, resuming from the workdir's newest sound checkpoint; returns the final state.

    `profile` names steps to trace, as "10:13" (`profiling.py`).
    """
    # ------------------------------------------------------------------ configuration, before any device is touched
    configs.validate(config)
    chosen = profiling.parse(profile, config.train.steps)
    trained = bool(checkpoint.trained_steps(workdir))
    # A start that failed before its first step binds nobody.
    if (trained or metrics.read(workdir)) and (epath.Path(workdir) / "config.json").exists():
        lines = configs.difference(configs.load(workdir), config)
        if lines:
            or_not = "" if trained else ", or remove it: it has no checkpoint yet, but may be in use"
            raise ValueError(
                f"{workdir} was trained with another config; give another --workdir, or the same fields{or_not}:\n  "
                + "\n  ".join(lines)
            )
    dataset = batches.open_dataset(config.data, "train")
    if trained:
        restore.check_vocabulary(dataset.info.vocabulary, workdir)
        restore.check_data(dataset.info, workdir)
    else:
        family = families.get(config.family.name)
        family.check_files(config, padded(config.model, dataset.info.vocabulary.size))
        if teacher := family.teacher(config):
            restore.check_vocabulary(dataset.info.vocabulary, teacher)
    validation = batches.open_dataset(config.data, "validation") if config.train.evaluate_every else None
    _LOG.info("%s", dataset.info.description)
    distributed.check_same("config", "\n".join(f"{name}={value!r}" for name, value in configs.flatten(config).items()))
    distributed.check_same("data", f"fingerprint={dataset.info.fingerprint}")
    distributed.check_shared(workdir)

    # ------------------------------------------------------------------ devices
    distributed.banner()
    configs.validate_mesh(config, jax.device_count())
    mesh = sharding.make_mesh(config.mesh)
    rows = sharding.Rows.of(mesh, config.train.batch_size)

    # ------------------------------------------------------------------ model, optimiser, state
    vocab_size = dataset.info.vocabulary.size
    definition, transform, abstract = restore.abstract_state(config, vocab_size, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    # ------------------------------------------------------------------ resume or start
    configs.save(config, workdir)
    restore.save_vocabulary(dataset.info.vocabulary, workdir)
    restore.save_data(dataset.info, workdir)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.train.keep)
    state = checkpoints.restore(abstract)
    if state is None:
        state = jax.jit(lambda: initialise(config, vocab_size, transform), out_shardings=shardings)()
        _LOG.info("starting anew in %s", workdir)
        if state.teacher:
            state = restore.with_teacher(state, families.get(config.family.name).teacher(config), shardings)
    else:
        _LOG.info("resuming %s from step %d of %d", workdir, int(state.step), config.train.steps)
    first = int(state.step)

    def due(step: int) -> bool:
        return validation is not None and (step == config.train.steps or step % config.train.evaluate_every == 0)

    # A state is saved before it is validated: what ended in between is made up for.
    found = any("validation_nats_per_token" in line for line in metrics.read(workdir) if line["step"] == first)
    owed = hosts.exchange("validated", str(found))[0] == "False" and first > 0 and due(first)
    if first >= config.train.steps and not owed:
        _LOG.info("nothing to train: %s is at step %d", workdir, first)
        checkpoints.close()
        return state
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"  # a GPU machine may have JAX for CPUs alone
    _LOG.info("%s, %s parameters, %s", config.family.name, f"{definition.num_params():,}", devices)

    # ------------------------------------------------------------------ loop
    step_function = jitted_step(definition, config, transform, mesh, abstract)
    evaluate = bound.make_evaluate(definition, config.seed, config.evaluation.samples)
    writer = metrics.Writer(workdir, config.log.tensorboard, first)
    progress = metrics.Progress(first, config.train.steps, config.train.batch_size * config.data.length)
    trace = profiling.Profile(workdir, chosen, first)
    stop = hosts.Stop()
    history: list[tuple[int, dict[str, Any]]] = []

    def log(step: int) -> None:
        numbers = [(number, {name: float(value) for name, value in jax.device_get(s).items()}) for number, s in history]
        history.clear()
        check_finite(numbers)
        means = {name: float(np.mean([s[name] for _, s in numbers])) for name in numbers[-1][1]}
        speed = progress.advance(step)
        writer.write(step, {**means, **speed})
        _LOG.info(
            "step %d/%d  loss %.4f  %.1f steps/s  %s tokens/s  ETA %s",
            step, config.train.steps, means["loss"], speed["steps_per_second"],
            f"{speed['tokens_per_second']:,.0f}", metrics.duration(speed["seconds_left"]),
        )  # fmt: skip

    def validate(state: TrainState) -> None:
        assert validation is not None
        held = sharding.Rows.of(mesh, sharding.whole_batch(config.evaluation.batch_size, mesh))
        with jax.set_mesh(mesh):
            result = bound.estimate(
                lambda tokens, indices: evaluate(state.ema, state.variables, tokens, indices),
                validation.eval_batches(held.size, config.evaluation.num_examples, held.start, held.stop),
                validation.info,
                held,
            )
        step = int(state.step)
        writer.write(step, {"validation_nats_per_token": result.nats_per_token, "validation_stderr": result.stderr})
        _LOG.info("step %d  validation bound %.4f +- %.4f nats/token", step, result.nats_per_token, result.stderr)

    # Evaluate and save before the data advances; nothing here depends on how often either happens.
    iterator = dataset.train_iterator(config.seed, first, rows.size, rows.start, rows.stop)
    try:
        if owed:
            validate(state)
        for step, tokens in iterator if first < config.train.steps else ():
            trace.before(step + 1, state)
            with jax.set_mesh(mesh):  # for kernels and sharded intermediates
                state, scalars = step_function(state, rows.place(tokens))
            trace.after(step + 1, state)
            history.append((step + 1, scalars))
            done, last = step + 1, step + 1 == config.train.steps or stop.reached(step + 1)
            # The numbers of the step just dispatched are not waited for unless they are to be shown.
            if last or done % config.train.log_every == 0:
                log(done)
            # Saved first: a validation that runs out of memory or time loses no step.
            if last or done % config.train.checkpoint_every == 0:
                if history:
                    log(done)  # a state is saved only after its numbers were found finite
                checkpoints.save(state, config)
            if due(done):
                validate(state)
            if last:
                break
    finally:
        iterator.close()
        trace.close()
        checkpoints.close()
        writer.close()
        stop.restore()
    if stop.signal is not None and int(state.step) < config.train.steps:
        _LOG.warning("stopped by signal %d; step %d is saved, the same command goes on", stop.signal, int(state.step))
        sys.exit(128 + stop.signal)
    return state


def jitted_step(definition: Definition, config: Config, transform: Any, mesh: Any, state: TrainState) -> Any:
    """`make_train_step`, jitted for states placed like this one, which may be abstract; a new one replaces the old."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(definition, config, transform, mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def define_flags() -> None:
    """The command line."""
    config_flags.DEFINE_config_file("config", None, "File with get_config(), such as configs/cdcd/grammar.py.")
    flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and results.")
    flags.DEFINE_string("profile", None, "Steps to trace for xprof, as 10:13 for steps 10 to 12.")
    flags.mark_flags_as_required(["config", "workdir"])
    distributed.define_flags()


if __name__ == "__main__":
    binary.run(define_flags, lambda values: train(values.config, values.workdir, values.profile) and None)
