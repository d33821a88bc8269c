"""Find the peers by the names that a headless service gives them, as MPI-like launchers do."""

import os
import socket
import sys
import time

name, end = sys.argv[1], time.monotonic() + 60
while True:
    try:
        address = socket.getaddrinfo(name, None, family=socket.AF_INET)[0][4][0]
        break
    except OSError as error:
        if time.monotonic() > end:
            raise SystemExit(f"{name} does not resolve: {error}") from None
        time.sleep(0.2)
print(f"{os.environ['REKINDLE_POD_NAME']}: {name} is {address}", flush=True)
