"""Clients of a service, for tests/test_serving.py and tests/benchmarks/serving_load.py: one that
starts it, one that asks, and one that sends what nobody should."""
import contextlib
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
from urllib.parse import urlsplit

import psutil

OPERATOR = "key-of-an-operator"


class Running:
    "A service in a process of its own."
    def __init__(self, *words, patience=600):
        environment = {**os.environ, "SFTBOOK_OPERATOR_KEYS": OPERATOR, "PYTHONUNBUFFERED": "1"}
        self.log = tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "sftbook.cli", "serve", *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env=environment)
        line = self.process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)", line)
        assert found, line + self.logged()
        self.host, self.port, self.patience = found[1], int(found[2]), patience

    def logged(self):
        "What it has written on its error stream."
        self.log.seek(0)
        return self.log.read()

    def workers(self):
        "Processes that hold a model: the children of its fork server."
        service = psutil.Process(self.process.pid)
        return [p for child in service.children() for p in child.children()]

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=self.patience)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def send(connection, path, said=None, method=None, **headers):
    "Status, headers and body of the answer; `said` is JSON, or bytes as they are."
    body = said if isinstance(said, (bytes, type(None))) else json.dumps(said).encode()
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, named)
    reply = connection.getresponse()
    return reply.status, dict(reply.getheaders()), reply.read()


def ask(service, path, said=None, **more):
    "Ask once: status, headers, and JSON where it is JSON."
    with contextlib.closing(service.connect()) as connection:
        status, headers, body = send(connection, path, said, **more)
    is_json = headers.get("content-type", "").startswith("application/json")
    return status, headers, json.loads(body) if is_json else body.decode()


# ---- requests that nobody should send

def anything(rng, depth=0):
    "A value of JSON, of any kind."
    plain = [None, True, -1, 0.5, 10**30, "", "a text", "\ud800", "\0", "BYTES", "<b>", "../../etc"]
    if depth < 4 and rng.random() < 0.4:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 4 and rng.random() < 0.3:
        keys = ["instances", "inputs", "name", "data", "shape", "datatype", "outputs", "id", "x"]
        return {rng.choice(keys): anything(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(plain)


def damaged(rng, body):
    "Bytes that were some JSON once."
    body = bytearray(body)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(body) + 1)
        rng.choice([lambda p=place: body.insert(p, rng.randrange(256)),
                    lambda p=place: body.__delitem__(slice(p, p + rng.randrange(9))),
                    lambda p=place: body.__setitem__(slice(p, p), body[:p])])()
    return bytes(body)


def bad_body(rng):
    "A body that is no request, or hardly one."
    tensor = dict(name="text", datatype="BYTES", shape=[1], data=["a"])
    tensor[rng.choice(list(tensor))] = anything(rng)
    said = dict(row="a", correct="sport", predicted="business")
    said[rng.choice(list(said))] = anything(rng)
    some = [{"instances": anything(rng)}, {"corrections": [said]}, {"corrections": anything(rng)},
            {"inputs": [tensor], "outputs": anything(rng)}, anything(rng),
            {"instances": [anything(rng)] * rng.randrange(300)}]
    body = json.dumps(rng.choice(some)).encode()
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice([b"[", b'{"instances":', b'{"a":[']) * rng.randrange(1, 20_000)
    if kind == 1:
        return b'{"instances": ["' + b"x" * rng.randrange(300_000) + b'"]}'
    if kind == 2:
        return b'{"instances": [' + b"9" * rng.randrange(1, 9000) + b"]}"
    return damaged(rng, body) if kind < 6 else body


def bad_path(rng, names):
    "An address that nobody has, or somebody might."
    if rng.random() < 0.6:
        good = rng.choice(["/v1/models/{}:predict", "/v2/models/{}/infer",
                           "/v1/models/{}:feedback"])
        return good.format(rng.choice(names))
    name = rng.choice([*names, "%00", "..%2f..%2fetc", "%ff", "a" * 2000, ":predict", "ü"])
    path = rng.choice(["/v1/models/{}:predict", "/v2/models/{}/infer", "/v1/models/{}", "/v2/{}",
                       "/v2/models/{}/versions/{}/infer", "/{}", "/v2/repository/models/{}/load"])
    return path.replace("{}", name).encode().decode("latin-1")


def raw_request(rng, names):
    "Bytes that are hardly HTTP."
    path = bad_path(rng, names).encode("latin-1")
    body = bad_body(rng)[:3000]
    length = b"content-length: %d" % len(body)
    head = [b"POST " + path + b" HTTP/1.1", b"connection: close", length]
    kind = rng.randrange(6)
    if kind == 0:
        head[0] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200)))
    elif kind == 1:
        head[2] = b"content-length: " + rng.choice([b"-1", b"x", b"99", b"1" * 30])
    elif kind == 2:
        head[2] = b"transfer-encoding: chunked"
        body = b"%x\r\n" % rng.randrange(99) + body + b"\r\n0\r\n\r\n"
    elif kind == 3:
        head += [b"x-%d: " % i + b"y" * rng.randrange(2000) for i in range(rng.randrange(60))]
    elif kind == 4:
        head[0] = rng.choice([b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"]) + head[0][4:]
    else:
        head += [b"authorization: Bearer \xff\xfe", b"x-operator-key: \xff", b"expect: nothing"]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def send_raw(service, data, seconds=1.):
    "What comes back for bytes; nothing where the connection is closed, or where it waits for more."
    with socket.create_connection((service.host, service.port), seconds) as connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(data)
            pieces = iter(lambda: connection.recv(65_536), b"")
            return b"".join(pieces)
        except (ConnectionError, TimeoutError):
            return b""


def malformed(service, names, number, seed=0):
    "Send many; {status: how often}, and what must not have been sent back."
    rng, counts, leaks = random.Random(seed), {}, []
    connection = service.connect()
    for i in range(number):
        if rng.random() < 0.25:
            reply = send_raw(service, raw_request(rng, names))
            found = re.match(rb"HTTP/1.1 (\d+)", reply)
            status = int(found[1]) if found else 0
        else:
            status, reply = _sent(connection, rng, names)
        counts[status] = counts.get(status, 0) + 1
        if status >= 500 and status != 503 or leaked(reply):
            leaks.append((i, status, reply[:300]))
    connection.close()
    return counts, leaks


def _sent(connection, rng, names):
    path = urlsplit(bad_path(rng, names)).path.encode("latin-1").decode("latin-1")
    path = "".join(c if "!" <= c <= "~" else "%%%02x" % ord(c) for c in path)
    try:
        status, _, reply = send(connection, path or "/", bad_body(rng))
        return status, reply
    except (ConnectionError, http.client.HTTPException):
        connection.close()  # it opens again
        return 0, b""


def leaked(reply):
    "Whether a trace or a place of this machine is in an answer."
    signs = [b"Traceback", b'File "', b".py", b"site-packages", os.getcwd().encode(),
             tempfile.gettempdir().encode() + b"/", sys.prefix.encode()]
    return any(sign in reply for sign in signs)
