r"""Compares the loss of each method with the full softmax.

    python -m benchmarks.estimator_bias
    python -m benchmarks.estimator_bias --data DATA

trains a model with SSL-Pop for a few epochs, on a directory of
`pipelines.prepare` or on generated data. Then, with fixed weights and the same
training rows, `xir_tfrs.diagnostics.EstimatorProbe` compares the loss of every
method, at several batch sizes, with the full softmax: bias and deviation of the
gradient, KL of the weights, and the same for the full softmax at half the
temperature, which BIR and XIR approach. All methods use the temperature of the
training.

MNS adds as many uniform candidates as there are rows in a batch, the cache of
XIR is as large as a batch, the bank of CBNS twice as large. If a bank or a
cache needs it, some batches run first. The comparison favours CBNS: its bank is
never stale, because nothing is trained.

Prints a table per metric, and writes the tables and a plot, with --data to
`benchmarks/results/estimator_bias.json` and `.png`. docs/estimators.md shows
some tables.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

import xir_tfrs as xir
from benchmarks import harness
from pipelines import prepare
from pipelines.readers import inputs
from pipelines.training import build as model
from pipelines.training import config as configs
from pipelines.training import methods
from xir_tfrs.data import datasets, directory, records, schema

_SIZES = {
  "epochs": (3, "Epochs of SSL-Pop."),
  "dim": (64, "Size of the embeddings."),
  "train_batch": (2048, "Rows per training step."),
  "smallest_batch": (256, "Smallest batch."),
  "largest_batch": (4096, "Largest batch; each is twice the previous one."),
  "probe": (64, "Number of probe rows."),
  "repetitions": (16, "Batches per probe row; even."),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A method in the comparison.

  Attributes:
    task: Its name in `pipelines.methods.TASKS`.
    settings: Its own settings.
    warmup_steps: Batches before the comparison.
    warmup_epochs: Passes over the training rows before the comparison.
  """

  task: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  warmup_steps: int = 0
  warmup_epochs: int = 0


CASES = {
  "SSL": Case("ssl"),
  "SSL-Pop": Case("ssl_pop"),
  "SSL-Pop corrected": Case("ssl_pop", {"loss": "logq_corrected"}),
  "G-Tower": Case("g_tower", warmup_epochs=1),
  "MNS": Case("mns"),
  "CBNS": Case("cbns", {"warmup_steps": 0}, warmup_steps=4),
  "BIR": Case("bir"),
  "XIR": Case("xir", warmup_steps=100),
}

# Metric -> title of its table.
FIGURES = {
  "bias": "Bias of the gradient / length of the exact one",
  "deviation": "Deviation of one batch's gradient / length of the exact one",
  "cosine": "Cosine of the mean gradient and the exact one",
  "bias_half_temperature": "Bias against half the temperature",
  "cosine_half_temperature": "Cosine against half the temperature",
  "sharpness": "Sharpness: 1 a softmax of s, 2 of 2 s",
  "positive_weight": "Weight of the positive",
  "kl_weights": "KL of the loss's weights to the full softmax, nats",
  "kl_weights_half_temperature": "KL of them to half the temperature, nats",
  "kl_draws": "KL of the draws to the full softmax, nats",
  "effective_sample_size": "Effective sample size of the batch",
  "cache_effective_sample_size": "Effective sample size of the cache",
  "positive_draws": "Share of the positive among the draws",
  "pool_mass": "Share of the full softmax on a step's candidates",
  "cache_mass": "Share of the full softmax on the cache",
}
_PLOTTED = (
  "bias",
  "deviation",
  "bias_half_temperature",
  "sharpness",
)


def run(
  sizes: Mapping[str, int], data: str, cases: Mapping[str, Case] = CASES
) -> dict[str, dict[str, dict[str, float]]]:
  """Trains and compares; `sizes` has the keys of `_SIZES`.

  Args:
    sizes: The sizes.
    data: Directory written by `pipelines.prepare`.
    cases: Methods by name.

  Returns:
    method -> batch size -> the result of `EstimatorProbe.measure`.
  """
  rows = records.read_interactions(data, "train")
  build = _Builder(
    configs.from_preset(
      preset="plain",
      data=data,
      task="ssl_pop",
      dim=sizes["dim"],
      global_batch_size=sizes["train_batch"],
      temperature=methods.TASKS["ssl_pop"].cosine_temperature,
    )
  )
  trained = build("ssl_pop", {})
  _train(trained, rows, build.config, sizes["epochs"])
  batch_sizes = [sizes["smallest_batch"]]
  while 2 * batch_sizes[-1] <= sizes["largest_batch"]:
    batch_sizes.append(2 * batch_sizes[-1])
  results: dict[str, dict[str, dict[str, float]]] = {}
  for name, case in cases.items():
    for batch in batch_sizes:
      compared = build(case.task, _of_batch(batch) | case.settings)
      for tower in ("query_tower", "candidate_tower"):
        getattr(compared, tower).set_weights(
          getattr(trained, tower).get_weights()
        )
      epochs = len(rows["query_id"]) * case.warmup_epochs
      probe = xir.diagnostics.EstimatorProbe(
        compared,
        rows,
        probe_size=sizes["probe"],
        batch_size=batch,
        repetitions=sizes["repetitions"],
        warmup_steps=case.warmup_steps + epochs // batch,
      )
      found = probe.measure()
      results.setdefault(name, {})[str(batch)] = found
      print(
        f"{name}, batch {batch:,}: bias {found['bias']:.3f}, "
        f"deviation {found['deviation']:.3f}",
        flush=True,
      )
  return results


