"""Runs pipelines.train and kills it after a step; see resume_test.

    python -m tests.pipelines.killed_train STEP [WORKER] -- flags of train

Only the worker of that index is killed.
"""

import json
import os
import signal
import sys

from pipelines import train
from pipelines.training import loop as training
from xir_tfrs.programs import main as program


def main() -> None:
  end = sys.argv.index("--")
  step, *worker = (int(argument) for argument in sys.argv[1:end])
  task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {})
  if not worker or worker == [task["index"]]:
    log_block = training.Loop._log_block

    def log_block_and_die(loop, *arguments):
      log_block(loop, *arguments)
      if loop._run.now >= step:
        os.kill(os.getpid(), signal.SIGKILL)

    training.Loop._log_block = log_block_and_die
  argv = [sys.argv[0], *sys.argv[end + 1 :]]
  sys.exit(
    program.run(train.TrainFlags, train.train, make=train._order, argv=argv)
  )


if __name__ == "__main__":
  main()
