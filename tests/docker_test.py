"""The images: their lock file fits setup.py, and the files they copy exist."""

import pathlib
import re
import runpy

import pytest
import setuptools
from packaging import requirements, utils

ROOT = pathlib.Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def read_lock():
  """Name -> version, and the lines of its hashes."""
  text = (ROOT / "docker" / "serve.lock").read_text(encoding="utf-8")
  pinned = {}
  lines = [line for line in text.splitlines() if not line.startswith("#")]
  for line in "\n".join(lines).replace(" \\\n", " ").splitlines():
    name, version, hashes = re.fullmatch(
      r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+)", line
    ).groups()
    pinned[utils.canonicalize_name(name)] = version, hashes.split()
  return pinned


@pytest.fixture(scope="module")
def declared():
  """The arguments of setup.py."""
  with pytest.MonkeyPatch.context() as patch:
    given = {}
    patch.setattr(setuptools, "setup", given.update)
    patch.setattr(setuptools, "find_packages", lambda **_: [])
    runpy.run_path(str(ROOT / "setup.py"))
  return given


def test_the_lock_file_has_what_serving_needs_and_hashes_of_all(declared):
  extras = declared["extras_require"]
  pinned = read_lock()
  for text in (
    *declared["install_requires"],
    *extras["serving"],
    *extras["scann"],
  ):
    wanted = requirements.Requirement(text)
    version, _ = pinned[utils.canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), (
      f"{wanted.name} {version} does not fit {text!r}; make the lock file anew"
    )
  # Packages that only tests and data preparation need are not installed.
  assert not pinned.keys() & {"pytest", "apache-beam", "tensorflow-datasets"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_copy_what_there_is(path):
  text = path.read_text(encoding="utf-8").replace("\\\n", " ")
  ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
  copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
  assert copied
  for source in " ".join(copied).split():
    assert (ROOT / source).exists(), source
    assert f"!{source}" in ignored, source
  assert re.search(r"^FROM python:3\.1[012]-", text, re.MULTILINE)


def test_the_serving_image_takes_only_what_is_locked():
  text = (ROOT / "docker" / "serve.Dockerfile").read_text(encoding="utf-8")
  assert text.count("pip install") == 1
  assert "--require-hashes --requirement serve.lock" in text
