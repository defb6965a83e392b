"""Packaging of t0jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the versions the tests ran with on Python 3.11; the newest ones are run on 3.12.
REQUIREMENTS = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<1",
    "seqio>=0.0.20",
    "tensorflow>=2.21",
    "tensorflow-text>=2.21",
    "transformers>=5.23",
    "datasets>=5.2",
    "huggingface_hub>=1.0",
    "ml_dtypes>=0.5",
    "safetensors>=0.8",
    "sentencepiece>=0.2.1",
    "jsonargparse[signatures]>=4.53",
    "jinja2>=3.1.6",
    "pyyaml>=6.0.2",
    "pyarrow>=21",
    "numpy>=2.0",
    "protobuf>=6.31",
    "tensorboardX>=2.6.4",
]
# seqio_cache_tasks imports these, and seqio does not bring them. Beam keeps protobuf too old for sentencepiece 0.2.3.
CACHE = ["apache-beam>=2.60", "google-crc32c>=1.6", "sentencepiece>=0.2.1,<0.2.3"]
# ROUGE and BLEU of generated text, asked for only by tasks that name them.
METRICS = ["rouge-score>=0.1.2", "sacrebleu>=2.5"]
TEST = [
    *METRICS,
    "pytest>=9.0",
    "pytest-xdist>=3.8",
    "torchmetrics>=1.8",
    "torch>=2.6,<2.14",
    "scikit-learn>=1.7",
    "import-linter>=2.5",
    "ruff>=0.14,<1",
]

setup(
    name="t0jax",
    version="0.5.0",
    description="Prompted multitask training and scoring in JAX: T0, FLIPPED and tasksource",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["t0jax*", "tasks*", "scripts*"]),
    package_data={
        "t0jax": ["report/*.html", "report/*.css", "report/*.js"],
        "tasks": ["*.json", "*_prompts/*/templates.yaml", "*_prompts/*/*/templates.yaml"],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "test": TEST,
        "cache": CACHE,
        "metrics": METRICS,
        "wandb": ["wandb>=0.22"],
        "plan": ["jax[tpu]>=0.10.2"],  # libtpu of a version that fits
    },
)
