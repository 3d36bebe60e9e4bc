"""Small prepared data sets for the tests of the programs."""

from pipelines import prepare
from pipelines.readers import inputs


def prepare_synthetic(
  output, *, validation_fraction=0.0, num_buckets=None, **sizes
):
  """Prepares generated data; `sizes` are those of `SyntheticConfig`."""
  prepare.prepare(
    prepare.PrepareConfig(
      input=inputs.Input(
        format="synthetic", synthetic=inputs.SyntheticConfig(**sizes)
      ),
      output=output,
      validation_fraction=validation_fraction,
      num_buckets=num_buckets,
    )
  )
  return output
