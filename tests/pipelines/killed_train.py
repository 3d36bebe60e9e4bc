"""pipelines.train, killed by force after a step; see resume_test.

    python -m tests.pipelines.killed_train STEP [WORKER] -- flags of train

Only the worker of that index is killed.
"""

import json
import os
import signal
import sys

from absl import app

from pipelines import train
from pipelines.training import loop as training


def main() -> None:
  end = sys.argv.index("--")
  step, *worker = (int(argument) for argument in sys.argv[1:end])
  task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {})
  if not worker or worker == [task["index"]]:
    log_block = training._Run._log_block

    def log_block_and_die(run, *arguments):
      log_block(run, *arguments)
      if run._now >= step:
        os.kill(os.getpid(), signal.SIGKILL)

    training._Run._log_block = log_block_and_die
  train._define_flags()
  app.run(train.main, argv=[sys.argv[0], *sys.argv[end + 1 :]])


if __name__ == "__main__":
  main()
