"""The WSGI service under test: the routes of fastapi_app.py in Flask, for gunicorn."""

import time

from flask import Flask, Response, request

import handler_log

api = Flask(__name__)


class HandlerTime:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        start = time.monotonic()
        status = 0

        def started(line, headers, *rest):
            nonlocal status
            status = int(line.split()[0])
            return start_response(line, headers, *rest)

        body = self.app(environ, started)
        held = None
        # One piece is held back, so that the line is written before the last piece is sent.
        for piece in body:
            if held is not None:
                yield held
            held = piece
        if hasattr(body, "close"):
            body.close()
        handler_log.write(
            environ["REQUEST_METHOD"], environ["PATH_INFO"], status, time.monotonic() - start
        )
        if held is not None:
            yield held


api.wsgi_app = HandlerTime(api.wsgi_app)


@api.get("/items/<int:item_id>")
def item(item_id):
    limit = request.args.get("limit", "1")
    if not limit.isdigit():
        return {"detail": "limit is not a number"}, 422
    return {"id": item_id, "limit": int(limit), "name": "a thing"}


@api.post("/items")
def create():
    return {"received": len(request.get_data())}, 201


@api.delete("/items/<int:item_id>")
def delete(item_id):
    return "", 204


@api.get("/get_complete_tree/<workflow_id>")
def tree(workflow_id):
    def nodes():
        yield b"["
        for node in range(20):
            yield b'{"node":%d},' % node
        yield b"{}]"

    return Response(nodes(), mimetype="application/json")


@api.get("/cached")
def cached():
    if request.headers.get("If-None-Match") == '"1"':
        return "", 304, {"ETag": '"1"'}
    return "cached", 200, {"ETag": '"1"'}


@api.get("/fail")
def fail():
    return {"detail": "as asked"}, 500


@api.get("/sleep/<int:milliseconds>")
def sleep(milliseconds):
    time.sleep(milliseconds / 1000)
    return {"slept": milliseconds}
