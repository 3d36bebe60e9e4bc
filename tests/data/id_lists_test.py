"""Lists of ids answer as arrays do."""

import numpy as np
import pytest

from xir_tfrs.data import id_lists


def test_lists_of_strings_take_the_places_that_arrays_take(tmp_path):
  names = ["tea", "", "ü", "milk"]
  ids = [x.encode() for x in names]
  id_lists.save_ids(tmp_path / "ids", ids)
  found = id_lists.load_ids(tmp_path / "ids", "string")
  for part in (slice(2), slice(-3, None), slice(None, None, -1)):
    assert found[part] == names[part]
  assert [found[i] for i in (-1, -4, 0)] == ["milk", "tea", "tea"]
  assert found[np.int64(2)] == "ü"
  for place in (4, -5):
    with pytest.raises(IndexError):
      found[place]
