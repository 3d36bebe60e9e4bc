"""Public data sets, as small imitations of their published layouts."""

import gzip
import json
import zipfile

import pytest

from pipelines import prepare
from pipelines.preparation import datasets
from pipelines.readers import inputs, sources
from xir_tfrs.data import errors
from xir_tfrs.programs import settings

_TITLE = "the title"  # The value of the title feature in the imitations.
_NOON = 1_682_944_200  # 2023-05-01 12:30:00 UTC
_GENRES_100K = "|".join("01"[k in (1, 16)] for k in range(19))
_MOVIELENS = {
  "ratings.csv": f"userId,movieId,rating,timestamp\n1,2,3.5,{_NOON}\n",
  "movies.csv": 'movieId,title,genres\n2,"Heat, The (1995)",Action|Crime\n',
  "tags.csv": "userId,movieId,tag,timestamp\n1,2,x,5\n",
}
_AMAZON = {
  "Beauty_5.json.gz": gzip.compress(
    json.dumps(
      {
        "reviewerID": "A1",
        "asin": "B2",
        "helpful": [0, 0],
        "overall": 5.0,
        "reviewTime": "05 1, 2023",
        "unixReviewTime": _NOON,
      }
    ).encode()
  )
}
# Name -> files, the rows read, and feature -> its first value.
_IMITATIONS = {
  "movielens-100k": (
    {
      "u.data": f"196\t242\t3\t{_NOON}\n186\t302\t3\t{_NOON}\n",
      "u.item": (
        f"242|Caf\xe9 (1997)|01-Jan-1997||http://x/?(1997)|{_GENRES_100K}\n"
      ).encode("latin-1"),
      "u.user": "196|24|M|technician|85711\n",
      "u1.base": "x",
    },
    [("196", "242", _NOON), ("186", "302", _NOON)],
    {
      "genre": ["Action", "Thriller"],
      "age": 24.0,
      "occupation": "technician",
      _TITLE: "Caf\xe9 (1997)",
    },
  ),
  "movielens-1m": (
    {
      "ratings.dat": f"1::1193::5::{_NOON}\n",
      "movies.dat": '1193::Caf\xe9, "The" (1995)::Drama|War\n'.encode(
        "latin-1"
      ),
      "users.dat": "1::F::1::10::48067\n",
      "README": "x",
    },
    [("1", "1193", _NOON)],
    {
      "genres": ["Drama", "War"],
      "gender": "F",
      _TITLE: 'Caf\xe9, "The" (1995)',
    },
  ),
  "movielens-20m": (
    _MOVIELENS,
    [("1", "2", _NOON)],
    {"genres": ["Action", "Crime"], _TITLE: "Heat, The (1995)"},
  ),
  "movielens-25m": (
    _MOVIELENS,
    [("1", "2", _NOON)],
    {"genres": ["Action", "Crime"], _TITLE: "Heat, The (1995)"},
  ),
  "movielens-32m": (
    _MOVIELENS,
    [("1", "2", _NOON)],
    {"genres": ["Action", "Crime"], _TITLE: "Heat, The (1995)"},
  ),
  "amazon-2014": (_AMAZON, [("A1", "B2", _NOON)], {}),
  "amazon-2018": (_AMAZON, [("A1", "B2", _NOON)], {}),
  "amazon-2023": (
    {
      "All_Beauty.jsonl": json.dumps(
        {
          "rating": 5.0,
          "text": "one\ntwo",
          "images": [],
          "asin": "B1",
          "parent_asin": "B2",
          "user_id": "A1",
          "timestamp": _NOON * 1000 + 7,
        }
      ),
      "meta_All_Beauty.jsonl": '{"parent_asin": "B2", "title": "Soap"}',
    },
    [("A1", "B2", _NOON * 1000 + 7)],
    {},
  ),
  "yelp": (
    {
      "yelp_academic_dataset_review.json": json.dumps(
        {
          "review_id": "r",
          "user_id": "A1",
          "business_id": "B2",
          "stars": 3.0,
          "date": "2023-05-01 12:30:00",
        }
      ),
      "yelp_academic_dataset_business.json": json.dumps(
        {
          "business_id": "B2",
          "name": "Tea\n& Co",
          "city": "Reno",
          "attributes": {"WiFi": "no"},
          "categories": "Tea Rooms, Bars",
        }
      ),
    },
    [("A1", "B2", _NOON)],
    {
      "city": "Reno",
      "categories": ["Tea Rooms", "Bars"],
      _TITLE: "Tea & Co",
    },
  ),
  "gowalla": (
    {
      "loc-gowalla_totalCheckins.txt.gz": gzip.compress(
        b"0\t2023-05-01T12:30:00Z\t30.23\t-97.79\t22847\n"
      ),
      "loc-gowalla_edges.txt.gz": gzip.compress(b"0\t1\n"),
    },
    [("0", "22847", _NOON)],
    {},
  ),
  "lightgcn": (
    {
      "train.txt": "0 0 1\n1 2\n",
      "test.txt": "0 2\n1 0\n",
      "user_list.txt": "",
    },
    [("0", "0"), ("0", "1"), ("1", "2"), ("0", "2"), ("1", "0")],
    {},
  ),
  "retailrocket": (
    {
      "events.csv": "timestamp,visitorid,event,itemid,transactionid\n"
      f"{_NOON}117,257597,view,355908,\n",
      "category_tree.csv": "categoryid,parentid\n1,2\n",
    },
    [("257597", "355908", _NOON * 1000 + 117)],
    {},
  ),
  "yoochoose": (
    {
      "yoochoose-clicks.dat": "1,2023-05-01T12:30:00.117Z,214536502,0\n",
      "yoochoose-buys.dat": "1,2014-04-07T10:51:09.277Z,2145,5,1\n",
    },
    [("1", "214536502", _NOON * 1000 + 117)],
    {},
  ),
  "mind": (
    {
      "behaviors.tsv": "1\tU13740\t05/01/2023 12:30:00 PM\tN5 N4\tN6-1 N8-0\n"
      "2\tU91836\t05/01/2023 12:30:00 PM\t\tN6-0 N8-1\n",
      "news.tsv": 'N6\tsports\tgolf\t"Quoted\tabstract\turl\t[]\t[{"a": 1}]\n',
      "entity_embedding.vec": "x",
    },
    [("U13740", "N6", _NOON), ("U91836", "N8", _NOON)],
    {"category": "sports", "subcategory": "golf", _TITLE: '"Quoted'},
  ),
  "book-crossing": (
    {
      "BX-Book-Ratings.csv": '"User-ID";"ISBN";"Book-Rating"\r\n'
      '"276725";"034545104X";"0"\r\n',
      "BX-Books.csv": (
        '"ISBN";"Book-Title";"Book-Author";"Publisher"\r\n'
        '"034545104X";"Erz\xe4hlung; \\"zwei\\"";"K\xe4the";"P"\r\n'
      ).encode("latin-1"),
      "BX-Users.csv": '"User-ID";"Location";"Age"\r\n"276725";"x, y";NULL\r\n',
    },
    [("276725", "034545104X")],
    {
      "Book-Author": "K\xe4the",
      "Publisher": "P",
      _TITLE: 'Erz\xe4hlung; "zwei"',
    },
  ),
  "lastfm-2k": (
    {
      "user_artists.dat": "userID\tartistID\tweight\n2\t51\t13883\n",
      "artists.dat": "id\tname\n51\tDuran\n",
    },
    [("2", "51", 13883.0)],
    {_TITLE: "Duran"},
  ),
  "lastfm-360k": (
    {"usersha1-artmbid-artname-plays.tsv": '00ab\t3bd\tthe "x\t2137\n'},
    [("00ab", 'the "x', 2137.0)],
    {},
  ),
  "steam": (
    {
      "steam-200k.csv": '15,"Skyrim, V",purchase,1.0,0\n'
      '15,"Skyrim, V",play,273.0,0\n'
    },
    [("15", "Skyrim, V")],
    {},
  ),
  "h-and-m": (
    {
      "transactions_train.csv": "t_dat,customer_id,article_id,price,"
      "sales_channel_id\n2023-05-01,000058a,0663713001,0.05,2\n",
      "articles.csv": "article_id,prod_name,product_type_name,"
      "colour_group_name,department_name\n0663713001,Ada,Top,Black,Jersey\n",
      "customers.csv": "customer_id,age\n000058a,49\n",
    },
    [("000058a", "0663713001", _NOON - 45_000)],
    {"product_type_name": "Top", _TITLE: "Ada"},
  ),
  "otto": (
    {
      "otto-recsys-train.jsonl": json.dumps(
        {
          "session": 3,
          "events": [
            {"aid": 5, "ts": _NOON * 1000, "type": "clicks"},
            {"aid": 6, "ts": _NOON * 1000 + 1, "type": "carts"},
          ],
        }
      ),
      "otto-recsys-test.jsonl": "{}",
    },
    [("3", "5", _NOON * 1000), ("3", "6", _NOON * 1000 + 1)],
    {},
  ),
}


