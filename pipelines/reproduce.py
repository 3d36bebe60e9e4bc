r"""Trains the models behind the published tables and figures.

    xir-tfrs reproduce --experiment table2 --data data/gowalla \
      --output runs/reproduce --seeds 0,1

writes one folder per run to OUTPUT/runs, and OUTPUT/EXPERIMENT_DATA.json with
settings, curves, metrics, times and paired tests of all finished runs of the
experiment. If it was interrupted or killed, run the same command again to
continue. Runs that several experiments share are trained once.

    xir-tfrs reproduce --report --output runs/reproduce

writes tables (Markdown) and figures (PNG) for every such file.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import logging

from pipelines.reproduction import experiments
from xir_tfrs.programs import main, settings

if TYPE_CHECKING:
  from pipelines.reproduction import runs


@dataclasses.dataclass(frozen=True)
class ReproduceConfig(settings.Settings):
  """Settings of a reproduction."""

  output: str = settings.setting("Directory for runs and results.")
  experiment: str | None = settings.setting(
    "Experiment to run.", None, choices=tuple(experiments.EXPERIMENTS)
  )
  data: str | None = settings.setting(
    "Directory written by xir-tfrs prepare.", None
  )
  seeds: tuple[int, ...] = settings.setting(
    "Seeds of the models.", (0,), minimum=0
  )
  epochs: int | None = settings.setting(
    "Epochs of each run. Not given: as published.", None, minimum=1
  )
  cases: tuple[str, ...] = settings.setting(
    "Only these cases of the experiment. Not given: all.", ()
  )
  jobs: int = settings.setting("Runs at a time.", 1, minimum=1)
  threads: int = settings.setting(
    "Threads per run; 0 uses all cores.", 0, minimum=0
  )
  report: bool = settings.setting(
    "Write tables and figures of the results in --output; train nothing.", False
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    needed = {"--experiment": self.experiment, "--data": self.data}
    for name, value in needed.items():
      if self.report and value:
        raise settings.SettingsError(
          f"{name} is for runs; --report writes tables of all results in "
          "--output."
        )
      if not self.report and not value:
        raise settings.SettingsError(f"{name} is required, or --report.")


def planned(
  experiment: str,
  data: str,
  output: str,
  *,
  seeds: tuple[int, ...] = (0,),
  epochs: int | None = None,
  cases: tuple[str, ...] | None = None,
) -> list[runs.Run]:
  """Returns the runs of an experiment, seed by seed.

  Args:
    experiment: Name in `EXPERIMENTS`.
    data: Directory written by `pipelines.prepare`.
    output: Directory for the runs.
    seeds: Seeds of the models.
    epochs: Epochs per run; by default those of the experiment.
    cases: Names of the cases; None for all.

  Raises:
    SettingsError: A case is unknown.
  """
  # Imported here, because TensorFlow is slow: --help does not need it.
  from pipelines.reproduction import results, runs

  plan = experiments.EXPERIMENTS[experiment]
  known = [case.name for case in plan.cases]
  for name in cases or ():
    if name not in known:
      raise settings.SettingsError(
        f"--cases must be among {', '.join(known)}. Received: {name!r}."
      )
  return [
    runs.Run(
      case=case,
      seed=seed,
      data=data,
      folder=f"{results.run_folder(output, data, case)}-seed{seed}",
      epochs=epochs or case.settings.get("epochs", plan.epochs),
      split=plan.split,
    )
    for seed in seeds
    for case in plan.cases
    if not cases or case.name in cases
  ]


def carry_out(
  plan: list[runs.Run],
  *,
  jobs: int = 1,
  threads: int = 0,
  after_each: Callable[[], object] = lambda: None,
) -> None:
  """Trains the unfinished runs, each in its own process.

  Args:
    plan: The runs.
    jobs: Runs at a time.
    threads: Threads per run; 0 uses all cores.
    after_each: Called after each run.
  """
  from pipelines.reproduction import runs

  left = [run for run in plan if not runs.is_finished(run)]
  print(f"{len(plan):,} runs, {len(plan) - len(left):,} of them finished")
  with concurrent.futures.ProcessPoolExecutor(
    jobs,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(threads,),
    # One process per run, because memory is measured per process.
    max_tasks_per_child=1,
  ) as pool:
    waiting = {pool.submit(runs.carry_out, run, jobs == 1): run for run in left}
    try:
      for done in concurrent.futures.as_completed(waiting):
        last = done.result().curve[-1]
        print(
          f"{waiting[done].folder}: epoch {last['epoch']}, "
          f"recall@20 {last['recall@20']:.4f}, ndcg@20 {last['ndcg@20']:.4f}"
        )
        after_each()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _start_worker(threads: int) -> None:
  import tensorflow as tf  # Only import it after the worker has started.

  threading.Thread(target=_stop_with_parent, daemon=True).start()
  logging.set_verbosity(logging.ERROR)
  if threads:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _stop_with_parent() -> None:
  """Stops the run of a worker whose parent was killed.

  Otherwise it would write to the folder that the next start continues.
  """
  multiprocessing.parent_process().join()
  os.kill(os.getpid(), signal.SIGTERM)


def run(config: ReproduceConfig) -> int:
  """Runs an experiment, or reports on all of them."""
  from pipelines.reproduction import report, results, runs

  if config.report:
    for path in report.write(config.output):
      print(f"Written to {path}")
    return 0
  plan = planned(
    config.experiment,
    config.data,
    config.output,
    seeds=config.seeds,
    epochs=config.epochs,
    cases=config.cases,
  )

  def collect():
    return results.collect(
      config.experiment, config.data, config.output, config.epochs
    )

  try:
    carry_out(
      plan, jobs=config.jobs, threads=config.threads, after_each=collect
    )
  except (runs.Interrupted, KeyboardInterrupt):
    print("Interrupted; run the same command to continue.", file=sys.stderr)
    return 128 + signal.SIGINT
  except concurrent.futures.process.BrokenProcessPool as error:
    raise main.ProgramError(
      "the process of a run was killed, perhaps because memory ran out. Run "
      "the same command to continue, perhaps with fewer --jobs."
    ) from error
  print(f"Written to {collect()}")
  return 0


if __name__ == "__main__":
  sys.exit(main.run(ReproduceConfig, run))
