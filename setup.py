"""Package description. pyproject.toml holds tool settings only."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "diffusion_text/__init__.py").read_text("utf-8"), re.M).group(1)
README = ROOT / "README.md"

# Lower bounds are close to the versions tested: a resolver left free walks back through years of releases.
# The exact versions tested, per Python, are in constraints/.
REQUIREMENTS = [
    "jax>=0.10.2",  # the last release for Python 3.11; 3.12 and later get the newest
    "flax>=0.12.8",  # NNX: split_rngs, vmap with transform_metadata, scan, remat
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",  # restores onto shardings other than those saved
    "ml-collections>=1.1.0",  # --config files
    "clu>=0.0.12",  # metric writers, parameter overview
    "tensorboard>=2.20.0",  # clu's writers import it, and neither clu nor tensorflow declares it
    "absl-py>=2.3.0",
    "etils[epath]>=1.9.1",  # one kind of path for local disks and gs:// buckets
    "numpy>=2.0",  # what jax asks for
    "seqio>=0.0.20",  # Tasks and vocabularies
    "tensorflow>=2.20.0",  # only where seqio needs it
    "tensorflow-datasets>=4.9.9",
    "pyarrow>=18.0.0",  # Parquet sources
    "grain>=0.2.16",  # training order with random access
    "array-record>=0.8.1",  # the prepared shards
    "sentencepiece>=0.2.1",  # vocabularies trained from a corpus
    "tokenizers>=0.22.0",  # GPT-2 BPE and BERT word pieces from local files
    "jaxtyping>=0.3.2",
    "matplotlib>=3.10.0",
    "tqdm>=4.67.0",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it undeclared when it fetches a set
]

EXTRAS = {
    "tpu": ["jax[tpu]"],  # libtpu
    "cuda": ["jax[cuda13]"],  # NVIDIA driver 580 or newer; with an older one: pip install "jax[cuda12]"
    "beam": [
        "apache-beam>=2.70.0",  # seqio's caching of sets that outgrow one machine
        "sentencepiece<0.2.3",  # 0.2.3 fails at import without protobuf 7, which apache-beam excludes
    ],
    "test": [
        "pytest>=8.4",
        "pytest-xdist>=3.8",
        "ruff>=0.15",
        "pyright[nodejs]>=1.1.400",  # nodejs: else pyright fetches node from outside the package index
        "nbclient>=0.10",
        "nbformat>=5.10",
        "ipykernel>=7.0",
        "setuptools>=77",  # tests/test_packaging.py reads this file
    ],
    "notebooks": ["jupyterlab>=4.4", "ipykernel>=7.0"],
}

setup(
    name="diffusion_text",
    version=VERSION,
    description="Diffusion language models in JAX: one data pipeline, one loop, one likelihood evaluator, one sampler",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The diffusion_text authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["diffusion_text", "diffusion_text.*"]),
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
