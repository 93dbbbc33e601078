"""Puts a Sieve script (standard input) in place as a mail program would: ManageSieve (RFC 5804) with STARTTLS.

Usage: sieve.py SERVER ADDRESS PASSWORD
"""
import base64
import socket
import ssl
import sys

server, address, password = sys.argv[1:]
script = sys.stdin.buffer.read()
connection = socket.create_connection((server, 4190), timeout=20)
lines = connection.makefile("rb")


def answer():
    said = []
    while True:
        line = lines.readline()
        said.append(line)
        if not line or line.split(b" ")[0].strip() in (b"OK", b"NO", b"BYE"):
            if not line.startswith(b"OK"):
                sys.exit(b"".join(said).decode())
            return


def ask(words):
    connection.sendall(words + b"\r\n")
    answer()


answer()
ask(b"STARTTLS")
connection = ssl._create_unverified_context().wrap_socket(connection)
lines = connection.makefile("rb")
answer()
login = base64.b64encode(f"\0{address}\0{password}".encode())
ask(b'AUTHENTICATE "PLAIN" "' + login + b'"')
ask(b'PUTSCRIPT "rules" {%d+}\r\n' % len(script) + script)
ask(b'SETACTIVE "rules"')
print("active")
