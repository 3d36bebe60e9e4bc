"""A start of training parses the schema once and decodes each part once."""

import collections

from pipelines.training import config as configs
from pipelines.training import loop
from xir_tfrs.data import json_files, records, schema


def test_a_start_reads_everything_once(small_data, tmp_path, monkeypatch):
  columns = collections.defaultdict(list)
  parsed = []
  read_file, read_bytes = records.read_file, json_files.read_bytes

  def counting_file(path, spec, remedy):
    columns[path.name].append(set(spec))
    return read_file(path, spec, remedy)

  def counting_bytes(path, **arguments):
    if path.name == schema.FILE_NAME:
      parsed.append(path)
    return read_bytes(path, **arguments)

  monkeypatch.setattr(records, "read_file", counting_file)
  monkeypatch.setattr(json_files, "read_bytes", counting_bytes)
  loop.train(
    configs.from_preset(
      data=str(small_data),
      model_dir=str(tmp_path / "run"),
      task="xir",
      dim=4,
      cache_size=16,
      epochs=1,
    ),
    progress=False,
  )
  assert parsed == [small_data / schema.FILE_NAME]
  parts = {"train", "validation", "queries", "candidates"}
  assert {name.split("-")[0] for name in columns} == parts
  for name, read in columns.items():
    (found,) = read  # Each file once.
    assert "timestamp" not in found
    # All columns of the tables except the ids.
    of_rows = name.startswith(("train", "validation"))
    assert of_rows == bool(found & {"query_id", "candidate_id"})
