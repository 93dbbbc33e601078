"""Tells a server of mailboxes what it is told itself, and writes what is answered. Order (standard input, JSON): {"protocol": "imap" or "sieve", "address",
"password", "lines"}, each line text of bytes as Latin-1. Writes the answers as a list of texts, each in full.

Usage: tell.py SERVER
"""
import base64
import json
import socket
import ssl
import sys

order = json.load(sys.stdin)
is_imap = order["protocol"] == "imap"
tls = ssl._create_unverified_context()
connection = socket.create_connection((sys.argv[1], 993 if is_imap else 4190), timeout=30)
if is_imap:
    connection = tls.wrap_socket(connection)
lines = connection.makefile("rb")


def answer():
    said = b""
    while True:
        line = lines.readline()
        said += line
        if line.rstrip().endswith(b"}"):  # What follows is so many bytes, and not for us to read.
            said += lines.read(int(line[line.rindex(b"{") + 1:line.rindex(b"}")])) + lines.readline()
        word = line.split(b" ")[0].strip()
        if not line or word == b"t" or line.startswith(b"* BAD") or not is_imap and word in (b"OK", b"NO", b"BYE"):
            return said.decode("latin-1").strip()


def tell(line):
    connection.sendall((b"t " if is_imap else b"") + line + b"\r\n")
    return answer()


if is_imap:
    lines.readline()
    said = tell(f"LOGIN {order['address']} {order['password']}".encode())
else:
    answer()
    tell(b"STARTTLS")
    connection = tls.wrap_socket(connection)
    lines = connection.makefile("rb")
    answer()
    said = tell(b'AUTHENTICATE "PLAIN" "' + base64.b64encode(f"\0{order['address']}\0{order['password']}".encode()) + b'"')
if "OK" not in said:
    sys.exit(said)
print(json.dumps([tell(line.encode("latin-1")) for line in order["lines"]]))