def _config(dataset, place, item=None, **kwargs):
  columns = inputs.Columns(item=item)
  return prepare.PrepareConfig(
    input=inputs.Input(paths=(str(place),), columns=columns),
    output="out",
    dataset=dataset,
    **kwargs,
  ).resolved()


def _check(config, name):
  _, rows, features = _IMITATIONS[name]
  source = sources.open_source(config.input)
  found = []
  for _, block in source.blocks():
    columns = [*block.strings()]
    columns += [
      c.tolist() for c in (block.times, block.weights) if c is not None
    ]
    found += zip(*columns, strict=True)
  assert found == rows
  read = {
    feature: value
    for table in source.side_tables()
    if table is not None
    for feature, column in table.columns.items()
    for value in column.tolist()[:1]
  }
  items = source.side_tables()[1]
  if items is not None and items.titles is not None:
    read[_TITLE] = items.titles[0].as_py()
  assert {feature: read[feature] for feature in features} == features


def test_there_are_imitations_of_all():
  assert _IMITATIONS.keys() == datasets.DATA_SETS.keys()


@pytest.mark.parametrize("name", datasets.DATA_SETS)
def test_folders_and_archives(tmp_path, name):
  folder = tmp_path / "data" / "inner"
  folder.mkdir(parents=True)
  for file, content in _IMITATIONS[name][0].items():
    content = content.encode() if isinstance(content, str) else content
    (folder / file).write_bytes(content)
  _check(_config(name, tmp_path / "data"), name)
  with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
    for path in folder.iterdir():
      archive.write(path, f"inner/{path.name}")
    archive.writestr("__MACOSX/._ratings.csv", "x")
  _check(_config(name, tmp_path / "data.zip"), name)


