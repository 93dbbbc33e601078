"""Prints the subject of each message in the inbox: subjects.py SERVER PASSWORD ADDRESS…"""
import imaplib
import ssl
import sys

server, password, addresses = sys.argv[1], sys.argv[2], sys.argv[3:]
anybody = ssl._create_unverified_context()
for address in addresses:
    client = imaplib.IMAP4_SSL(server, ssl_context=anybody, timeout=20)
    client.login(address, password)
    _, (count,) = client.select("INBOX", readonly=True)
    if int(count):
        _, parts = client.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        for part in parts:
            if isinstance(part, tuple):
                print(part[1].decode("ascii", "replace").strip())
    client.logout()
