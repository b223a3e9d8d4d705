"""A service that asks a cluster: `search_client.py opensearch|elasticsearch URL plain|gzip ROUNDS`.

Makes a fixed list of calls and prints a line of JSON for each request that went over the wire: what
the client calls the operation and the index, the status, `took` and the cluster's health of the
answer, the operations of a bulk request, and the seconds that the client's own transport counts.
"""

import json
import sys
import time


class Recorder:
    """What the transport did since the last call."""

    def __init__(self):
        self.requests = []

    def recording(self, base):
        """A connection class of the client, that writes down each request."""
        recorder = self

        class Recording(base):
            def perform_request(self, method, url, *args, **kwargs):
                start = time.monotonic()
                answer = None
                try:
                    status, headers, body = super().perform_request(method, url, *args, **kwargs)
                    answer = body
                except Exception as error:
                    # An answer with an error's status can say `took` as well.
                    status, answer = error.status_code, error.info
                    raise
                finally:
                    seconds = time.monotonic() - start
                    recorder.requests.append((method, url, status, answer, seconds))
                return status, headers, body

        return Recording


def client_of(library, url, compress, recorder):
    if library == "opensearch":
        from opensearchpy import OpenSearch as Client, Urllib3HttpConnection
    else:
        from elasticsearch import Elasticsearch as Client, Urllib3HttpConnection
    return Client(
        [url],
        connection_class=recorder.recording(Urllib3HttpConnection),
        http_compress=compress,
        max_retries=0,
        timeout=60,
    )


