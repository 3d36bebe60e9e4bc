"""Tasks: one retrieval method each, a stand-in for `tfrs.tasks.Retrieval`."""

from xir_tfrs.tasks.bir import BIRRetrieval
from xir_tfrs.tasks.retrieval import RetrievalTask
from xir_tfrs.tasks.sampled_softmax import SampledSoftmaxRetrieval
from xir_tfrs.tasks.xir import XIRRetrieval

__all__ = [
  "BIRRetrieval",
  "RetrievalTask",
  "SampledSoftmaxRetrieval",
  "XIRRetrieval",
]
