"""A service that asks a cluster: `search_client.py opensearch|elasticsearch URL plain|gzip ROUNDS`.

Makes a fixed list of calls and prints a line of JSON for each request that went over the wire: what
the client calls the operation and the index, the status, what the answer says (`took`, `hits.total`,
`_shards`, the error's type, the cluster's health, the items of a bulk request), the operations of a
bulk or `msearch` request, and the seconds that the client's own transport and its socket count.
"""

import json
import socket
import sys
import time


class Wire:
    """When the client's own socket moved its first and its last byte."""

    def __init__(self):
        self.sent = self.received = None
        send, receive = socket.socket.sendall, socket.socket.recv_into

        def sendall(*args):
            self.sent = self.sent or time.monotonic()
            return send(*args)

        def recv_into(*args):
            count = receive(*args)
            self.received = time.monotonic()
            return count

        socket.socket.sendall, socket.socket.recv_into = sendall, recv_into

    def restart(self):
        self.sent = self.received = None


class Recorder:
    """What the transport did since the last call."""

    def __init__(self):
        self.requests = []
        self.wire = Wire()

    def recording(self, base):
        """A connection class of the client, that writes down each request."""
        recorder = self

        class Recording(base):
            def perform_request(self, method, url, *args, **kwargs):
                start = time.monotonic()
                recorder.wire.restart()
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
                    wire_seconds = recorder.wire.received - recorder.wire.sent
                    recorder.requests.append((method, url, status, answer, seconds, wire_seconds))
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


def calls_of(client, indices, has_long):
    """Pairs of what is asked (operation, index, batch size) and how. `indices`: two names. `has_long`:
    long requests are among it."""
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

    def outcomes(count):
        """Documents of which some are there already, and some are refused."""
        lines = []
        for number in range(0, count, 10):
            for one in range(number, number + 4):
                lines += [{"index": {"_id": str(one)}}, {"number": one}]
            lines += [{"index": {"_id": str(number)}}, {"number": 0}]
            lines += [{"create": {"_id": str(number)}}, {"number": 1}]
            lines += [{"create": {"_id": f"new-{number}"}}, {"number": 2}]
            lines += [{"update": {"_id": str(number)}}, {"doc": {"number": 3}}]
            lines += [{"index": {"_id": f"bad-{number}"}}, {"number": "none"}]
            lines += [{"delete": {"_id": f"no-{number}"}}]
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
    if has_long:
        # Larger than what is captured of other requests and answers.
        yield ("bulk", "large", 5000), lambda: client.bulk(index="large", body=outcomes(5000))
        yield ("indices.delete", "large", None), lambda: client.indices.delete(index="large")
        # Larger than what is captured of any, unless they are compressed.
        long = [{"delete": {"_id": f"{number:0450}"}} for number in range(5000)]
        yield ("bulk", "huge", 5000), lambda: client.bulk(index="huge", body=long)
    mixed = documents(2, action="create") + [{"delete": {"_id": "missing"}}, {"update": {"_id": "missing"}}, {"doc": {}}]
    yield ("bulk", two, 4), lambda: client.bulk(index=two, body=mixed)
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
    yield ("msearch", "", 2), lambda: client.msearch(body=[{"index": one}, match, {}, match])
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
    yield from administration(client, one)
    for index in indices:
        yield ("indices.delete", index, None), lambda index=index: client.indices.delete(index=index)
    yield ("cluster.health", "", None), lambda: client.cluster.health()


