"""Receives profiles as Pyroscope and Parca do: `profile_receiver.py HTTP_PORT GRPC_PORT FOLDER`.

What comes is decoded by Google's protobuf from Parca's own definition, and written down: a line of
JSON a profile in FOLDER/received.jsonl, the profile itself in the file that the line names.
"""

import itertools
import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FOLDER = Path(sys.argv[3])
PACKAGE = "parca.profilestore.v1alpha1"

numbers = itertools.count()
lock = threading.Lock()


def keep(server: str, profile: bytes, **told) -> None:
    with lock:
        file = FOLDER / f"{next(numbers)}.pb.gz"
        file.write_bytes(profile)
        line = json.dumps({"server": server, "file": str(file), **told})
        with open(FOLDER / "received.jsonl", "a", encoding="utf-8") as received:
            received.write(line + "\n")


class Ingest(BaseHTTPRequestHandler):
    """Pyroscope's POST /ingest."""

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 200 if url.path == "/ingest" else 404
        if status == 200:
            query = {key: value[0] for key, value in parse_qs(url.query).items()}
            keep("pyroscope", body, tenant=self.headers["X-Scope-OrgID"], **query)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def write_raw_request():
    """`WriteRawRequest` of parca/profilestore/v1alpha1/profilestore.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    messages = {
        "WriteRawRequest": [
            ("tenant", 1, field.TYPE_STRING, False, None),
            ("series", 2, field.TYPE_MESSAGE, True, "RawProfileSeries"),
            ("normalized", 3, field.TYPE_BOOL, False, None),
        ],
        "RawProfileSeries": [
            ("labels", 1, field.TYPE_MESSAGE, False, "LabelSet"),
            ("samples", 2, field.TYPE_MESSAGE, True, "RawSample"),
        ],
        "LabelSet": [("labels", 1, field.TYPE_MESSAGE, True, "Label")],
        "Label": [
            ("name", 1, field.TYPE_STRING, False, None),
            ("value", 2, field.TYPE_STRING, False, None),
        ],
        "RawSample": [("raw_profile", 1, field.TYPE_BYTES, False, None)],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="profilestore.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for member, number, kind, repeated, of in fields:
            message.field.add(
                name=member,
                number=number,
                type=kind,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type_name=f".{PACKAGE}.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{PACKAGE}.WriteRawRequest")
    return message_factory.GetMessageClass(found)


def write_raw(request, context) -> bytes:
    metadata = dict(context.invocation_metadata())
    for series in request.series:
        labels = {label.name: label.value for label in series.labels.labels}
        for sample in series.samples:
            keep(
                "parca",
                sample.raw_profile,
                labels=labels,
                normalized=request.normalized,
                tenant=metadata.get("x-scope-orgid"),
            )
    return b""


def main() -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        write_raw, request_deserializer=write_raw_request().FromString
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service = f"{PACKAGE}.ProfileStoreService"
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"WriteRaw": handler})]
    )
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
    server.start()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Ingest).serve_forever()


main()
