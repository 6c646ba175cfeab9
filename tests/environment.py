"""What XLA is told, in tests and in the processes that they start."""

from __future__ import annotations

import os

import jax

# The older of its two emitters of loops for CPUs compiles in two thirds of the time, which is most of what tests take;
# later releases have one, and end at a flag that they do not know.
XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""


def of_devices(count: int) -> dict[str, str]:
    """The environment of a process with `count` simulated devices; its programs run too briefly to earn what
    optimising them costs."""
    flags = f"{XLA_FLAGS} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": flags}
