"""``python -m rekindle fit ...``: a run without a script; see `rekindle.config`."""

import sys

from rekindle.config.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
