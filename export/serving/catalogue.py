"""Titles and histories of a bundle's ids, for the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xir_tfrs.serving import bundle as bundles


class Texts:
  """Finds the texts that contain another one, ignoring case."""

  def __init__(self, texts: Sequence[str]):
    """Takes the texts; results are positions in this sequence."""
    folded = [x.casefold().replace("\n", " ") for x in texts]
    # One search in a long text takes milliseconds; a search in each of a
    # million texts takes a second.
    self._joined = "\n" + "\n".join(folded) + "\n"
    self._starts = np.cumsum([1, *(len(x) + 1 for x in folded)])

  def find(self, text: str, limit: int) -> list[int]:
    """Returns up to `limit` positions: equal texts, prefixes, then others."""
    text = text.casefold().replace("\n", " ")
    if not text:
      return list(range(min(limit, len(self._starts) - 1)))
    found: dict[int, None] = {}
    for begin, end in (("\n", "\n"), ("\n", ""), ("", "")):
      wanted = begin + text + end
      place = self._joined.find(wanted)
      while place >= 0 and len(found) < limit:
        inside = place + len(begin)
        number = int(np.searchsorted(self._starts, inside, "right")) - 1
        found[number] = None
        # Continues at the line break after this text.
        place = self._joined.find(wanted, int(self._starts[number + 1]) - 1)
    return list(found)


class Catalogue:
  """Search over the items and the queries of a bundle."""

  def __init__(self, bundle: bundles.Bundle):
    """Reads only the ids and titles."""
    self._bundle = bundle
    self._item_ids = [str(x) for x in bundle.candidate_ids]
    self._query_ids = [str(x) for x in bundle.query_ids]
    self._titles = bundle.titles
    self._rows = {name: row for row, name in enumerate(self._item_ids)}
    self._query_rows = {name: row for row, name in enumerate(self._query_ids)}
    self._texts = [Texts(self._item_ids)]
    if self._titles is not None:
      self._texts.append(Texts(self._titles))
    self._query_texts = Texts(self._query_ids)

  def describe(self) -> dict:
    """Returns sizes, and an example of a query with a usual number of rows."""
    lengths = np.diff(self._bundle.seen[0])
    example = ""
    if self._query_ids:
      example = self._query_ids[int(np.argmax(lengths >= np.median(lengths)))]
    return {
      "index": self._bundle.index,
      "items": len(self._item_ids),
      "queries": len(self._query_ids),
      "titles": self._titles is not None,
      "times": self._bundle.takes_times,
      "example": example,
    }

  def item(self, name: str) -> dict[str, str]:
    """Returns an item; the title of an unknown item is its id."""
    row = self._rows.get(name)
    title = ""
    if self._titles is not None and row is not None:
      title = self._titles[row]
    return {"id": name, "title": title or name}

  def find_items(self, text: str, limit: int) -> list[dict[str, str]]:
    """Returns items whose id or title contains the text."""
    rows = dict.fromkeys(
      row for texts in self._texts for row in texts.find(text, limit)
    )
    return [self.item(self._item_ids[row]) for row in list(rows)[:limit]]

  def find_queries(self, text: str, limit: int) -> list[str]:
    """Returns ids of queries that contain the text."""
    rows = self._query_texts.find(text, limit)
    return [self._query_ids[row] for row in rows]

  def history(self, query: str, limit: int) -> list[dict[str, str]] | None:
    """Returns the training items of a query; None if it is unknown."""
    row = self._query_rows.get(query)
    if row is None:
      return None
    splits, items = self._bundle.seen
    rows = items[splits[row] : splits[row + 1]][-limit:]
    return [self.item(self._item_ids[x]) for x in rows]
