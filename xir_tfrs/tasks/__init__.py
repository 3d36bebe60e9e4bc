"""Tasks: one retrieval method each, a stand-in for `tfrs.tasks.Retrieval`."""

from xir_tfrs import keras  # noqa: F401  Keras 2, or an error.
from xir_tfrs.tasks.bir import BIRRetrieval
from xir_tfrs.tasks.corr import CoRRRetrieval
from xir_tfrs.tasks.cross_batch import CrossBatchRetrieval
from xir_tfrs.tasks.full_softmax import FullSoftmaxRetrieval
from xir_tfrs.tasks.mixed_negative import MixedNegativeRetrieval
from xir_tfrs.tasks.retrieval import RetrievalTask
from xir_tfrs.tasks.sampled_softmax import SampledSoftmaxRetrieval
from xir_tfrs.tasks.streaming_frequency import StreamingFrequencyRetrieval
from xir_tfrs.tasks.xir import XIRRetrieval

__all__ = [
  "BIRRetrieval",
  "CoRRRetrieval",
  "CrossBatchRetrieval",
  "FullSoftmaxRetrieval",
  "MixedNegativeRetrieval",
  "RetrievalTask",
  "SampledSoftmaxRetrieval",
  "StreamingFrequencyRetrieval",
  "XIRRetrieval",
]


def __dir__() -> list[str]:
  return list(__all__)
