"""Start a program that ends when its parent does: ``tether.py PARENT PROGRAM [ARGUMENT...]``.

`rekindle up` gives the operator a session of its own, so that Ctrl-C reaches the operator through
its supervisor and not by the terminal; a killed `rekindle up` would then leave it behind. Linux can
signal a process when its parent is gone and keeps the wish over an exec, so this sets it and
becomes the program. Elsewhere it is only the exec. Run by path, standard library only, to be up in
no time.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Never returns."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the wish was known
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
