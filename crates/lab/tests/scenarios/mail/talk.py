"""Speaks SMTP as it is told, byte by byte. Order (standard input, JSON): a list of dialogues, each with "port", "login" (an address or null),
"password", and "steps". A step is [KIND, PARTS]: `say` sends a line and reads an answer, `raw` sends bytes as they are and reads an answer, `more`
reads another one. Parts are texts (of bytes, as Latin-1), or [TEXT, HOW OFTEN]. Writes a list of answers for each dialogue, as a line of JSON: the last
line of each answer, "closed" where the server has hung up, "silent" where nothing came.

Usage: talk.py SERVER
"""
import base64
import json
import socket
import ssl
import sys

SERVER = sys.argv[1]
PATIENCE_S = 60
MORE_S = 0.7


class Client:
    def __init__(self, port):
        self.use(socket.create_connection((SERVER, port), timeout=PATIENCE_S))

    def use(self, connection):
        self.connection, self.lines = connection, connection.makefile("rb")

    def send(self, data):
        try:
            self.connection.sendall(data)
        except OSError:
            pass  # What it said before it hung up is still to be read.

    def answer(self):
        while True:
            try:
                line = self.lines.readline()
            except TimeoutError:
                return "silent"
            except OSError:
                return "closed"
            if not line:
                return "closed"
            if line[3:4] != b"-":
                return line.decode("latin-1").strip()

    def more(self):
        self.connection.settimeout(MORE_S)
        said = self.answer()
        if said == "silent":  # A reader that timed out reads no more.
            self.lines = self.connection.makefile("rb")
        self.connection.settimeout(PATIENCE_S)
        return said

    def must(self, line, code):
        self.send(line + b"\r\n")
        said = self.answer()
        if not said.startswith(code):
            sys.exit(f"{line!r}: {said}")

    def log_in(self, address, password):
        self.must(b"EHLO world.far.example", "250")
        self.must(b"STARTTLS", "220")
        self.use(ssl._create_unverified_context().wrap_socket(self.connection))
        self.must(b"EHLO world.far.example", "250")
        self.must(b"AUTH PLAIN " + base64.b64encode(f"\0{address}\0{password}".encode()), "235")


def bytes_of(parts):
    return b"".join(part.encode("latin-1") if isinstance(part, str) else part[0].encode("latin-1") * part[1] for part in parts)


for dialogue in json.load(sys.stdin):
    client = Client(dialogue["port"])
    client.answer()
    if dialogue["login"]:
        client.log_in(dialogue["login"], dialogue["password"])
    answers = []
    for kind, parts in dialogue["steps"]:
        if kind == "more":
            answers.append(client.more())
            continue
        client.send(bytes_of(parts) + (b"\r\n" if kind == "say" else b""))
        answers.append(client.answer())
    client.connection.close()
    print(json.dumps(answers))
