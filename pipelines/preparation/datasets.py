"""Public data sets: their files and the flags that read them.

The layouts are those of the downloads. This module has no slow imports.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xir_tfrs.data import errors


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A public data set.

  Attributes:
    files: Setting -> pattern of the file name, for `input`, or `train` and
      `test`, and the side files, which are optional.
    flags: Setting -> default value.
    others: Patterns of further files, which are not read.
  """

  files: Mapping[str, str]
  flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  others: Sequence[str] = ()


_GENRES = (
  "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama"
  " Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War"
  " Western"
).split()
_RATED = ("user_id", "item_id", "rating", "timestamp")
# MovieLens 20M and later: CSV with a header.
_MOVIELENS = DataSet(
  {"input": "ratings.csv", "item_file": "movies.csv"},
  {
    "user_column": "userId",
    "item_column": "movieId",
    "time_column": "timestamp",
    "item_features": ("genres:token_seq",),
    "item_title": "title",
    "separators": {"genres": "|"},
  },
)
_BOOK_CROSSING = {
  "delimiter": ";",
  "encoding": "latin-1",
  "quoting": "backslash",
}
_AMAZON = {
  "user_column": "reviewerID",
  "item_column": "asin",
  "time_column": "unixReviewTime",
}

DATA_SETS: dict[str, DataSet] = {
  "movielens-100k": DataSet(
    {"input": "u.data", "user_file": "u.user", "item_file": "u.item"},
    {
      "format": "tsv",
      "names": _RATED,
      "user_layout": {
        "delimiter": "|",
        "names": ["user_id", "age", "gender", "occupation", "zip"],
      },
      "user_features": ("age:float", "gender:token", "occupation:token"),
      "item_layout": {
        "delimiter": "|",
        "encoding": "latin-1",
        "quoting": "none",
        "names": ["item_id", "title", "date", "video_date", "url"]
        + [f"genre_{genre}" for genre in _GENRES],
      },
      "item_features": ("genre_*:token_seq",),
      "item_title": "title",
    },
  ),
  "movielens-1m": DataSet(
    {
      "input": "ratings.dat",
      "user_file": "users.dat",
      "item_file": "movies.dat",
    },
    {
      "format": "csv",
      "delimiter": "::",
      "encoding": "latin-1",
      "names": _RATED,
      "user_layout": {
        "delimiter": "::",
        "names": ["user_id", "gender", "age", "occupation", "zip"],
      },
      "user_features": ("gender:token", "age:token", "occupation:token"),
      "item_layout": {
        "delimiter": "::",
        "encoding": "latin-1",
        "quoting": "none",
        "names": ["item_id", "title", "genres"],
      },
      "item_features": ("genres:token_seq",),
      "item_title": "title",
      "separators": {"genres": "|"},
    },
  ),
  "movielens-20m": _MOVIELENS,
  "movielens-25m": _MOVIELENS,
  "movielens-32m": _MOVIELENS,
  "amazon-2014": DataSet({"input": "*.json*"}, _AMAZON, ("meta_*",)),
  "amazon-2018": DataSet({"input": "*.json*"}, _AMAZON, ("meta_*",)),
  "amazon-2023": DataSet(
    {"input": "*.jsonl*"},
    {
      "user_column": "user_id",
      "item_column": "parent_asin",
      "time_column": "timestamp",
    },
    ("meta_*",),
  ),
  "yelp": DataSet(
    {
      "input": "yelp_academic_dataset_review.json*",
      "item_file": "yelp_academic_dataset_business.json*",
    },
    {
      "user_column": "user_id",
      "item_column": "business_id",
      "time_column": "date",
      "item_features": ("city:token", "categories:token_seq"),
      "item_title": "name",
      "separators": {"categories": ", "},
    },
  ),
  "gowalla": DataSet(
    {"input": "*totalCheckins.txt*"},
    {
      "format": "tsv",
      "names": ("user_id", "timestamp", "latitude", "longitude", "item_id"),
    },
  ),
  # LightGCN's splits of Gowalla, Yelp2018 and Amazon-Book.
  "lightgcn": DataSet(
    {"train": "train.txt", "test": "test.txt"}, {"format": "adjacency"}
  ),
  "retailrocket": DataSet(
    {"input": "events.csv"},
    {
      "user_column": "visitorid",
      "item_column": "itemid",
      "time_column": "timestamp",
    },
  ),
  "yoochoose": DataSet(
    {"input": "yoochoose-clicks.dat*"},
    {
      "format": "csv",
      "names": ("session_id", "timestamp", "item_id", "category"),
      "user_column": "session_id",
    },
  ),
  "mind": DataSet(
    {"input": "behaviors.tsv", "item_file": "news.tsv"},
    {
      "format": "tsv",
      "quoting": "none",
      "names": ("impression_id", "user_id", "time", "history", "impressions"),
      "item_list_column": "impressions",
      "time_format": "%m/%d/%Y %I:%M:%S %p",
      "item_key": "news_id",
      "item_layout": {
        "delimiter": "tab",
        "quoting": "none",
        "names": [
          "news_id",
          "category",
          "subcategory",
          "title",
          "abstract",
          "url",
          "title_entities",
          "abstract_entities",
        ],
      },
      "item_features": ("category:token", "subcategory:token"),
      "item_title": "title",
    },
  ),
  "book-crossing": DataSet(
    {
      "input": "*Book-Ratings.csv",
      "user_file": "*Users.csv",
      "item_file": "*Books.csv",
    },
    {
      **_BOOK_CROSSING,
      "user_column": "User-ID",
      "item_column": "ISBN",
      "user_layout": _BOOK_CROSSING,
      "user_features": ("Age:float",),
      "item_layout": _BOOK_CROSSING,
      "item_features": ("Book-Author:token", "Publisher:token"),
      "item_title": "Book-Title",
    },
  ),
  # HetRec 2011: how often each of 2,000 users played each artist.
  "lastfm-2k": DataSet(
    {"input": "user_artists.dat", "item_file": "artists.dat"},
    {
      "user_column": "userID",
      "item_column": "artistID",
      "weight_column": "weight",
      "item_key": "id",
      "item_layout": {"delimiter": "tab", "quoting": "none"},
      "item_title": "name",
    },
  ),
  "lastfm-360k": DataSet(
    {"input": "usersha1-artmbid-artname-plays.tsv"},
    {
      "format": "tsv",
      "quoting": "none",
      "names": ("user_id", "artist_mbid", "artist", "plays"),
      "item_column": "artist",
      "weight_column": "plays",
    },
  ),
  # From Kaggle: purchases and hours of play.
  "steam": DataSet(
    {"input": "steam-200k.csv"},
    {
      "format": "csv",
      "names": ("user_id", "item_id", "behavior", "hours", "zero"),
      "event_column": "behavior",
      "events": ("purchase",),
    },
  ),
  "h-and-m": DataSet(
    {"input": "transactions_train.csv*", "item_file": "articles.csv*"},
    {
      "user_column": "customer_id",
      "item_column": "article_id",
      "time_column": "t_dat",
      "item_features": (
        "product_type_name:token",
        "colour_group_name:token",
        "department_name:token",
      ),
      "item_title": "prod_name",
    },
  ),
  "otto": DataSet(
    {"input": "*train*.jsonl*"},
    {
      "user_column": "session",
      "item_column": "events.aid",
      "time_column": "events.ts",
    },
  ),
}


