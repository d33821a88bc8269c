"""`MisconfigurationException`: things of a script that do not go together.

Scripts written for Lightning catch this name. It is a ValueError, as errors about flags are here.
"""


class MisconfigurationException(ValueError):
    """Flags, callbacks or loggers are put together wrongly; the message says what to change."""
