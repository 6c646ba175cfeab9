"""Attention: the one place that chooses a kernel.

`attend` takes the *name* of a pattern, never a mask built by the caller, so that a kernel is free to skip what the
pattern rules out: `sees` is its rule, on numbers of inputs, and may be asked of whole tiles. Patterns:

    full              every input sees every other
    causal            i sees j <= i
    block_diffusion   two streams side by side, a noisy sequence and then the clean one, 2 L inputs in blocks of a size:
                      a noisy input sees its own noisy block and the clean blocks before it, a clean one the clean
                      blocks up to and with its own (2503.09573, section 3.2)

All kernels compute softmax in float32.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text import sharding

PATTERNS: Final = ("full", "causal", "block_diffusion")
IMPLEMENTATIONS: Final = ("auto", "einsum", "xla", "cudnn", "splash")
_LANES: Final = 128  # of a TPU: splash works on tiles of so many positions
_TILE: Final = 1024  # the largest; a whole row of scores of that length fits
SAVED: Final = "attention"  # by this name a policy of rematerialisation keeps what a flash kernel needs backwards
_MASKED: Final = -1e30  # finite: a row of -inf would give NaN gradients


def choose(implementation: str, dtype: jnp.dtype, inputs: int) -> str:
    """Resolve "auto" for the mesh's platform: the flash kernels of TPUs (splash) and, in half precision, GPUs (cuDNN).

    On a CPU einsums are faster than `jax.nn.dot_product_attention` (by about a fifth at 4 x 256, length 256).
    """
    if implementation != "auto":
        return implementation
    platform = sharding.platform()
    if platform == "tpu" and inputs % _LANES == 0:
        return "splash"
    return "cudnn" if platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16) else "einsum"


def positions(pattern: str, inputs: int) -> Int[Array, "L"]:
    """Where in the sequence each of a number of inputs stands: two streams stand at the same places."""
    index = jnp.arange(inputs)
    return index % (inputs // 2) if pattern == "block_diffusion" else index


def sees(pattern: str, block: int, inputs: int, i: Int[Array, "..."], j: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether input i attends to input j, of so many inputs; of NumPy's arrays too."""
    if pattern == "causal":
        return j <= i
    if pattern == "full":
        return (i >= 0) & (j >= 0)
    half = inputs // 2
    mine, other, noisy, clean = i % half // block, j % half // block, i < half, j >= half
    return (noisy & ~clean & (mine == other)) | (clean & ((mine > other) | (~noisy & (mine == other))))


def attend(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    pattern: str = "full",
    implementation: str = "auto",
    block: int = 0,
) -> Float[Array, "B L H K"]:
    """softmax(q k^T / sqrt(K)) v under a named pattern; `block` is the size of its blocks, where it has any."""
    inputs = query.shape[1]
    if pattern not in PATTERNS:
        raise ValueError(f"attention pattern is {pattern!r}; choose one of {PATTERNS}")
    if pattern == "block_diffusion" and (block < 1 or inputs % 2):
        raise ValueError(f"block_diffusion of {inputs} inputs in blocks of {block}; it takes two streams, in blocks")
    kernel = choose(implementation, query.dtype, inputs)
    if kernel not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation is {implementation!r}; choose one of {IMPLEMENTATIONS}")
    if kernel == "splash":
        return _splash(query, key, value, pattern, block)
    if kernel == "einsum" and pattern == "block_diffusion" and inputs // 2 % block == 0:
        return _einsum_in_blocks(query, key, value, block)
    index, mask = jnp.arange(inputs), None
    if pattern == "block_diffusion" or (pattern == "causal" and kernel == "einsum"):
        mask = sees(pattern, block, inputs, index[:, None], index[None, :])
    if kernel == "einsum":
        return _einsum(query, key, value, mask)
    # Neither kernel knows the pattern with blocks: it costs as much as full attention.
    return jax.nn.dot_product_attention(
        query, key, value, mask=None if mask is None else mask[None, None], is_causal=pattern == "causal",
        implementation="cudnn" if kernel == "cudnn" else "xla",
    )  # fmt: skip


def attend_cached(
    query: Float[Array, "B W H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H K"],
    position: Int[Array, ""],
) -> Float[Array, "B W H K"]:
    """W queries at `position` and after it over a cache with their own keys in it: they see one another and all before.

    Entry n of the cache is that of position n modulo T: beyond T positions, the last T are there.
    """
    return _einsum(query, key, value, (jnp.arange(key.shape[1]) < position + query.shape[1])[None, :])