def calls_of(client, indices):
    """Pairs of what is asked (operation, index, bulk operations) and how. `indices`: two names."""
    one, two = indices
    both = f"{one},{two}"
    match = {"query": {"match": {"title": "telltale"}}}

    def documents(count, action="index", size=20):
        lines = []
        for number in range(count):
            lines.append({action: {"_id": str(number)}})
            if action != "delete":
                lines.append({"title": "telltale " + "x" * size, "number": number})
        return lines

    def scroll():
        return client.search(index=one, scroll="1m", size=2)["_scroll_id"]

    scroll_ids = []
    yield ("cluster.health", "", None), lambda: client.cluster.health()
    yield ("info", "", None), lambda: client.info()
    yield ("indices.exists", one, None), lambda: client.indices.exists(index=one)
    for index in indices:
        settings = {"settings": {"number_of_shards": 1, "number_of_replicas": 0}}
        yield (
            ("indices.create", index, None),
            lambda index=index, settings=settings: client.indices.create(index=index, body=settings),
        )
    yield ("indices.exists", one, None), lambda: client.indices.exists(index=one)
    yield ("index", one, None), lambda: client.index(index=one, id="1", body={"title": "a"})
    yield ("index", one, None), lambda: client.index(index=one, id="1", body={"title": "b"})
    yield ("index", one, None), lambda: client.index(index=one, body={"title": "no id"})
    yield ("create", two, None), lambda: client.create(index=two, id="_bulk", body={"title": "a"})
    yield ("create", two, None), lambda: client.create(index=two, id="_bulk", body={"title": "b"})
    yield ("bulk", one, 7), lambda: client.bulk(index=one, body=documents(7))
    yield ("bulk", two, 3), lambda: client.bulk(index=two, body=documents(3), refresh=True)
    # Larger than what is captured of a request.
    yield ("bulk", one, 300), lambda: client.bulk(index=one, body=documents(300, size=100))
    yield ("bulk", one, 2), lambda: client.bulk(index=one, body=documents(2, action="delete"))
    everywhere = [{"index": {"_index": two, "_id": "x/y"}}, {"title": "c"}]
    yield ("bulk", "", 1), lambda: client.bulk(body=everywhere)
    yield ("indices.refresh", both, None), lambda: client.indices.refresh(index=both)
    yield ("indices.refresh", "", None), lambda: client.indices.refresh()
    yield ("search", one, None), lambda: client.search(index=one, body=match)
    yield ("search", both, None), lambda: client.search(index=both, body=match)
    yield ("search", one[:-1] + "*", None), lambda: client.search(index=one[:-1] + "*", body=match)
    yield ("search", "", None), lambda: client.search(body=match)
    yield ("search", "_all", None), lambda: client.search(index="_all", size=0)
    # Larger than what is captured of a response.
    yield ("search", one, None), lambda: client.search(index=one, size=250)
    yield ("search", "missing", None), lambda: client.search(index="missing", body=match)
    yield ("search", one, None), lambda: client.search(index=one, body={"query": {"nonsense": {}}})
    yield ("search", "<logs-{now/d}>", None), lambda: client.search(index="<logs-{now/d}>")
    yield ("search", one, None), lambda: scroll_ids.append(scroll())
    yield ("scroll", "", None), lambda: client.scroll(body={"scroll_id": scroll_ids[0]})
    yield ("count", one, None), lambda: client.count(index=one, body=match)
    yield ("count", "", None), lambda: client.count()
    yield ("get", one, None), lambda: client.get(index=one, id="5")
    yield ("get", one, None), lambda: client.get(index=one, id="missing")
    yield ("get", two, None), lambda: client.get(index=two, id="x/y")
    yield ("exists", one, None), lambda: client.exists(index=one, id="5")
    yield ("exists", one, None), lambda: client.exists(index=one, id="missing")
    yield ("mget", one, None), lambda: client.mget(index=one, body={"ids": ["5", "6"]})
    yield ("msearch", "", None), lambda: client.msearch(body=[{"index": one}, match, {}, match])
    yield ("update", one, None), lambda: client.update(index=one, id="5", body={"doc": {"n": 1}})
    yield ("update", one, None), lambda: client.update(index=one, id="no", body={"doc": {"n": 1}})
    yield ("update_by_query", two, None), lambda: client.update_by_query(index=two, refresh=True)
    yield ("delete", one, None), lambda: client.delete(index=one, id="5")
    yield ("delete", one, None), lambda: client.delete(index=one, id="5")
    yield (
        ("delete_by_query", two, None),
        lambda: client.delete_by_query(index=two, body=match, refresh=True),
    )
    yield ("cluster.health", one, None), lambda: client.cluster.health(index=one)
    yield ("cluster.state", "", None), lambda: client.cluster.state(metric="version")
    yield ("cat.indices", "", None), lambda: client.cat.indices(format="json")
    yield ("cat.count", one, None), lambda: client.cat.count(index=one)
    for index in indices:
        yield ("indices.delete", index, None), lambda index=index: client.indices.delete(index=index)
    yield ("cluster.health", "", None), lambda: client.cluster.health()


def object_of(answer):
    """An answer's members: of a body, or of what the client's error made of it."""
    if isinstance(answer, (bytes, str)):
        try:
            answer = json.loads(answer)
        except ValueError:
            return {}
    return answer if isinstance(answer, dict) else {}


def main():
    library, url, coding, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    recorder = Recorder()
    client = client_of(library, url, coding == "gzip", recorder)
    for _ in range(rounds):
        # Names that are endpoints' names as well.
        for (operation, index, bulk_operations), call in calls_of(client, ("bulk", "doc")):
            try:
                call()
            except Exception as error:
                if not isinstance(getattr(error, "status_code", None), int):
                    raise
            *before, own = recorder.requests
            recorder.requests.clear()
            # The Elasticsearch client asks who answers before its first call.
            asked = [("info", "", None)] * len(before) + [(operation, index, bulk_operations)]
            for request, (operation, index, bulk_operations) in zip([*before, own], asked):
                method, path, status, answer, seconds = request
                facts = object_of(answer)
                is_health = operation == "cluster.health" and index == ""
                line = {
                    "operation": operation,
                    "index": index,
                    "method": method,
                    "path": path,
                    "status": status,
                    "took": facts.get("took"),
                    "health": facts.get("status") if is_health else None,
                    "bulk_operations": bulk_operations,
                    "seconds": seconds,
                }
                print(json.dumps(line))


main()
