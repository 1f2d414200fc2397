"""XTuner's own training script in this process, with one-line errors and without a GPU where there is none.

python -m huanhuan.training.run_xtuner RECIPE [the options of `xtuner train`]
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``xtuner.tools.train`` on this process's arguments; exit code 1 after an error."""
    import torch
    from xtuner.tools import train

    from huanhuan.cli import error_lines
    from huanhuan.errors import UserError

    if not torch.cuda.is_available():
        # mmengine's launcher calls this for every backend, gloo included.
        torch.cuda.set_device = lambda device: None
    try:
        train.main()
    except UserError as error:
        if os.environ.get("HUANHUAN_DEBUG"):
            raise
        for line in error_lines(error):
            print(f"错误 / error: {line}", file=sys.stderr, flush=True)
        # Other processes of the run may be waiting for this one in a collective: do not clean up, go.
        os._exit(1)


if __name__ == "__main__":
    main()
