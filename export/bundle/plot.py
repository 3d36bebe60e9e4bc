"""Plots the tuning of ScaNN's settings."""

from __future__ import annotations

import pathlib

from xir_tfrs.serving import manifest

FILE_NAME = "recall_latency.png"


def draw(about: manifest.Index, path: pathlib.Path) -> bool:
  """Draws recall against latency; returns False if Matplotlib is missing.

  Args:
    about: The measurements of the tuning.
    path: The PNG to write.
  """
  try:
    from matplotlib import figure
  except ImportError:
    return False
  chosen = about.settings
  canvas = figure.Figure(figsize=(6, 4), layout="constrained")
  axes = canvas.add_subplot()
  for point in about.curve:
    names = ("num_leaves_to_search", "num_reorder")
    is_chosen = all(point[name] == chosen[name] for name in names)
    axes.scatter(
      point["milliseconds"],
      point["recall"],
      color="C1" if is_chosen else "C0",
      zorder=2,
    )
    axes.annotate(
      f"{point[names[0]]} / {point[names[1]]}",
      (point["milliseconds"], point["recall"]),
      textcoords="offset points",
      xytext=(4, -9),
      fontsize=7,
    )
  axes.axhline(about.target_recall, color="0.6", linewidth=1, zorder=1)
  axes.set_xlabel("ms per query (leaves searched / re-scored)")
  axes.set_ylabel("recall@10")
  axes.set_title(f"ScaNN, {chosen['num_leaves']} leaves; chosen in orange")
  canvas.savefig(path, dpi=120)
  return True
