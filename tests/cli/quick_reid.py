"""`reid`, but for its export: see `quick_networks`. A program, because a run on two devices starts itself again."""

import sys

from quick_networks import graphs_by_layers
from reidkit.cli import main

if __name__ == "__main__":
    with graphs_by_layers():
        sys.exit(main(sys.argv[1:]))
