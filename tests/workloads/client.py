"""A Python client under test: `client.py httpx|requests BASE_URL ROUNDS`.

Sends a fixed set of requests over a keep-alive session and prints, as JSON, how many got which
status and how long they took by its own clock.
"""

import json
import sys
import time


def main() -> None:
    library, base, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if library == "httpx":
        import httpx

        session = httpx.Client(trust_env=False)
    else:
        import requests

        session = requests.Session()
        session.trust_env = False
    plan = [
        ("GET", "/items/{n}", "/items/{id}", {}),
        ("GET", "/items/{n}?limit=many", "/items/{id}", {}),
        ("POST", "/items", "/items", {"content": b"x" * 100}),
        ("DELETE", "/items/{n}", "/items/{id}", {}),
        ("GET", "/cached", "/cached", {"headers": {"If-None-Match": '"1"'}}),
        ("GET", "/fail", "/fail", {}),
        ("GET", "/sleep/20", "/sleep/{id}", {}),
        ("GET", "/get_complete_tree/6f1c2f9e-52a1-4c5a-9a35-1c1b2f0a7d{n:02d}", "/get_complete_tree/{id}", {}),
    ]
    rows: dict[tuple[str, str, int], list[float]] = {}
    for n in range(rounds):
        for method, path, route, options in plan:
            options = dict(options)
            if library == "requests" and "content" in options:
                options["data"] = options.pop("content")
            start = time.monotonic()
            response = session.request(method, base + path.format(n=n), **options)
            response.content
            seconds = time.monotonic() - start
            rows.setdefault((method, route, response.status_code), []).append(seconds)
    session.close()
    print(json.dumps([
        {"method": m, "route": r, "status": s, "count": len(t), "seconds": sum(t)}
        for (m, r, s), t in rows.items()
    ]))


main()
