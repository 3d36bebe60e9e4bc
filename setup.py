"""Packaging of xir_tfrs. Every version pin of the project stands in this file.

TensorFlow, tf-keras, TFRS and ScaNN are bound to each other: ScaNN's ops are
compiled against one TensorFlow minor version (1.4.2 against 2.20; with 2.21
its op library does not load), and TFRS needs Keras 2, which tf-keras carries.
"""

import pathlib
import re

from setuptools import find_packages, setup

# The programs. `xir-tfrs` runs them from a place within the package, so that
# nobody's site-packages get packages called `pipelines` and `export`.
PROGRAMS = {
  f"xir_tfrs._programs.{name}": name
  for name in find_packages(
    include=["pipelines", "pipelines.*", "export", "export.*"]
  )
}

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (ROOT / "xir_tfrs" / "__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
).group(1)

TENSORFLOW = ">=2.20.0,<2.21"

INSTALL = [
  f"tensorflow{TENSORFLOW}",
  "tf-keras>=2.20.1,<2.21",
  "tensorflow-recommenders==0.7.7",
  "numpy>=1.26",
  "absl-py>=2.1",
  # For TFRecords without TensorFlow: their checksums and their messages.
  "google-crc32c>=1.5,<2",
  "protobuf>=5.28",
  # Every JSON and YAML file that is read is checked against its model.
  "msgspec>=0.19,<1",
  "pyyaml>=6",
  "tqdm>=4.66",
  # tensorboard 2.20 imports pkg_resources, which setuptools 81 removed. Before
  # 78.1.1 a package index could write anywhere (CVE-2025-47273).
  "setuptools>=78.1.1,<81",
]
EXTRAS = {
  "scann": ["scann==1.4.2"],
  "data": [
    "pyarrow>=17",
    "fsspec>=2024.2",
    "tensorflow-datasets==4.9.10",
    # tensorflow-datasets imports it and does not say so.
    "importlib_resources",
  ],
  # It needs protobuf below 7 and pyarrow below 26; none of the others does.
  "beam": ["apache-beam==2.77.*", "pyarrow>=17"],
  "serving": [
    "tensorflow-serving-api==2.20.*",
    "starlette>=1.0,<2",
    "uvicorn>=0.30,<1",
    "prometheus-client>=0.20,<1",
    # From 1.81 on it needs protobuf 7.
    "grpcio-health-checking>=1.71,<1.81",
  ],
  "gpu": [f"tensorflow[and-cuda]{TENSORFLOW}"],
  # Charts, and the pages they stand on.
  "plots": ["matplotlib>=3.8", "jinja2>=3.1,<4"],
  "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=1.0,<2"],
  "tune": ["optuna>=5,<6", "matplotlib>=3.8"],
  # What benchmarks.peers compares with.
  "bench": ["implicit==0.7.3", "scipy>=1.11", "optuna>=5,<6"],
  "test": [
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "ruff==0.14.5",
    "mypy>=1.18,<3",
    "types-PyYAML",
  ],
}
# What the commands need, but for beam, which few want.
EXTRAS["all"] = sorted(
  {
    needed
    for name in ("scann", "data", "serving", "plots", "tune")
    for needed in EXTRAS[name]
  }
)

setup(
  name="xir-tfrs",
  version=VERSION,
  description=(
    "Two-tower retrieval training with in-batch and cache-augmented "
    "importance resampling (BIR, XIR) for TensorFlow Recommenders"
  ),
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.10,<3.13",
  packages=[*find_packages(include=["xir_tfrs", "xir_tfrs.*"]), *PROGRAMS],
  package_dir={
    package: name.replace(".", "/") for package, name in PROGRAMS.items()
  },
  entry_points={
    "console_scripts": ["xir-tfrs = xir_tfrs.programs.command:main"]
  },
  package_data={"": ["*.html"], "xir_tfrs": ["py.typed"]},
  install_requires=INSTALL,
  extras_require=EXTRAS,
  classifiers=[
    "Programming Language :: Python :: 3.10",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