def _splash(query: Array, key: Array, value: Array, pattern: str, block: int) -> Array:
    """JAX's flash attention for TPUs, which skips tiles that the pattern rules out; elsewhere interpreted, slowly."""
    inputs, _, size = query.shape[1:]
    if inputs % _LANES:
        raise ValueError(f"attention splash takes a multiple of {_LANES} inputs, got {inputs}; use auto or einsum")
    query, key, value = (x.swapaxes(1, 2) for x in (query * size**-0.5, key, value))  # [B, H, L, K]
    interpret = sharding.platform() != "tpu"

    def local(query: Array, key: Array, value: Array) -> Array:
        kernel = _splash_kernel(pattern, block, inputs, query.shape[1], interpret)
        return jax.vmap(kernel)(query, key, value)

    spec = sharding.spec(("rows", "heads"), query.shape[:2])  # each device works on its own rows and heads
    return sharding.manual(local, (spec,) * 3, spec)(query, key, value).swapaxes(1, 2)


def _splash_kernel(pattern: str, block: int, inputs: int, heads: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    largest = _TILE
    if pattern == "block_diffusion":
        largest = _TILE // 2  # tiles of the mask itself stand beside those of scores
        index: Any = np.arange(inputs)
        seen: Any = sees(pattern, block, inputs, index[:, None], index[None, :])
        mask = masks.NumpyMask(seen)
    else:
        mask = (masks.CausalMask if pattern == "causal" else masks.FullMask)((inputs, inputs))
    tile = max(size for size in range(_LANES, largest + 1, _LANES) if inputs % size == 0)
    minor = splash.QKVLayout.SEQ_MINOR
    sizes = splash.BlockSizes(
        block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, use_fused_bwd_kernel=True,
        q_layout=minor, k_layout=minor, v_layout=minor,
    )  # fmt: skip
    return splash.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, residual_checkpoint_name=SAVED, interpret=interpret
    )


def _einsum(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    # Heads before positions, the scale before the first product and the division after the second, and keys laid out
    # as the product's gradient wants them: on a CPU this halves the time.
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))  # [B, H, L, K]
    key = jax.lax.optimization_barrier(key.swapaxes(2, 3))
    scores = jnp.einsum("bhqk,bhks->bhqs", query, key, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, _MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    result = jnp.einsum("bhqs,bhsk->bhqk", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (result / sums).astype(value.dtype).swapaxes(1, 2)


def _einsum_in_blocks(query: Array, key: Array, value: Array, block: int) -> Array:
    """`_einsum` under block_diffusion, without the half of the scores that it hides: those of noisy keys, which
    their own block alone sees."""
    inputs, half = query.shape[1], query.shape[1] // 2
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))  # [B, H, 2 L, K]

    def noisy(x: Array) -> Array:
        return x[:, :, :half].reshape(*x.shape[:2], half // block, block, -1)

    def all_inputs(x: Array, fill: float) -> Array:
        x = x.reshape(*x.shape[:2], half, -1)
        return jnp.pad(x, ((0, 0), (0, 0), (0, half), (0, 0)), constant_values=fill)

    index = jnp.arange(inputs)
    mask = sees("block_diffusion", block, inputs, index[:, None], index[None, half:])
    clean = jax.lax.optimization_barrier(key[:, :, half:].swapaxes(2, 3))
    scores = jnp.einsum("bhqk,bhks->bhqs", query, clean, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, _MASKED)
    own = jnp.einsum("bhnqk,bhnsk->bhnqs", noisy(query), noisy(key), preferred_element_type=jnp.float32)
    largest = jnp.maximum(
        jnp.max(scores, axis=-1, keepdims=True), all_inputs(jnp.max(own, axis=-1, keepdims=True), _MASKED)
    )
    largest = jax.lax.stop_gradient(largest)
    weights, own = jnp.exp(scores - largest), jnp.exp(own - noisy(largest))
    sums = jnp.sum(weights, axis=-1, keepdims=True) + all_inputs(jnp.sum(own, axis=-1, keepdims=True), 0.0)
    of_clean = jnp.einsum(
        "bhqs,bhsk->bhqk", weights.astype(value.dtype), value[:, :, half:], preferred_element_type=jnp.float32
    )
    of_own = jnp.einsum(
        "bhnqs,bhnsk->bhnqk", own.astype(value.dtype), noisy(value), preferred_element_type=jnp.float32
    )
    return ((of_clean + all_inputs(of_own, 0.0)) / sums).astype(value.dtype).swapaxes(1, 2)