def brings_split(name: str | None) -> bool:
  """Whether a data set has files of training and test rows."""
  return name is not None and "train" in DATA_SETS[name].files


def flags(name: str, place: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings that read a data set.

  Args:
    name: A name in `DATA_SETS`.
    place: The downloaded folder, archive or single file.
    given: Settings of the user, which override those of the data set.

  Raises:
    DataError: A required file is missing.
  """
  known = DATA_SETS[name]
  found = _files(place)
  used = {"name": name, **known.flags, **given}
  used.pop("input", None)
  for setting, pattern in known.files.items():
    side = setting.removesuffix("_file")
    if given.get(setting) and setting != "input":
      continue
    matches = [
      path
      for path in found
      if _matches(path, pattern)
      and not any(_matches(path, other) for other in known.others)
    ]
    if side == "user" and given.get("session_gap"):
      matches = []  # Sessions replace users, so the user file does not apply.
    if matches:
      is_side = setting != side
      used[setting] = matches[0] if is_side else tuple(matches)
      continue
    if setting == side:
      raise errors.DataError(
        f"holds no {pattern}, which {name} has; name the downloaded folder or"
        " archive",
        path=place,
      )
    for more in ("features", "layout", "key"):
      if f"{side}_{more}" not in given:
        used.pop(f"{side}_{more}", None)
    if side == "item":  # Only items have sequences and titles.
      for more in {"separators", "item_title"} - set(given):
        used.pop(more, None)
  return used


def _files(place: str) -> Sequence[str]:
  from xir_tfrs.data.files import addresses

  if re.search(r"\.zip$", place, re.IGNORECASE) and "::" not in place:
    return addresses.expand(f"zip://::{place}")
  return addresses.expand(place)


def _matches(path: str, pattern: str) -> bool:
  from xir_tfrs.data.files import addresses

  return fnmatch.fnmatch(addresses.name(path).lower(), pattern.lower())