def test_user_settings_override_detection(tmp_path):
  for file, content in _MOVIELENS.items():
    (tmp_path / file).write_text(content)
  config = _config("movielens-20m", tmp_path, split="leave_last", name="mine")
  assert (config.split, config.name) == ("leave_last", "mine")
  (tmp_path / "movies.csv").unlink()
  config = _config("movielens-20m", tmp_path)
  assert config.input.item_file is None and config.name == "movielens-20m"
  assert not config.input.columns.item_features
  (tmp_path / "ratings.csv").unlink()
  with pytest.raises(errors.DataError, match="holds no ratings.csv, which mov"):
    _config("movielens-20m", tmp_path)
  with pytest.raises(ValueError, match="--dataset takes one --input"):
    prepare.PrepareConfig(
      input=inputs.Input(paths=("a", "b")), output="x", dataset="mind"
    )


@pytest.mark.parametrize("split", ["random", "leave_last"])
def test_a_data_set_with_its_own_split_refuses_another(split):
  with pytest.raises(
    ValueError,
    match=f"--dataset lightgcn brings its own split.*--split {split}",
  ):
    prepare.PrepareConfig(
      input=inputs.Input(paths=("a",)),
      output="x",
      dataset="lightgcn",
      split=split,
    )


def test_a_flag_that_contradicts_the_data_set_is_named(tmp_path):
  (tmp_path / "behaviors.tsv").write_text(
    _IMITATIONS["mind"][0]["behaviors.tsv"]
  )
  with pytest.raises(
    settings.SettingsError, match="--dataset mind: --item_col"
  ):
    _config("mind", tmp_path, item="x")
