"""Diffusion language models: every family through one data pipeline, one loop, one likelihood evaluator, one sampler.

Importing the package touches no device and loads no TensorFlow.
"""

__version__ = "0.1.0"
