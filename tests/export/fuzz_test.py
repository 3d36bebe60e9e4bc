"""A short run of `make fuzz` on bundles, servers and runs."""

import shutil

from tests.fuzz import bodies, bundles, disk, targets


def test_files_that_programs_write(world, tmp_path):
  targets.assert_no_fault(disk.targets(world, tmp_path / "disk"), 6)


def test_bundles(exported, tmp_path):
  copy = shutil.copytree(exported, tmp_path / "bundle")
  targets.assert_no_fault(bundles.targets(copy), 20)


def test_requests(world, exported):
  targets.assert_no_fault(bodies.targets(world, exported), 20)