def administration(client, index):
    """What services ask less often. The cluster may refuse some: that is an answer, too."""
    match = {"query": {"match": {"title": "telltale"}}}
    mapping = {"properties": {"tag": {"type": "keyword"}}}
    pipeline = {"processors": []}
    script = {"script": {"lang": "painless", "source": "1"}}
    actions = {"actions": [{"add": {"index": index, "alias": "alias-2"}}]}
    template = {"index_patterns": ["never-*"]}
    documents = [{"_index": index, "_id": "1"}]
    copy = {"source": {"index": index}, "dest": {"index": "copy"}}

    def asked(operation, of, **parameters):
        method = client
        for name in operation.split("."):
            method = getattr(method, name)
        return (operation, of, None), lambda: method(**parameters)

    yield asked("ping", "")
    yield asked("exists_source", index, index=index, id="1")
    yield asked("get_source", index, index=index, id="1")
    yield asked("get_source", index, index=index, id="missing")
    yield asked("explain", index, index=index, id="1", body={"query": {"match_all": {}}})
    yield asked("field_caps", index, index=index, fields="*")
    yield asked("termvectors", index, index=index, id="1")
    yield asked("mtermvectors", "", body={"docs": documents})
    yield asked("search_shards", index, index=index)
    yield asked("search_template", index, index=index, body={"source": match})
    yield asked("rank_eval", index, index=index, body={"requests": [], "metric": {}})
    yield asked("clear_scroll", "", body={"scroll_id": ["bm9uZQ=="]})
    yield asked("reindex", "", body=copy, refresh=True)
    yield asked("delete_by_query_rethrottle", "", task_id="a:1", requests_per_second=1)
    yield asked("put_script", "", id="script-1", body=script)
    yield asked("get_script", "", id="script-1")
    yield asked("delete_script", "", id="script-1")
    yield asked("indices.get", index, index=index)
    yield asked("indices.get_settings", index, index=index)
    yield asked("indices.put_settings", index, index=index, body={"refresh_interval": "1s"})
    yield asked("indices.get_mapping", index, index=index)
    yield asked("indices.put_mapping", index, index=index, body=mapping)
    yield asked("indices.get_field_mapping", index, index=index, fields="tag")
    yield asked("indices.put_alias", index, index=index, name="alias-1")
    yield asked("indices.get_alias", index, index=index)
    yield asked("indices.exists_alias", "", name="alias-1")
    yield asked("indices.update_aliases", "", body=actions)
    yield asked("indices.delete_alias", index, index=index, name="alias-1")
    yield asked("indices.rollover", "alias-2", alias="alias-2", dry_run=True)
    yield asked("indices.analyze", index, index=index, body={"text": "a b"})
    yield asked("indices.validate_query", index, index=index, body={"query": {"match_all": {}}})
    yield asked("indices.stats", index, index=index)
    yield asked("indices.segments", index, index=index)
    yield asked("indices.recovery", index, index=index)
    yield asked("indices.shard_stores", index, index=index)
    yield asked("indices.flush", index, index=index)
    yield asked("indices.forcemerge", index, index=index)
    yield asked("indices.clear_cache", index, index=index)
    yield asked("indices.resolve_index", "", name="*")
    yield asked("indices.put_template", "", name="never", body=template)
    yield asked("indices.get_template", "", name="never")
    yield asked("indices.exists_template", "", name="never")
    yield asked("indices.delete_template", "", name="never")
    yield asked("indices.put_index_template", "", name="never", body=template)
    yield asked("indices.get_index_template", "", name="never")
    yield asked("indices.delete_index_template", "", name="never")
    yield asked("indices.close", index, index=index)
    yield asked("indices.open", index, index=index)
    yield asked("indices.delete", "copy", index="copy")
    yield asked("cluster.get_settings", "")
    yield asked("cluster.put_settings", "", body={"transient": {}})
    yield asked("cluster.pending_tasks", "")
    yield asked("cluster.stats", "")
    yield asked("cluster.allocation_explain", "")
    yield asked("cluster.reroute", "", dry_run=True)
    yield asked("nodes.info", "")
    yield asked("nodes.stats", "", metric="os")
    yield asked("nodes.usage", "")
    yield asked("nodes.hot_threads", "")
    yield asked("tasks.list", "")
    yield asked("tasks.get", "", task_id="missing:1")
    yield asked("ingest.put_pipeline", "", id="pipeline-1", body=pipeline)
    yield asked("ingest.get_pipeline", "", id="pipeline-1")
    yield asked("ingest.simulate", "", id="pipeline-1", body={"docs": [{"_source": {}}]})
    yield asked("ingest.delete_pipeline", "", id="pipeline-1")
    yield asked("snapshot.get_repository", "")
    yield asked("snapshot.status", "")
    for name in ("aliases", "allocation", "health", "master", "nodes", "nodeattrs", "pending_tasks", "plugins"):
        yield asked(f"cat.{name}", "")
    for name in ("recovery", "repositories", "segments", "shards", "tasks", "templates", "thread_pool"):
        yield asked(f"cat.{name}", "")


def outcome(status):
    if status < 300:
        return "succeeded"
    return {404: "not_found", 409: "conflict", 429: "rejected"}.get(status, "failed")


def items_of(facts):
    """Items of a bulk answer: action and outcome of each."""
    told = [next(iter(item.items())) for item in facts.get("items", [])]
    return [[action, outcome(item["status"])] for action, item in told]


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
    for turn in range(rounds):
        # Names that are endpoints' names as well.
        for (operation, index, batch_size), call in calls_of(client, ("bulk", "doc"), turn == 0):
            try:
                call()
            except Exception as error:
                if not isinstance(getattr(error, "status_code", None), int):
                    raise
            *before, own = recorder.requests
            recorder.requests.clear()
            # The Elasticsearch client asks who answers before its first call.
            asked = [("info", "", None)] * len(before) + [(operation, index, batch_size)]
            for request, (operation, index, batch_size) in zip([*before, own], asked):
                method, path, status, answer, seconds, wire_seconds = request
                facts = object_of(answer)
                is_health = operation == "cluster.health" and index == ""
                hits = facts.get("hits") if operation in ("search", "scroll") else None
                total = hits.get("total") if isinstance(hits, dict) else None
                shards = facts.get("_shards") if operation in ("search", "index", "count") else None
                error = facts.get("error") if status >= 400 else None
                line = {
                    "operation": operation,
                    "index": index,
                    "method": method,
                    "path": path,
                    "status": status,
                    "took": facts.get("took"),
                    "hits": total.get("value") if isinstance(total, dict) else total,
                    "shards": [shards["total"], shards["failed"]] if shards else None,
                    "error": error.get("type") if isinstance(error, dict) else None,
                    "health": facts.get("status") if is_health else None,
                    "nodes": facts.get("number_of_nodes") if is_health else None,
                    "batch_size": batch_size,
                    "items": items_of(facts) if operation == "bulk" else [],
                    "seconds": seconds,
                    "wire_seconds": wire_seconds,
                }
                print(json.dumps(line))


main()
