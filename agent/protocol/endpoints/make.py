"""Makes `endpoints.txt` and `clients.txt` anew: `make.py WORK_FOLDER`, see README.md for what has to be there."""

import collections
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent

# Where the table comes from, most trusted first: a line stands in the section of the first that has it.
SPECIFICATIONS = [
    ("org.elasticsearch:rest-api-spec 9.5.3 (Maven)", "elasticsearch-9.5.3"),
    ("org.elasticsearch:rest-api-spec 7.10.2 (Maven)", "elasticsearch-7.10.2"),
    ("org.opensearch:rest-api-spec 3.1.0 (Maven)", "opensearch-3.1.0"),
    ("org.opensearch:rest-api-spec 2.19.0 (Maven)", "opensearch-2.19.0"),
]
# What the specifications leave out: OpenSearch's plugins, and what came and went between 7.10 and 9.5.
CLIENTS_IN_TABLE = [
    ("@opensearch-project/opensearch 3.9.0 (npm)", "js-opensearch-3.9.0"),
    ("@elastic/elasticsearch 7.17.14 (npm)", "js-elasticsearch-7.17.14"),
    ("@elastic/elasticsearch 8.19.1 (npm)", "js-elasticsearch-8.19.1"),
    ("elasticsearch 9.5.1 (PyPI)", "py-elasticsearch-9.5.1"),
    ("opensearch-py 3.2.0 (PyPI)", "py-opensearch-3.2.0"),
    ("opensearch-py 1.1.0 (PyPI)", "py-opensearch-1.1.0"),
    ("elasticsearch 7.17.13 (PyPI)", "py-elasticsearch-7.17.13"),
]


def main():
    work = pathlib.Path(sys.argv[1])
    specifications = {name: specification(work / "spec" / name) for _, name in SPECIFICATIONS}
    clients = {path.stem: client(path) for path in sorted((work / "clients").glob("*.txt"))}
    (HERE / "endpoints.txt").write_text(table(specifications, clients))
    (HERE / "clients.txt").write_text(requests(clients))


def specification(folder):
    """(operation, method, template) of the descriptions in a rest-api-spec artifact."""
    found = set()
    for path in folder.glob("**/api/*.json"):
        if path.name.startswith("_"):
            continue
        for operation, description in json.loads(path.read_text()).items():
            for url in description.get("url", {}).get("paths", []):
                found |= {(operation, method, url["path"]) for method in url["methods"]}
    if not found:
        raise SystemExit(f"nothing in {folder}")
    return found


def client(path):
    """(operation, method, path) of the requests that a client makes."""
    return {tuple(line.split()) for line in path.read_text().splitlines()}


def template_of(path):
    """Of a client's request: `/a-index/_doc/a-id` → `/{index}/_doc/{id}`."""
    path = re.sub(r"(?<=/)a-(\w+)", r"{\1}", path)
    # `_all` is an index expression; old clients call a type `doc_type`.
    return re.sub(r"^/_all/", "/{index}/", path).replace("{doc_type}", "{type}")


def anonymous(template):
    return re.sub(r"\{\w+\}", "{}", template)


def table(specifications, clients):
    owner, sections = {}, []
    for title, name in SPECIFICATIONS:
        sections.append((title, add(owner, specifications[name])))
    for title, name in CLIENTS_IN_TABLE:
        templates = {(o, m, template_of(path)) for o, m, path in clients[name]}
        sections.append((title, add(owner, templates)))
    lines = [
        "# Endpoints of the REST APIs of Elasticsearch 7 to 9 and OpenSearch 1 to 3: operation, methods,",
        "# path template. Made by make.py; see README.md.",
    ]
    for title, found in sections:
        lines.append(f"#\n# {title}")
        methods = collections.defaultdict(set)
        for operation, method, template in found:
            methods[operation, template].add(method)
        lines += [f"{o} {','.join(sorted(m))} {t}" for (o, t), m in sorted(methods.items())]
    return "\n".join(lines) + "\n"


def add(owner, endpoints):
    """Those of `endpoints` whose method and path nobody owns yet; of several names, the most general."""
    by_path = collections.defaultdict(set)
    for operation, method, template in endpoints:
        by_path[method, anonymous(template)].add((operation, template))
    added = []
    for key, named in by_path.items():
        if key in owner:
            continue
        # `inference.put` before `inference.put_openai`, `cat.master` before `cat.cluster_manager` at its path.
        literal = key[1].rsplit("/", 1)[-1]
        operation, template = min(named, key=lambda n: (not n[0].endswith("." + literal), len(n[0]), n))
        owner[key] = operation
        added.append((operation, key[0], template))
    return added


def requests(clients):
    by_request = collections.defaultdict(list)
    for name, found in clients.items():
        for request in found:
            by_request[request].append(name)
    letters = dict(zip(clients, "abcdefghijklmnopqrstuvwxyz"))
    lines = [
        "# Requests that clients make: operation as the client calls it, method, path, which clients.",
        "# Made by clients.py and clients.js from the installed packages; see README.md.",
    ]
    lines += [f"# {letter} {name}" for name, letter in letters.items()]
    for (operation, method, path), names in sorted(by_request.items()):
        lines.append(f"{operation} {method} {path} {''.join(sorted(letters[name] for name in names))}")
    return "\n".join(lines) + "\n"


main()
