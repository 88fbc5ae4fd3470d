"""Where the process begins: `cri-shim` and `python -m cri_shim`."""

from __future__ import annotations

import os
import sys

from cri_shim.cli.verbs import run


def main() -> int:
    """Run the command line of this process and return its exit code."""
    return run(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
