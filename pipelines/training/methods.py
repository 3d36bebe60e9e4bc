"""The table of methods, without TensorFlow, because flags need it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import xir_tfrs as xir

if TYPE_CHECKING:
  from xir_tfrs import tasks


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of `TASKS`: a task and the names of its settings.

  Arguments of the task are set by name: from the data (`candidate_counts`), the
  model (`candidate_encoder`), the setting of that name, or --task_arguments. A
  setting of None keeps the default of the argument.

  Attributes:
    class_name: The class in `xir_tfrs.tasks`.
    title: Name of the method in tables and figures; "" for its own name.
    cosine_temperature: Default temperature for cosine scores.
    log_q: Default of `--log_q`; None if the proposal is part of the method.
    loss: Default of `--loss`.
    settings: Name of the setting, for arguments with another name.
  """

  class_name: str
  title: str = ""
  cosine_temperature: float = 0.1
  log_q: str | None = "popularity"
  loss: str = "generalized_cross_entropy"
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def task(self) -> type[tasks.RetrievalTask]:
    """The class; imports TensorFlow on first use."""
    return getattr(xir.tasks, self.class_name)


TASKS: dict[str, Method] = {
  "ssl": Method("SampledSoftmaxRetrieval", "SSL", log_q="none"),
  "ssl_pop": Method("SampledSoftmaxRetrieval", "SSL-Pop"),
  "g_tower": Method(
    "StreamingFrequencyRetrieval",
    "G-Tower",
    log_q=None,
    settings={"learning_rate": "frequency_learning_rate"},
  ),
  "mns": Method("MixedNegativeRetrieval", "MNS"),
  "cbns": Method("CrossBatchRetrieval", "CBNS"),
  "full_softmax": Method(
    "FullSoftmaxRetrieval", "full softmax", loss="cross_entropy"
  ),
  # Draws favour high scores, which sharpens the loss: twice the temperature.
  "bir": Method("BIRRetrieval", "BIR", cosine_temperature=0.2),
  "xir": Method("XIRRetrieval", "XIR", cosine_temperature=0.2),
  "corr": Method(
    "CoRRRetrieval",
    "CoRR",
    log_q=None,
    loss="cross_entropy",
    settings={"sampler": "negative_sampler"},
  ),
}
