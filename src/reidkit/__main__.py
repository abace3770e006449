"""`python -m reidkit`: the command `reid` of this Python, also where no script of it was installed."""

import sys

from reidkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
