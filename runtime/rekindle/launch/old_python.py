"""Says that this Python is too old for the launcher; written so that it runs there itself.

An image that the launcher was copied into may have any Python. What comes after would fail with an
ImportError about a name of the standard library, which nobody understands.
"""

import json
import os
import sys


def refuse():  # type: ignore[no-untyped-def]
    """Tell people and the operator, and end."""
    version = ".".join(str(number) for number in tuple(sys.version_info)[:3])
    message = (
        "the launcher needs Python 3.11 or newer; "
        + sys.executable
        + " is Python "
        + version
        + ": use an image with a newer one"
    )
    sys.stderr.write("rekindle.launch: " + message + "\n")
    path = os.environ.get("REKINDLE_TERMINATION_LOG") or "/dev/termination-log"
    try:
        if os.path.exists(path) or "REKINDLE_TERMINATION_LOG" in os.environ:
            with open(path, "w") as file:
                file.write(json.dumps({"cause": "Configuration", "code": 1, "message": message}))
    except OSError:
        pass  # The log has it.
    sys.stderr.flush()
    os._exit(1)
