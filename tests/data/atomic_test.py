"""Files and directories that appear atomically, and locks."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from xir_tfrs.data import atomic, errors

MARK = "mark"


def foreign(directory: pathlib.Path) -> str | None:
  names = {path.name for path in directory.iterdir()}
  return min(names - {MARK} if MARK in names else names, default=None)


def new(output, overwrite=False):
  return atomic.new_directory(
    output, what="box", foreign=foreign, overwrite=overwrite
  )


def write(output, text="new", overwrite=False):
  with new(output, overwrite) as directory:
    assert list(directory.iterdir()) == []
    (directory / MARK).write_text(text)


def names(directory) -> set[str]:
  return {path.name for path in directory.iterdir()}


@pytest.fixture
def no_exchange(monkeypatch):
  monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)


@pytest.fixture
def another_host(monkeypatch):
  """Returns a function that makes this process appear to be on another host."""

  def become(name):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(atomic, "_kernel", lambda: f"kernel of {name}")

  return become


def kill_while_writing(output):
  """Runs a program that is killed while it writes a new directory."""
  code = f"""
import os, signal
from xir_tfrs.data import atomic
pid = os.getpid()
os.getpid = lambda: 1  # As in a container.
with atomic.new_directory({str(output)!r}, what="box",
                          foreign=lambda directory: None) as directory:
  (directory / "half").write_text("half")
  os.kill(pid, signal.SIGKILL)
