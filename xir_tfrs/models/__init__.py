"""Models: towers, and the two of them with a task."""

from xir_tfrs.models.towers import Tower
from xir_tfrs.models.two_tower import TwoTower

__all__ = ["Tower", "TwoTower"]
