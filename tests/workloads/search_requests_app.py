"""Routes that ask the cluster at `SEARCH_URL`: `/a/{id}` searches in `ask_a`, `/b/{id}` counts in `ask_b`, and each
spends the processor afterwards, in `spend_a` or `spend_b`. `/c/{id}` searches and spends the processor in
`spend_in_flight` before it reads the answer, in `spend_after` when it has.

`/told` answers with the nanoseconds that each function waited for the cluster, as its socket's reads have it."""

import collections
import http.client
import json
import os
import socket
import threading
import time
import urllib.parse

from opensearchpy import OpenSearch

INDEX = "documents"
# Of the processor, by the thread's own clock.
SPENT_SECONDS = 0.004

asking = threading.local()
waited_ns = collections.Counter()
receive = socket.socket.recv_into


def recv_into(*args):
    begin = time.monotonic_ns()
    try:
        return receive(*args)
    finally:
        waited_ns[getattr(asking, "name", "")] += time.monotonic_ns() - begin


socket.socket.recv_into = recv_into
url = os.environ["SEARCH_URL"]
client = OpenSearch([url], max_retries=0)
client.index(index=INDEX, id="1", body={"title": "a"}, refresh=True)


def spend():
    end = time.thread_time() + SPENT_SECONDS
    while time.thread_time() < end:
        pass


def spend_a():
    spend()


def spend_b():
    spend()


def spend_in_flight():
    spend()


def spend_after():
    spend()


def ask_a():
    asking.name = "ask_a"
    client.search(index=INDEX, body={"query": {"match_all": {}}})
    asking.name = ""


def ask_b():
    asking.name = "ask_b"
    client.count(index=INDEX, body={"query": {"match_all": {}}})
    asking.name = ""


def ask_c():
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
    connection.request("GET", f"/{INDEX}/_search")
    spend_in_flight()
    connection.getresponse().read()
    spend_after()
    connection.close()


def wsgi(environ, start_response):
    body = b"ok\n"
    route = environ["PATH_INFO"].split("/")[1]
    if route == "a":
        ask_a()
        spend_a()
    elif route == "b":
        ask_b()
        spend_b()
    elif route == "c":
        ask_c()
    else:
        body = json.dumps(waited_ns).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
