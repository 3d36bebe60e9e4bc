"""Models: towers of ids and histories, a ranker, two towers with a task."""

from xir_tfrs import keras  # noqa: F401  Keras 2, or an error.
from xir_tfrs.models import cold_start
from xir_tfrs.models.history_tower import HistoryTower
from xir_tfrs.models.ranker import Ranker
from xir_tfrs.models.towers import Tower
from xir_tfrs.models.two_tower import TwoTower

__all__ = ["HistoryTower", "Ranker", "Tower", "TwoTower", "cold_start"]


def __dir__() -> list[str]:
  return list(__all__)
