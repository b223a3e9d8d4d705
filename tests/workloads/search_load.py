"""Services that ask a cluster many things at once:
`search_load.py opensearch|elasticsearch URL plain|gzip threads|tasks CALLS`.

Makes the calls from eight threads, or as eight tasks of asyncio, and prints one line of JSON: how often each
operation on each index had which status, the sum of `took`, and the items of bulk requests by outcome.
"""

import asyncio
import collections
import contextvars
import json
import sys
import threading
import warnings

warnings.simplefilter("ignore")

WORKERS = 8
# What the present call is: operation and index.
asked = contextvars.ContextVar("asked")


class Tally:
    def __init__(self):
        self.lock = threading.Lock()
        self.calls = collections.Counter()
        self.took = collections.defaultdict(lambda: [0, 0])
        self.items = collections.Counter()

    def add(self, method, path, status, body):
        """Takes in one answer, as the client's connection got it."""
        # The Elasticsearch client asks who answers before its first call.
        operation, index = ("info", "") if (method, path) == ("GET", "/") else asked.get()
        try:
            facts = json.loads(body)
        except (TypeError, ValueError):
            facts = {}
        facts = facts if isinstance(facts, dict) else {}
        with self.lock:
            self.calls[operation, index, str(status)] += 1
            if "took" in facts:
                self.took[operation, index][0] += 1
                self.took[operation, index][1] += facts["took"]
            for item in facts.get("items", []):
                ((action, told),) = item.items()
                self.items[index, action, outcome(told["status"])] += 1

    def told(self):
        return {
            "calls": [[*key, count] for key, count in self.calls.items()],
            "took": [[*key, *sums] for key, sums in self.took.items()],
            "items": [[*key, count] for key, count in self.items.items()],
        }


def outcome(status):
    if status < 300:
        return "succeeded"
    return {404: "not_found", 409: "conflict", 429: "rejected"}.get(status, "failed")


def recording(base, tally):
    """A connection class of the client, that counts each answer."""

    def status_and_body(error):
        return error.status_code, error.info if isinstance(error.info, str) else json.dumps(error.info)

    if asyncio.iscoroutinefunction(base.perform_request):

        class Recording(base):
            async def perform_request(self, method, url, *args, **kwargs):
                try:
                    answer = await super().perform_request(method, url, *args, **kwargs)
                except Exception as error:
                    tally.add(method, url, *status_and_body(error))
                    raise
                tally.add(method, url, answer[0], answer[2])
                return answer

    else:

        class Recording(base):
            def perform_request(self, method, url, *args, **kwargs):
                try:
                    answer = super().perform_request(method, url, *args, **kwargs)
                except Exception as error:
                    tally.add(method, url, *status_and_body(error))
                    raise
                tally.add(method, url, answer[0], answer[2])
                return answer

    return Recording


def client_of(library, url, compress, is_async, tally):
    if library == "opensearch":
        import opensearchpy as module

        client = module.AsyncOpenSearch if is_async else module.OpenSearch
        base = module.AIOHttpConnection if is_async else module.Urllib3HttpConnection
    else:
        import elasticsearch as module

        client = module.AsyncElasticsearch if is_async else module.Elasticsearch
        base = module.AIOHttpConnection if is_async else module.Urllib3HttpConnection
    return client(
        [url],
        connection_class=recording(base, tally),
        http_compress=compress,
        max_retries=0,
        timeout=60,
        maxsize=WORKERS,
    )


def call(client, worker, number):
    """The call `number` of a worker: operation, index, and what the client returns."""
    index = f"load-{worker % 2}"
    match = {"query": {"match": {"title": "telltale"}}, "size": 2}
    key = f"{worker}-{number // 10}"

    def bulk():
        lines = []
        for item in range(20):
            lines.append({"index": {"_id": f"{key}-{item}"}})
            lines.append({"title": "telltale", "number": item})
            # There already, not there, and not a document.
            lines.append({"create": {"_id": f"{key}-{item}"}})
            lines.append({"title": "again"})
        lines += [{"delete": {"_id": "missing"}}, {"update": {"_id": "missing"}}, {"doc": {"a": 1}}]
        lines += [{"index": {}}, {"number": "no number"}]
        return client.bulk(index=index, body=lines)

    calls = [
        ("index", index, lambda: client.index(index=index, id=key, body={"title": "telltale", "number": number})),
        ("get", index, lambda: client.get(index=index, id=key)),
        ("search", index, lambda: client.search(index=index, body=match)),
        ("bulk", index, bulk),
        ("count", index, lambda: client.count(index=index, body={"query": match["query"]})),
        ("msearch", "", lambda: client.msearch(body=[{"index": index}, match, {"index": index}, match])),
        ("update", index, lambda: client.update(index=index, id=key, body={"doc": {"n": 1}})),
        ("exists", index, lambda: client.exists(index=index, id="missing")),
        ("search", "missing", lambda: client.search(index="missing", body=match)),
        ("delete", index, lambda: client.delete(index=index, id=key)),
    ]
    return calls[number % len(calls)]


def refused(error):
    """Whether it was the cluster that said no: that is an answer, too."""
    return isinstance(getattr(error, "status_code", None), int)


def run_thread(client, worker, calls):
    for number in range(calls):
        operation, index, make = call(client, worker, number)
        asked.set((operation, index))
        try:
            make()
        except Exception as error:
            if not refused(error):
                raise


async def run_task(client, worker, calls):
    for number in range(calls):
        operation, index, make = call(client, worker, number)
        asked.set((operation, index))
        try:
            await make()
        except Exception as error:
            if not refused(error):
                raise


async def run_tasks(client, calls):
    await asyncio.gather(*(run_task(client, worker, calls) for worker in range(WORKERS)))
    await client.close()


def main():
    library, url, coding, kind, calls = *sys.argv[1:5], int(sys.argv[5]) // WORKERS
    tally = Tally()
    client = client_of(library, url, coding == "gzip", kind == "tasks", tally)
    if kind == "tasks":
        asyncio.run(run_tasks(client, calls))
    else:
        failures = []

        def guarded(worker):
            try:
                run_thread(client, worker, calls)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(worker,)) for worker in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
    print(json.dumps(tally.told()))


main()
