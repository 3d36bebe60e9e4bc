"""What a training loss estimates, measured on the model that is trained."""

from xir_tfrs.diagnostics.estimator import EstimatorProbe

__all__ = ["EstimatorProbe"]
