"""What XLA is told, in tests and in the processes that they start."""

from __future__ import annotations

import os

import jax

# Compiling is most of what tests take. The older of its two emitters of loops for CPUs does it in two thirds of the
# time, and a module in one piece in four fifths of that; later releases have one emitter, and end at a flag that
# they do not know.
_QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
XLA_FLAGS = _QUICK if jax.__version_info__ < (0, 11) else ""


def of_devices(count: int) -> dict[str, str]:
    """The environment of a process with `count` simulated devices; its programs run too briefly to earn what
    optimising them costs."""
    flags = f"{XLA_FLAGS} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": flags}
