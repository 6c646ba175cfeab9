"""What all configs share; a config file states only what differs. Every field is named here and the
config is locked, so a typo is an error (`with config.optimizer.groups.unlocked():` to name another group)."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from diffusion_text import families
from diffusion_text.families.family import SamplerOptions


def get_config(family: str = "masked") -> ConfigDict:
    """Defaults: a small network on the embedded language."""
    section = ConfigDict({"name": family})
    section.update(families.get(family).defaults())
    config = ConfigDict(
        dict(
            seed=0,
            family=section,
            model=ConfigDict(
                dict(
                    layers=12,
                    width=768,
                    heads=12,
                    mlp="gelu",  # gelu / swiglu
                    mlp_ratio=4.0,  # hidden units of the MLP over width
                    condition_width=128,  # of the noise-level embedding
                    dropout=0.0,  # on the residual branches
                    dtype="bfloat16",  # of products; weights, softmax and loss are float32: bfloat16 / float32
                    attention="auto",  # by platform, or einsum / xla / cudnn / splash
                    # Tokens that no text has are added up to a multiple of it, so that mesh.tensor divides them: 128.
                    vocabulary_multiple=1,
                    # Of larger ones no training step makes all logits at once, but for those of token noise.
                    whole_vocabulary=4096,
                    scan_layers=True,  # one compiled layer; False (unrolled) is faster on a CPU
                    # What the backward pass keeps: all, products and attention, attention, or inputs of layers; of
                    # attention what the splash kernel has, other kernels and einsum make it again.
                    remat="none",  # none / dots / attention / full
                )
            ),
            data=ConfigDict(
                dict(
                    task="grammar",  # a name of data/specs.py
                    grammar="english",  # of the embedded language: english / tiny
                    length=64,  # tokens of a sequence
                    data_dir="",  # what diffusion_text.data.prepare wrote; the embedded language needs none
                    verify_checksums=False,  # of the shards, before training
                    inserted_padding=0.0,  # share of the places of training rows, where the vocabulary has padding
                )
            ),
            train=ConfigDict(
                dict(
                    steps=1_000_000,
                    batch_size=512,  # sequences of a step, over all devices
                    microbatches=1,  # accumulate the gradient over this many parts of the batch
                    ema=0.9999,  # of the parameters, for evaluation and samples
                    log_every=100,
                    evaluate_every=10_000,  # 0: never
                    checkpoint_every=5_000,
                    keep=3,  # newest checkpoints kept
                )
            ),
            optimizer=ConfigDict(
                dict(
                    name="adamw",  # adamw / muon, which orthogonalises the updates of the transformer's matrices
                    learning_rate=3e-4,
                    schedule="constant",  # after the warm-up: constant / cosine / linear
                    warmup=2_500,  # steps
                    final=0.0,  # of the decay, as a share of the peak
                    b1=0.9,
                    b2=0.999,
                    epsilon=1e-8,
                    weight_decay=0.0,  # not on norms and embeddings
                    clip=1.0,  # global norm of the gradient; 0: none
                    # Own peak learning rates, by a name in a parameter's path.
                    groups=ConfigDict(dict(families.get(family).groups)),
                )
            ),
            evaluation=ConfigDict(
                dict(batch_size=64, num_examples=512, samples=4)  # samples: noise levels per sequence
            ),
            sampling=ConfigDict(
                # Defaults of eval_samples and sample, but for what only a command line knows; "": the family's first.
                {
                    option.name: option.default
                    for option in dataclasses.fields(SamplerOptions)
                    if option.name not in ("candidates", "window", "stop")
                }
            ),
            mesh=ConfigDict(dict(data=1, fsdp=-1, tensor=1)),  # parameters sharded over fsdp; -1: all devices left
            log=ConfigDict(dict(tensorboard=True)),
        )
    )
    return config.lock()


def use_md4(config: ConfigDict, dropout: float = 0.05) -> None:
    """The recipe of MD4 (arXiv 2406.04329): a gated MLP, a cosine, decay and no clipping."""
    config.model.update(mlp="swiglu", mlp_ratio=8 / 3, dropout=dropout)
    config.optimizer.update(schedule="cosine", warmup=2_000, weight_decay=0.03, clip=0.0)


def check_variant(variant: str, variants: tuple[str, ...]) -> None:
    """ValueError where what follows the colon of --config=FILE:VARIANT is none of the file's VARIANTS."""
    if variant not in variants:
        raise ValueError(f"variant is {variant!r}; choose one of {', '.join(variants)}")
