"""Forms of the loss. To add one: a file here, and a row in `FORMS`.

A form is an object: a frozen dataclass of its settings, whose `loss` is the
formula of a row (`base.Form`). Tasks take it as `loss`, by name, as a dict
such as `{"name": "psl", "tau_star": 0.05}`, or as the object.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from xir_tfrs.ops.forms.base import (
  CATALOGUE,
  RANKER,
  RESAMPLED,
  SAMPLED,
  Form,
  Rows,
)
from xir_tfrs.ops.forms.bilateral import BilateralSoftmax
from xir_tfrs.ops.forms.cross_entropy import CrossEntropy, Decoupled
from xir_tfrs.ops.forms.generalized_cross_entropy import GeneralizedCrossEntropy
from xir_tfrs.ops.forms.logq_corrected import LogQCorrected
from xir_tfrs.ops.forms.pairwise import PairwiseSoftmax
from xir_tfrs.ops.forms.softmax_at_k import SoftmaxAtK

FORMS: dict[str, type[Form]] = {
  form.name: form
  for form in (
    CrossEntropy,
    Decoupled,
    GeneralizedCrossEntropy,
    LogQCorrected,
    BilateralSoftmax,
    PairwiseSoftmax,
    SoftmaxAtK,
  )
}

__all__ = [
  "CATALOGUE",
  "FORMS",
  "RANKER",
  "RESAMPLED",
  "SAMPLED",
  "BilateralSoftmax",
  "CrossEntropy",
  "Decoupled",
  "Form",
  "GeneralizedCrossEntropy",
  "LogQCorrected",
  "PairwiseSoftmax",
  "Rows",
  "SoftmaxAtK",
  "build",
  "names_for",
]


def build(loss: str | Mapping[str, Any] | Form) -> Form:
  """The form for a name, for a name with settings, or the form itself.

  Args:
    loss: A key of `FORMS`; or a dict with that as its `name`, and settings,
      as `Form.get_config` returns it; or a form.

  Raises:
    ValueError: There is no such form or setting, or a setting is out of range.

  Examples:
    >>> xir.ops.forms.build({"name": "psl", "tau_star": 0.1}).tau_star
    0.1
    >>> xir.ops.forms.build("psl") == xir.ops.forms.PairwiseSoftmax()
    True
  """
  if isinstance(loss, Form):
    return loss
  settings = dict(loss) if isinstance(loss, Mapping) else {"name": loss}
  name = settings.pop("name", None)
  if not isinstance(name, str) or name not in FORMS:
    raise ValueError(
      f"`loss` must name one of {', '.join(FORMS)}. "
      f"Received: `loss` = {loss!r}."
    )
  known = [field.name for field in dataclasses.fields(FORMS[name])]
  unknown = sorted(set(settings) - set(known))
  if unknown:
    raise ValueError(
      f"The loss {name!r} has no setting {unknown[0]!r}. "
      f"It has: {', '.join(known) or 'none'}."
    )
  return FORMS[name](**settings)


def names_for(pool_kind: str) -> list[str]:
  """Names of the forms that suit a kind of pool, such as `SAMPLED`.

  Examples:
    >>> xir.ops.forms.names_for(xir.ops.forms.RANKER)
    ['cross_entropy']
  """
  return [name for name, form in FORMS.items() if pool_kind in form.suits]
