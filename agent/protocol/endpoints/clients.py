"""Every request line that a Python client can make: `clients.py elasticsearch|opensearchpy`.

Calls each method of the client with each subset of the parameters that its path is made of, and prints what the
client hands to its transport: operation, method, path.
"""

import copy
import importlib
import inspect
import itertools
import re
import sys
import warnings

warnings.simplefilter("ignore")

# Parameters that stand for a body and are not always required.
BODIES = ("body", "operations", "document", "doc", "searches", "query")
# What is given for what is required beside the path, one after the other until a request is made.
FILLERS = ({}, [{}], "x", 1)


class Made(Exception):
    """A request was made; it goes nowhere."""


def captured(method, path, *args, **kwargs):
    raise Made(method, path)


def path_parameters(function):
    source = inspect.getsource(function)
    names = []
    for arguments in re.findall(r"_make_path\(([^)]*)\)", source):
        names += re.findall(r"(?<![\"'\w])([a-z_]\w*)(?![\"'\w])", arguments)
    names += re.findall(r"_quote\((\w+)\)", source)
    known = inspect.signature(function).parameters
    return [name for name in dict.fromkeys(names) if name in known]


def requests_of(function):
    parameters = inspect.signature(function).parameters.values()
    of_path = path_parameters(function)
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    bodies = {p.name for p in parameters if p.name in BODIES} - set(of_path)
    for count in range(len(of_path) + 1):
        for chosen in itertools.combinations(of_path, count):
            if required & set(of_path) <= set(chosen):
                path = {name: f"a-{name.strip('_')}" for name in chosen}
                yield from made_by(function, path, required - set(of_path), bodies)


def made_by(function, path, required, bodies):
    for filler, names in itertools.product(FILLERS, (required | bodies, required - bodies)):
        try:
            # Copies: clients write into bodies.
            function(**path, **{name: copy.copy(filler) for name in names})
        except Made as made:
            yield made.args
            return
        except Exception:
            # The client refuses what it was given.
            continue


def namespaces(client):
    """The client itself and what hangs on it, each with its name."""
    yield "", client
    queue, seen = [("", client)], {id(client)}
    while queue:
        prefix, owner = queue.pop()
        for name, value in vars(owner).items():
            kinds = {kind.__name__ for kind in type(value).__mro__}
            if id(value) in seen or not kinds & {"NamespacedClient", "NamespaceClient"}:
                continue
            seen.add(id(value))
            path = name if prefix in ("", "plugins") else f"{prefix}.{name}"
            # `http` sends what it is told to.
            if path != "http":
                yield path, value
                queue.append((path, value))


def main():
    library = importlib.import_module(sys.argv[1])
    client = getattr(library, "Elasticsearch", None) or library.OpenSearch
    client = client(["http://localhost:9200"])
    client.transport.perform_request = captured
    lines = set()
    for namespace, owner in namespaces(client):
        for name, method in inspect.getmembers(owner, inspect.ismethod):
            if name.startswith("_") or name in ("options", "perform_request", "close"):
                continue
            operation = f"{namespace}.{name}" if namespace else name
            for verb, path in requests_of(method):
                lines.add(f"{operation} {verb} {path.split('?')[0]}")
    print(*sorted(lines), sep="\n")


main()
