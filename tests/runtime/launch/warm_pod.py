"""Turns a forked process, in which torch is imported already, into ``python -m rekindle.launch``.

Run by runpy with the globals ``command``, ``variables``, ``folder`` and ``log``.
"""

import os
import sys

output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # noqa: F821
os.dup2(output, 1)
os.dup2(output, 2)
os.chdir(folder)  # noqa: F821
os.environ.clear()
os.environ.update(variables)  # noqa: F821
sys.argv = ["rekindle.launch", *command]  # noqa: F821

from rekindle.launch.__main__ import main  # noqa: E402

code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
