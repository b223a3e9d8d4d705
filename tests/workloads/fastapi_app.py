"""The FastAPI service under test. Its routes are the ones that every application server here has."""

import asyncio
import time

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

import handler_log


class HandlerTime:
    """Pure ASGI, so that nothing but the application lies inside."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.monotonic()
        status = 0
        seconds = 0.0

        async def measured(message):
            nonlocal status, seconds
            head = message["type"] == "http.response.start"
            if head:
                status = message["status"]
            # The server writes an answer without a body when it gets the head: its last byte.
            if head or not (scope["method"] == "HEAD" or status in (204, 304)):
                seconds = time.monotonic() - start
            if not head and not message.get("more_body", False):
                handler_log.write(scope["method"], scope["path"], status, seconds)
            await send(message)

        await self.app(scope, receive, measured)


api = FastAPI()
api.add_middleware(HandlerTime)


@api.api_route("/items/{item_id}", methods=["GET", "HEAD"])
async def item(item_id: int, limit: int = 1):
    return {"id": item_id, "limit": limit, "name": "a thing"}


@api.post("/items", status_code=201)
async def create(request: Request):
    return {"received": len(await request.body())}


@api.delete("/items/{item_id}")
async def delete(item_id: int):
    return Response(status_code=204)


@api.get("/get_complete_tree/{workflow_id}")
async def tree(workflow_id: str):
    async def nodes():
        yield b"["
        for node in range(20):
            yield b'{"node":%d},' % node
            await asyncio.sleep(0)
        yield b"{}]"

    return StreamingResponse(nodes(), media_type="application/json")


@api.get("/cached")
async def cached(request: Request):
    if request.headers.get("if-none-match") == '"1"':
        return Response(status_code=304, headers={"etag": '"1"'})
    return Response("cached", headers={"etag": '"1"'})


@api.get("/fail")
async def fail():
    return JSONResponse({"detail": "as asked"}, status_code=500)


@api.get("/sleep/{milliseconds}")
async def sleep(milliseconds: int):
    await asyncio.sleep(milliseconds / 1000)
    return {"slept": milliseconds}


@api.get("/block/{milliseconds}/{number}")
async def block(milliseconds: int, number: int):
    """Holds the event loop up, as a handler that computes or calls a blocking library does."""
    time.sleep(milliseconds / 1000)
    return {"blocked": milliseconds, "number": number}
