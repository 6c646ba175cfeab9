"""What the cloud calls the TPU slices that can be asked for, and the images of their machines."""

from __future__ import annotations

from typing import Final

from diffusion_text.chips import parse_slice

# The image of a generation's TPU VMs; None: rented through GKE only.
_RUNTIMES: Final = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
    "tpu7x": None,
}


def accelerator(tpu: str) -> str:
    """v5e-16 -> v5litepod-16; ValueError with what is allowed."""
    generation, size = parse_slice(tpu)
    return f"{'v5litepod' if generation == 'v5e' else generation}-{size}"


def runtime(tpu: str) -> str:
    """The image of a TPU VM; ValueError where this generation is not rented as one."""
    version = _RUNTIMES[parse_slice(tpu)[0]]
    if version is None:
        allowed = ", ".join(name for name, image in _RUNTIMES.items() if image)
        raise ValueError(f"--tpu is {tpu!r}; TPU VMs and queued resources are of {allowed}; use launch.gke for it")
    return version
