"""A server whose thread and function have the names that it is told, whatever is in them; it spends the processor
in the function for each request.

    OTEL_SERVICE_NAME=… PORT=8000 python hostile.py THREAD FUNCTION
"""

import http.server
import os
import sys
import threading
import time

SPENT_SECONDS = 0.02


def spend():
    end = time.thread_time() + SPENT_SECONDS
    while time.thread_time() < end:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        spend()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


_, thread, function = sys.argv
spend.__code__ = spend.__code__.replace(co_name=function, co_qualname=function)
with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
    comm.write(thread)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
