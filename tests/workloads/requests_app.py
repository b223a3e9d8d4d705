"""Two routes that each spend the processor in a function of their own: `/a/{id}` in `spend_a`, `/b/{id}` in
`spend_b`; `wsgi` for gunicorn, `asgi` for uvicorn. `/threads/{a|b}/{id}` spends it in another thread than the one
that reads the request. `/waits/{a|b}/{id}` waits in `wait_a` or `wait_b`."""

import asyncio
import time

# Of the processor, by the thread's own clock.
SPENT_SECONDS = 0.004
WAITED_SECONDS = 0.005


def spend_a():
    end = time.thread_time() + SPENT_SECONDS
    while time.thread_time() < end:
        pass


def spend_b():
    end = time.thread_time() + SPENT_SECONDS
    while time.thread_time() < end:
        pass


def wait_a():
    time.sleep(WAITED_SECONDS)


def wait_b():
    time.sleep(WAITED_SECONDS)


SPEND = {"a": spend_a, "b": spend_b}
WAIT = {"a": wait_a, "b": wait_b}


def wsgi(environ, start_response):
    names = environ["PATH_INFO"].split("/")
    (WAIT[names[2]] if names[1] == "waits" else SPEND[names[1]])()
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    names = scope["path"].split("/")
    if names[1] == "threads":
        await asyncio.to_thread(SPEND[names[2]])
    else:
        spend = SPEND[names[1]]
        spend()
        # Others have their turn in between.
        await asyncio.sleep(0.002)
        spend()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})
