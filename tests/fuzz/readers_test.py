"""A short run of `make fuzz` on files of interactions."""

from tests.fuzz import readers, targets


def test_files_of_interactions(tmp_path):
  targets.assert_no_fault(readers.targets(tmp_path / "files"), 15)
