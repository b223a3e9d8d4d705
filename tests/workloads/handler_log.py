"""The ground truth of the Python servers: one JSON line a request.

A line is written after the handler finished and before the server writes the last byte of the
answer, so that the time it states lies within the time on the wire.
"""

import json
import os

_log = os.open(os.environ["TELLTALE_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def write(method: str, path: str, status: int, seconds: float) -> None:
    line = {"method": method, "path": path, "status": status, "seconds": seconds, "pid": os.getpid()}
    # One write with O_APPEND: lines of several workers do not mix.
    os.write(_log, (json.dumps(line) + "\n").encode())
