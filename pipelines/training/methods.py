"""The methods by name. TensorFlow is not imported: flags need this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import xir_tfrs as xir

if TYPE_CHECKING:
  from xir_tfrs import tasks


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of `TASKS`: a task, and what a run calls its settings.

  Arguments of the task are filled by name: from the data (`candidate_counts`)
  and the model (`candidate_encoder`), from the setting of that name, or from
  --task_arguments. A setting of None leaves the argument at its default.

  Attributes:
    class_name: The class, in `xir_tfrs.tasks`.
    title: What tables and figures call the method; empty: its name.
    cosine_temperature: Temperature for cosine scores, where none is given.
    log_q: Where the proposal comes from, where `--log_q` is not given; None:
      it is part of the method.
    loss: Form of the loss, where `--loss` is not given.
    settings: Name of the setting, for arguments that are called otherwise.
  """

  class_name: str
  title: str = ""
  cosine_temperature: float = 0.1
  log_q: str | None = "popularity"
  loss: str = "generalized_cross_entropy"
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def task(self) -> type[tasks.RetrievalTask]:
    """The class; the first use imports TensorFlow."""
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
  # Draws that favour high scores sharpen the loss: twice the temperature.
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
