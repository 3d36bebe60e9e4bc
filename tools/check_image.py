"""Follows the steps of docker/serve.Dockerfile without Docker.

    python tools/check_image.py --bundle DIR

Creates an empty folder and a virtual environment with the image's Python,
copies the same files, runs pip with the lock file, starts the entry point, and
queries it by REST. Downloads a gigabyte.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_DOCKERFILE = _ROOT / "docker" / "serve.Dockerfile"
_PORT = 18501
_URL = f"http://127.0.0.1:{_PORT}"


def main() -> None:
  """Raises CalledProcessError or AssertionError if a step fails."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--bundle", required=True, help="what is served")
  bundle = os.path.abspath(parser.parse_args().bundle)
  with tempfile.TemporaryDirectory(prefix="check_image-") as name:
    app = pathlib.Path(name, "app")
    app.mkdir()
    python = pathlib.Path(name, "venv", "bin", "python")
    entry: list[str] = []
    for step, text in steps(_DOCKERFILE.read_text(encoding="utf-8")):
      print(step, text, flush=True)
      if step == "FROM":
        version = re.match(r"python:(3\.\d+)-", text)
        assert version, text
        # Packages of the current environment must not be used.
        _run([f"python{version[1]}", "-m", "venv", python.parents[1]], app)
      elif step == "COPY":
        _copy(shlex.split(text), app)
      elif step == "RUN" and text.startswith("python "):
        _run([python, *shlex.split(text)[1:]], app)
      elif step == "ENTRYPOINT":
        entry = [str(python), *json.loads(text)[1:]]
    answer = _ask(entry, bundle, app)
  print(f"The image's server answers: {answer}")


def steps(text: str) -> Iterator[tuple[str, str]]:
  """Yields the instructions of a Dockerfile with their arguments."""
  lines = [line for line in text.splitlines() if not line.startswith("#")]
  for line in "\n".join(lines).replace("\\\n", " ").splitlines():
    step, _, rest = line.strip().partition(" ")
    if step:
      yield step, rest


def _copy(paths: list[str], app: pathlib.Path) -> None:
  *sources, target = paths
  for source in sources:
    path = _ROOT / source
    if path.is_dir():
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.copytree(path, app / target, ignore=ignored)
    else:
      shutil.copy(path, app / target)


def _run(command: list, folder: pathlib.Path) -> None:
  subprocess.run(command, cwd=folder, env=_environment(), check=True)


def _environment() -> dict[str, str]:
  return {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "VIRTUAL_ENV")
  }


def _ask(entry: list[str], bundle: str, app: pathlib.Path) -> str:
  """Starts the server, queries it, and stops it like Docker."""
  flags = [f"--bundle={bundle}", f"--port={_PORT}", "--grpc_port=0"]
  server = subprocess.Popen([*entry, *flags], cwd=app, env=_environment())
  try:
    _wait_until_ready(server)
    with urllib.request.urlopen(f"{_URL}/demo/about") as response:
      query = json.load(response)["example"]
    request = {"inputs": {"query_id": [query], "k": 3}}
    with urllib.request.urlopen(
      f"{_URL}/v1/models/retriever:predict", json.dumps(request).encode()
    ) as response:
      found = json.load(response)["outputs"]
    assert found["num_found"] == [3], found
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
  finally:
    server.kill()
    server.wait()
  return ", ".join(map(str, found["candidate_ids"][0]))


def _wait_until_ready(server: subprocess.Popen) -> None:
  end = time.monotonic() + 600
  while True:
    assert server.poll() is None, "the server ended"
    assert time.monotonic() < end, "the server does not get ready"
    try:
      urllib.request.urlopen(f"{_URL}/readyz").close()
      return
    except (urllib.error.URLError, ConnectionError):
      time.sleep(1)


if __name__ == "__main__":
  main()
