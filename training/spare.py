"""A worker to be: `python -m training.spare FOLDER`, kept by an agent while jobs train on its node.

It imports what the worker in that folder needs, and waits for one line on its standard input: which worker it is to be.
So the next attempt of a job begins without the seconds that importing torch takes. It ends when its agent does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Imports, waits, and becomes the worker that it is told to be."""
    from training.contract import read_task
    from training.run.loop import preload

    preload(read_task(Path(sys.argv[1])))
    line = sys.stdin.readline()
    if line.endswith("\n"):
        become(json.loads(line))


def become(told: dict[str, Any]) -> None:
    """Is the worker of `folder` with just the variables `environ`, as if it had been started as one."""
    import torch

    from training.process import run
    from training.worker import work

    os.environ.clear()
    os.environ.update(told["environ"])
    folder = Path(told["folder"])
    os.chdir(folder)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    # OpenMP has read its variable long ago.
    torch.set_num_threads(int(told["environ"].get("OMP_NUM_THREADS", 1)))
    run(work, [str(folder)])


if __name__ == "__main__":
    main()