class _Builder:
  """Makes models for the same data, with initial weights."""

  def __init__(self, config: configs.TrainConfig) -> None:
    self.config = config
    data = directory.DataDir(config.data)
    self._parts = data.schema, data.queries, data.candidates

  def __call__(
    self, task: str, settings: Mapping[str, Any]
  ) -> xir.models.TwoTower:
    config = dataclasses.replace(self.config, task=task, **settings)
    return model.build(config, *self._parts)


def _of_batch(batch: int) -> dict[str, int]:
  """Settings that depend on the batch size."""
  return {
    "global_batch_size": batch,
    "num_uniform": batch,
    "cache_size": batch,
    "bank_size": 2 * batch,
  }


def _train(trained, rows, config, epochs) -> None:
  num_rows, batch = len(rows["query_id"]), config.global_batch_size
  trained.compile(optimizer=model.optimizer(config, num_rows / batch))
  trained.fit(
    datasets.training_dataset(rows, global_batch_size=batch, seed=config.seed),
    steps_per_epoch=datasets.steps_to_finish(num_rows, batch, epochs),
    verbose=0,
  )


def table(results: Mapping[str, Any], figure: str) -> list[tuple[str, ...]]:
  """Header and rows: methods down, batch sizes across."""
  batches = list(next(iter(results.values())))
  rows = [("", *(f"{int(batch):,}" for batch in batches))]
  for name, found in results.items():
    if figure in found[batches[0]]:
      rows.append((name, *(f"{found[b][figure]:.3f}" for b in batches)))
  return rows


def markdown(results: Mapping[str, Any], figure: str) -> str:
  """A table for docs/estimators.md."""
  header, *rows = (
    "| " + " | ".join(row) + " |" for row in table(results, figure)
  )
  return "\n".join([header, "|---" * header.count("| ") + "|", *rows])


def print_tables(results: Mapping[str, Any]) -> None:
  """Prints a table per metric that any method has."""
  for figure, title in FIGURES.items():
    header, *rows = table(results, figure)
    if rows:
      harness.print_table(f"\n{title}", header, rows)


def plot(results: Mapping[str, Any], path: pathlib.Path, title: str) -> None:
  """Draws `_PLOTTED` against the batch size."""
  # Imported here, because everything else runs without it.
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, panels = pyplot.subplots(
    2, 2, figsize=(10, 7.5), layout="constrained"
  )
  for panel, name in zip(panels.flat, _PLOTTED, strict=True):
    _draw(panel, results, name)
  figure.legend(
    *panels.flat[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
  )
  figure.suptitle(title)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _draw(panel, results, name) -> None:
  for index, (method, found) in enumerate(results.items()):
    panel.plot(
      [int(batch) for batch in found],
      [readout[name] for readout in found.values()],
      color=f"C{index}",
      marker="os^vDPXh"[index % 8],
      # Highlights BIR and XIR.
      linestyle="-" if "IR" in method else "--",
      label=method,
    )
  batches = [int(batch) for batch in next(iter(results.values()))]
  panel.set_xscale("log", base=2)
  panel.set_xticks(batches, [f"{batch:,}" for batch in batches])
  panel.set_ylim(bottom=0)
  panel.set_title(FIGURES[name], fontsize="medium")
  panel.set_xlabel("rows per batch")
  panel.grid(alpha=0.3)


def generate(directory: str) -> None:
  """Prepares generated long-tailed data in an empty directory."""
  prepare.prepare(
    prepare.PrepareConfig(
      input=inputs.Input(format="synthetic"),
      output=directory,
      overwrite=True,
      validation_fraction=0,
    )
  )


def main(argv: Sequence[str]) -> None:
  del argv
  sizes = harness.given(_SIZES)
  data, name = flags.FLAGS.data, "estimator_bias"
  with tempfile.TemporaryDirectory() as directory:
    if not data:
      data, name = directory, "estimator_bias_generated"
      generate(directory)
    described = schema.Schema.load(data)
    results = run(sizes, data)
  print_tables(results)
  what = {
    "data": described.name,
    "queries": described.num_queries,
    "candidates": described.num_candidates,
    "train_rows": described.rows["train"],
  }
  path = harness.write_json(flags.FLAGS.output, name, sizes | what, results)
  picture = path.with_suffix(".png")
  plot(
    results,
    picture,
    f"{what['data']}, {what['candidates']:,} candidates, "
    f"{sizes['epochs']} epochs of SSL-Pop",
  )
  print(f"\nWritten to {path} and {picture}")


if __name__ == "__main__":
  harness.define_flags(_SIZES)
  flags.DEFINE_string("data", None, "Directory written by pipelines.prepare.")
  app.run(main)
