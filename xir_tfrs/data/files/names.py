"""Guesses the role of columns by name: user_id, asin, unixReviewTime, ..."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Role -> tiers of names without case, spaces and underscores, most likely tier
# first. Names within a tier are equally likely.
_TIERS: dict[str, tuple[str, ...]] = {
  "user": (
    "userid user uid useridx userindex",
    "visitorid visitor customerid customer custid clientid memberid accountid"
    " reviewerid reviewer readerid playerid viewerid personid usersha1 cid",
    "sessionid session orderid invoiceno invoice basketid transactionid",
  ),
  "item": (
    "itemid item iid itemidx itemindex",
    "productid product movieid movie filmid articleid article asin bookid isbn"
    " book songid song trackid track artistid artist gameid game appid"
    " businessid venueid locationid poiid stockcode sku newsid videoid recipeid"
    " beerid hotelid courseid jobid pageid aid",
    "parentasin page url",
  ),
  "time": (
    "timestamp unixreviewtime unixtime time ts datetime",
    "eventtime createdat reviewtime ratedat viewedat purchasedat orderedat"
    " datetimestamp invoicedate orderdate eventdate tdat timecreated",
    "date day",
  ),
  "rating": ("rating stars score overall bookrating reviewscore", "label"),
  "event": ("event eventtype eventname action behavior behaviortype",),
  "key": ("id",),
  "feature": (
    "age gender sex zip country city price brand genre genres category"
    " categories tag tags year color colour weight quantity count comment"
    " description text",
  ),
  "item_title": ("title name itemtitle itemname booktitle movietitle",),
}
_MEANINGS = {
  role: {
    name: tier
    for tier, names in enumerate(tiers)
    for name in reversed(names.split())
  }
  for role, tiers in _TIERS.items()
}


def plain(name: str) -> str:
  """A name without case, spaces and punctuation."""
  return re.sub(r"[\W_]+", "", name.rpartition(".")[2]).lower()


def is_known(name: str) -> bool:
  """Whether a column name has a known meaning."""
  return any(plain(name) in names for names in _MEANINGS.values())


def guesses(role: str, columns: Iterable[str]) -> list[str]:
  """The most likely columns for a role; more than one means unsure."""
  tiers = _MEANINGS[role]
  found = [(tiers[plain(c)], c) for c in columns if plain(c) in tiers]
  best = min((tier for tier, _ in found), default=0)
  return [column for tier, column in found if tier == best]


def are_numbers(columns: Iterable[str]) -> bool:
  """Whether columns have numbers instead of names: 1, 2, 3, ..."""
  return all(name == str(k) for k, name in enumerate(columns, 1))


def matching(name: str, columns: Sequence[str]) -> str | None:
  """The column that equals `name` up to case, spaces and punctuation."""
  if name in columns:
    return name
  near = [c for c in columns if c.strip().lower() == name.strip().lower()]
  near = near or [c for c in columns if plain(c) == plain(name)]
  return near[0] if len(near) == 1 else None
