"""``python -m numba_swap``, the same as the command ``numba-swap``."""

import sys

from numba_swap.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
