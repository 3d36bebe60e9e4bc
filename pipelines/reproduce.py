r"""Trains and ranks the grids behind the published tables and figures.

    python -m pipelines.reproduce --experiment table2 --data data/gowalla \
      --output runs/reproduce --seeds 0,1

leaves a folder per run in OUTPUT/runs, and OUTPUT/EXPERIMENT_DATA.json with
settings, curves, metrics, times and paired tests of all finished runs of the
experiment. What was interrupted, by Ctrl-C or by force, goes on where it
stopped when the same command is given again; runs that experiments have in
common are made once.

    python -m pipelines.reproduce --report --output runs/reproduce

makes tables (Markdown) and figures (PNG) of every such file.
"""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import sys
import threading

from absl import app, flags, logging

from pipelines.reproduction import experiments, report, results, runs


def planned(
  experiment: str,
  data: str,
  output: str,
  *,
  seeds: tuple[int, ...] = (0,),
  epochs: int | None = None,
  cases: tuple[str, ...] | None = None,
) -> list[runs.Run]:
  """The runs of an experiment, seed by seed.

  Args:
    experiment: Name in `EXPERIMENTS`.
    data: Directory made by `pipelines.prepare`.
    output: Where runs are kept.
    seeds: Seeds of the models.
    epochs: Length of a run; None: what the experiment says.
    cases: Names of the cases wanted; None: all.

  Raises:
    ValueError: An unknown experiment or case.
  """
  if experiment not in experiments.EXPERIMENTS:
    raise ValueError(
      f"--experiment must be one of {', '.join(experiments.EXPERIMENTS)}. "
      f"Received: {experiment!r}."
    )
  plan = experiments.EXPERIMENTS[experiment]
  known = [case.name for case in plan.cases]
  for name in cases or ():
    if name not in known:
      raise ValueError(
        f"--cases must be of {', '.join(known)}. Received: {name!r}."
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
  plan: list[runs.Run], *, jobs: int = 1, threads: int = 0, after_each=None
) -> None:
  """Carries out what is not finished, each run in a process of its own.

  Args:
    plan: The runs.
    jobs: Runs at a time.
    threads: Of each; 0: as many as there are cores.
    after_each: Called without arguments after each run.
  """
  left = [run for run in plan if not runs.is_finished(run)]
  print(f"{len(plan):,} runs, {len(plan) - len(left):,} of them finished")
  with concurrent.futures.ProcessPoolExecutor(
    jobs,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(threads,),
    # Memory is measured per process.
    max_tasks_per_child=1,
  ) as pool:
    waiting = {pool.submit(runs.carry_out, run, jobs == 1): run for run in left}
    try:
      for done in concurrent.futures.as_completed(waiting):
        last = done.result()["curve"][-1]
        print(
          f"{waiting[done].folder}: epoch {last['epoch']}, "
          f"recall@20 {last['recall@20']:.4f}, ndcg@20 {last['ndcg@20']:.4f}",
          flush=True,
        )
        if after_each is not None:
          after_each()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _start_worker(threads: int) -> None:
  import tensorflow as tf  # Not before a worker has started.

  threading.Thread(target=_stop_with_parent, daemon=True).start()
  logging.set_verbosity(logging.ERROR)
  if threads:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _stop_with_parent() -> None:
  """Stops the run of a worker whose parent was killed.

  Or it would write to the folder that the next start goes on with.
  """
  multiprocessing.parent_process().join()
  os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    print(f"Not a flag: {argv[1]!r}; see --help.", file=sys.stderr)
    return 2
  given = flags.FLAGS
  try:
    if given.report:
      for path in report.write(given.output):
        print(f"Written to {path}")
      return 0
    if not given.data or not given.experiment:
      raise ValueError("--experiment and --data are needed, or --report.")
    plan = planned(
      given.experiment,
      given.data,
      given.output,
      seeds=tuple(int(seed) for seed in given.seeds),
      epochs=given.epochs,
      cases=tuple(given.cases),
    )
    carry_out(
      plan,
      jobs=given.jobs,
      threads=given.threads,
      after_each=lambda: results.collect(
        given.experiment, given.data, given.output, given.epochs
      ),
    )
    path = results.collect(
      given.experiment, given.data, given.output, given.epochs
    )
  except (runs.Interrupted, KeyboardInterrupt):
    print("Interrupted; the same command goes on.", file=sys.stderr)
    return 130
  except concurrent.futures.process.BrokenProcessPool:
    print(
      "Error: the process of a run was killed, perhaps for want of memory; the "
      "same command goes on, with fewer --jobs if need be.",
      file=sys.stderr,
    )
    return 1
  except (ValueError, OSError) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  print(f"Written to {path}")
  return 0


def _define_flags() -> None:
  flags.DEFINE_enum(
    "experiment", None, list(experiments.EXPERIMENTS), "What to run."
  )
  flags.DEFINE_string("data", None, "Directory made by pipelines.prepare.")
  flags.DEFINE_string("output", None, "Where runs and results are kept.")
  flags.DEFINE_list("seeds", ["0"], "Seeds of the models.")
  flags.DEFINE_integer("epochs", None, "Of each run; default: as published.")
  flags.DEFINE_list("cases", [], "Only these of the experiment's cases.")
  flags.DEFINE_integer("jobs", 1, "Runs at a time.")
  flags.DEFINE_integer("threads", 0, "Threads of each run; 0: all cores.")
  flags.DEFINE_bool("report", False, "Make tables and figures of what is there")
  flags.mark_flag_as_required("output")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
