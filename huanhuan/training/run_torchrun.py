"""torchrun that says what its processes said when they failed, and nothing of its own.

python -m huanhuan.training.run_torchrun [the options of torchrun] -m huanhuan.training.run_xtuner …
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huanhuan.training.run_xtuner import DEBUG, TOLD, TRACEBACK, lines_of, tell


def main() -> None:
    """Run torchrun on this process's arguments; after an error one line each and the exit code TOLD."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if os.environ.get(DEBUG):
        run.main()
        return
    log = logging.getLogger("torch.distributed.elastic")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    try:
        run.run(run.parse_args(None))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        tell(failure_lines(error.failures.values()))
        sys.exit(TOLD)
    except Exception as error:  # a port in use, a master that does not answer, and the like
        tell(lines_of(error))
        sys.exit(TOLD)


def failure_lines(failures: Iterable[Any]) -> list[str]:
    """The lines that torch's ``ProcessFailure`` records hold, each error once.

    Where none holds any, how the processes ended: one was killed, or died before it could say why.
    """
    failures = sorted(failures, key=lambda each: each.local_rank)
    told: dict[str, str] = {}
    for each in failures:
        for line in each.message.splitlines() if Path(each.error_file).is_file() else ():
            # Every process that met the same error has kept a traceback of its own.
            told.setdefault(line.partition(TRACEBACK)[0], line)
    if told:
        return list(told.values())
    # torchrun stops the others with SIGTERM as soon as one is gone.
    first = min(failures, key=lambda each: each.exitcode == -signal.SIGTERM)
    return [f"进程 / process {first.local_rank}: {ending(first.exitcode)}"]


def ending(code: int) -> str:
    """How a process ended, by its exit code.

    >>> ending(2)
    '退出码 2 / exit code 2'
    >>> ending(-11)
    '被信号 SIGSEGV 终止 / ended by SIGSEGV'
    """
    if code >= 0:
        return f"退出码 {code} / exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    if name == "SIGKILL":
        return "被信号 SIGKILL 终止，可能是内存不足 / ended by SIGKILL, perhaps for lack of memory"
    return f"被信号 {name} 终止 / ended by {name}"


if __name__ == "__main__":
    main()