"""
  done = subprocess.run([sys.executable, "-c", code])
  assert done.returncode == -signal.SIGKILL


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
  output = tmp_path / "a" / "out"
  with new(output) as directory:
    (directory / MARK).write_text("x")
    assert not output.exists()
  assert names(output) == {MARK} and names(output.parent) == {"out"}
  with pytest.raises(RuntimeError), new(output, overwrite=True) as directory:
    (directory / MARK).write_text("y")
    raise RuntimeError
  assert (output / MARK).read_text() == "x"
  assert names(output.parent) == {"out"}


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_replaces_the_whole_directory(
  tmp_path, monkeypatch, exchange
):
  output = tmp_path / "out[1]"
  write(output, "old")
  if exchange:  # One step; renaming the old one first would be two.
    monkeypatch.setattr(atomic, "_hidden", unlike(atomic._hidden, "old"))
  else:
    monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)
  write(output, "new", overwrite=True)
  assert (output / MARK).read_text() == "new"
  assert names(tmp_path) == {"out[1]"}


def unlike(hidden, forbidden):
  def checked(path, role):
    assert role != forbidden
    return hidden(path, role)

  return checked


def test_a_foreign_directory_is_refused_at_the_start(tmp_path):
  output = tmp_path / "out"
  output.mkdir()
  write(output)  # An empty directory may be replaced.
  with pytest.raises(errors.DataError, match="out: holds a box already; rep"):
    write(output)
  (output / "notes").write_text("mine")
  with pytest.raises(errors.DataError, match="holds 'notes', which is not pa"):
    write(output, overwrite=True)
  (tmp_path / "file").write_text("mine")
  with pytest.raises(errors.DataError, match="file: is not a directory"):
    write(tmp_path / "file", overwrite=True)
  assert names(output) == {MARK, "notes"}
  assert names(tmp_path) == {"out", "file"}


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
  write(tmp_path / "target", "old")
  (tmp_path / "link").symlink_to("target")
  write(tmp_path / "link", "new", overwrite=True)
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "target" / MARK).read_text() == "new"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_appears_meanwhile_is_not_replaced(
  tmp_path, overwrite
):
  output = tmp_path / "out"
  with pytest.raises(errors.DataError, match="holds "):
    with new(output, overwrite) as directory:
      (directory / MARK).write_text("ours")
      output.mkdir()
      (output / ("notes" if overwrite else MARK)).write_text("theirs")
  assert [path.read_text() for path in output.iterdir()] == ["theirs"]
  assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_gets_an_error_with_the_holder(tmp_path, overwrite):
  output = tmp_path / "out"
  with new(output) as directory:
    with pytest.raises(errors.DataError) as caught:
      write(output, overwrite=overwrite)
    (directory / MARK).write_text("first")
  text = str(caught.value)
  assert text.startswith(f"{output}: ") and "is writing here: wait for" in text
  for part in (f"process {os.getpid()}", socket.gethostname(), "since 2"):
    assert part in text
  assert (output / MARK).read_text() == "first"
  assert names(tmp_path) == {"out"}


def test_a_killed_writer_blocks_nobody_and_leaves_nothing(tmp_path):
  output = tmp_path / "out"
  kill_while_writing(output)
  kill_while_writing(output)
  left = names(tmp_path)
  # Nothing of the first program was left when the second was killed.
  assert len(left) == 2 and ".out.lock" in left and "out" not in left
  write(output)
  assert names(tmp_path) == {"out"}


def test_a_writer_on_another_host_is_refused_until_it_is_silent(
  tmp_path, another_host, monkeypatch
):
  output = tmp_path / "out"
  another_host("a")
  with contextlib.ExitStack() as stack:
    directory = stack.enter_context(new(output))
    (directory / MARK).write_text("of a")
    # A shared volume on which flock only locks within this host.
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    another_host("b")
    with pytest.raises(errors.DataError, match="on host a, .*again in 1[12]"):
      write(output)
    long_ago = time.time() - 1000
    os.utime(tmp_path / ".out.lock", (long_ago, long_ago))
    write(output, "of b")
    # The partial output of the other host must not be deleted.
    assert (directory / MARK).read_text() == "of a"
    with pytest.raises(errors.DataError, match="holds a box already"):
      write(output)
    another_host("a")
    # The first one wakes up and must not publish, because the second took over.
    with pytest.raises(errors.DataError, match="stopped for so long"):
      stack.close()
  assert (output / MARK).read_text() == "of b"


@pytest.fixture
def later(monkeypatch):
  """Returns a function that sets the clock of the file system ahead."""

  def become(seconds):
    now = atomic._now
    monkeypatch.setattr(atomic, "_now", lambda path: now(path) + seconds)

  return become


def test_leftovers_of_killed_programs_are_removed(
  tmp_path, another_host, later
):
  """Immediately on the same host, and after a time-out on another one."""
  output = tmp_path / "out"
  for host in ("a", "a-b"):
    (tmp_path / f".out.partial-{host}-01234567").mkdir()
    (tmp_path / f".out.old-{host}-01234567").mkdir()
  (tmp_path / ".out.partial-12").mkdir()
  another_host("a")
  output.mkdir()
  write(output)
  assert names(tmp_path) == {
    "out",
    ".out.partial-12",
    ".out.partial-a-b-01234567",
    ".out.old-a-b-01234567",
  }
  later(atomic._LAPSE)
  write(output, overwrite=True)
  assert names(tmp_path) == {"out", ".out.partial-12"}


def test_a_volume_without_locks(tmp_path, monkeypatch):
  output = tmp_path / "out"

  def no_locks(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", no_locks)
  with new(output) as directory:
    with pytest.raises(errors.DataError, match="if it was killed, try again"):
      write(output)
    (directory / MARK).write_text("first")
  write(output, "second", overwrite=True)
  assert (output / MARK).read_text() == "second"


def test_a_holder_shows_that_it_is_alive(tmp_path, monkeypatch):
  monkeypatch.setattr(atomic, "_BEAT", 0.01)
  lock = tmp_path / ".lock"
  with atomic.locked(tmp_path):
    os.utime(lock, (1, 1))
    deadline = time.monotonic() + 60
    while lock.stat().st_mtime < 2 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert lock.stat().st_mtime > 2


def test_a_directory_that_is_written_shows_that_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr(atomic, "_BEAT", 0.01)
  with new(tmp_path / "out") as directory:
    os.utime(directory, (1, 1))
    deadline = time.monotonic() + 60
    while directory.stat().st_mtime < 2 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert directory.stat().st_mtime > 2
    (directory / MARK).write_text("x")


def test_a_failed_switch_without_exchange_is_undone(
  tmp_path, monkeypatch, no_exchange
):
  output = tmp_path / "out"
  write(output, "old")
  rename, calls = os.rename, []

  def last_fails(source, target):
    calls.append(target)
    if len(calls) == 3:
      raise OSError("injected")
    rename(source, target)

  monkeypatch.setattr(os, "rename", last_fails)
  with pytest.raises(OSError, match="injected"):
    write(output, "new", overwrite=True)
  assert (output / MARK).read_text() == "old" and names(tmp_path) == {"out"}


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_kill_between_two_renames_is_repaired(
  tmp_path, another_host, no_exchange, host
):
  output = tmp_path / "out"
  write(output, "old")
  another_host("a")
  os.rename(output, atomic._hidden(output, "old"))
  another_host(host)
  with pytest.raises(errors.DataError, match="holds a box already"):
    write(output)
  assert (output / MARK).read_text() == "old" and names(tmp_path) == {"out"}


def test_content_is_synced_before_the_switch(tmp_path, monkeypatch):
  events = []
  fsync, rename, replace = os.fsync, os.rename, os.replace
  monkeypatch.setattr(
    os,
    "fsync",
    lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)),
  )
  for name, function in (("rename", rename), ("replace", replace)):
    monkeypatch.setattr(
      os, name, lambda a, b, f=function: (events.append("switch"), f(a, b))
    )
  with new(tmp_path / "out") as directory:
    (directory / "sub").mkdir()
    (directory / "sub" / "file").write_text("x")
    staged = str(directory)
  assert set(events[:3]) == {staged, f"{staged}/sub", f"{staged}/sub/file"}
  assert events[3:] == ["switch", str(tmp_path)]
  events.clear()
  atomic.write_text(tmp_path / "file", "x")
  assert ".file.partial-" in events[0]
  assert events[1:] == ["switch", str(tmp_path)]


def test_a_lock_on_a_directory(tmp_path):
  run = tmp_path / "run"
  with pytest.raises(RuntimeError):
    with atomic.locked(run, "--model_dir"):
      with pytest.raises(errors.DataError, match="or choose another --model_d"):
        with atomic.locked(run, "--model_dir"):
          pass
      raise RuntimeError
  assert not run.exists()  # Created for nothing, so removed again.
  run.mkdir()
  with atomic.locked(run):
    assert names(run) == {".lock"}
  assert names(run) == set()
  (tmp_path / "link").symlink_to(tmp_path / "new" / "target")
  with atomic.locked(tmp_path / "link"):
    assert names(tmp_path / "new" / "target") == {".lock"}
  assert not (tmp_path / "new").exists()
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.DataError, match="is not a directory"):
    with atomic.locked(tmp_path / "file"):
      pass


def test_a_damaged_lock_file_blocks_nobody(tmp_path):
  for content in (b"", b"{", b'{"host": 1}', b"\xff"):
    (tmp_path / ".lock").write_bytes(content)
    with atomic.locked(tmp_path):
      pass


def test_a_lock_whose_file_was_just_removed_is_taken_again(
  tmp_path, monkeypatch
):
  """The holder before us removes the file between our open and our flock."""
  lock = tmp_path / ".lock"
  flock, calls = fcntl.flock, []

  def after_the_holder_is_done(descriptor, operation):
    calls.append(descriptor)
    if len(calls) == 1:
      lock.unlink()
    flock(descriptor, operation)

  monkeypatch.setattr(fcntl, "flock", after_the_holder_is_done)
  with atomic.locked(tmp_path):
    assert lock.exists() and len(calls) == 2
    with pytest.raises(errors.DataError, match="is writing here"):
      with atomic.locked(tmp_path):
        pass


def test_a_file_appears_complete_or_not_at_all(tmp_path, another_host, later):
  path = tmp_path / "a[1].json"
  atomic.write_text(path, "é")
  with pytest.raises(RuntimeError), atomic.new_file(path) as partial:
    partial.write_text("half")
    raise RuntimeError
  assert path.read_text(encoding="utf-8") == "é"
  assert names(tmp_path) == {"a[1].json"}
  # Left by programs on any host that were killed or are still running.
  for host in ("a", "b"):
    another_host(host)
    atomic._hidden(path, "partial").write_text("half")
  atomic.write_text(path, "new")
  assert path.read_text() == "new" and len(names(tmp_path)) == 3
  later(atomic._STALE_FILE)
  atomic.write_text(path, "newer")
  assert path.read_text() == "newer" and names(tmp_path) == {path.name}


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
  tmp_path, monkeypatch
):
  path = tmp_path / "new" / "folder" / "a.json"
  atomic.check_file(path)
  assert names(tmp_path) == set()
  atomic.write_text(path, "x")
  atomic.check_file(path)
  with pytest.raises(errors.DataError, match="folder: is a directory"):
    atomic.check_file(path.parent)
  with pytest.raises(errors.DataError, match="because .*a.json is not a dir"):
    atomic.check_file(path / "b" / "c.json")
  # Root may write everywhere.
  monkeypatch.setattr(os, "access", lambda path, how: False)
  with pytest.raises(PermissionError) as found:
    atomic.check_file(path)
  assert found.value.filename == str(path.parent)


@pytest.mark.parametrize("make", [new, atomic.new_file, atomic.locked])
def test_folders_are_removed_if_nothing_is_written(tmp_path, make):
  with pytest.raises(RuntimeError), make(tmp_path / "typo" / "deep" / "out"):
    raise RuntimeError
  assert names(tmp_path) == set()
  with make(tmp_path / "a" / "out") as partial:
    assert names(tmp_path) == {"a"}
    if partial:
      (partial / "x" if partial.is_dir() else partial).write_text("x")
  assert names(tmp_path) == (set() if make is atomic.locked else {"a"})


@pytest.mark.parametrize("make", [new, atomic.new_file])
def test_a_full_disk_names_what_is_written(tmp_path, make):
  output = tmp_path / "out"
  for error in (
    OSError(errno.ENOSPC, "No space left on device"),  # By `write`.
    OSError(errno.ENOSPC, "Error writing bytes to file."),  # By pyarrow.
    RuntimeError("{{node Save}} x; No space left on device [Op:SaveV2]"),
  ):
    with pytest.raises(OSError) as found, make(output):
      raise error
    assert found.value.filename == str(output)
    assert found.value.strerror == "No space left on device"
    assert names(tmp_path) == set()
  with pytest.raises(OSError) as found, make(output) as partial:
    raise OSError(errno.EFBIG, "File too large", str(partial / "part"))
  assert found.value.filename == str(output)
  for error in (
    OSError(errno.ENOSPC, "No space left on device", "/tmp/elsewhere"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOENT, "No such file", "x"),
  ):
    with pytest.raises(OSError) as found, make(output):
      raise error
    assert found.value is error


@pytest.mark.parametrize("make", [new, atomic.locked])
def test_a_disk_without_room_for_a_lock_is_named(tmp_path, monkeypatch, make):
  output = tmp_path / "deep" / "out"

  def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "pwrite", full)
  with pytest.raises(OSError) as found, make(output):
    pass
  assert found.value.filename == str(output)
  assert names(tmp_path) == set()


def test_a_read_only_directory_is_replaced_and_removed(tmp_path, monkeypatch):
  output = tmp_path / "out"
  write(output, "old")
  (output / "deep").mkdir()
  (output / "deep" / "x").touch()
  for folder in (output / "deep", output):
    folder.chmod(0o555)
  remove = shutil.rmtree

  def as_a_user(path, **how):
    # Root may write everywhere.
    folders = (pathlib.Path(x) for x, _, _ in os.walk(path))
    if all(x.stat().st_mode & 0o200 for x in folders):
      remove(path, **how)

  monkeypatch.setattr(shutil, "rmtree", as_a_user)
  with atomic.new_directory(
    output, what="box", foreign=lambda path: None, overwrite=True
  ) as directory:
    (directory / "new").touch()
  assert names(tmp_path) == {"out"}
  assert names(output) == {"new"}
