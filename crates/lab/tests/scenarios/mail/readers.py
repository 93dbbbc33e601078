"""Reads and marks mail until it is ended: readers.py SERVER PASSWORD ADDRESS…

For each address a client logs in, looks, marks what is new, waits, and stays logged in as long as it can. Each round is a line "read ADDRESS", each
connection that was lost or refused a line "lost ADDRESS WHY".
"""
import imaplib
import ssl
import sys
import threading
import time

server, password, addresses = sys.argv[1], sys.argv[2], sys.argv[3:]
anybody = ssl._create_unverified_context()
lock = threading.Lock()


def say(line):
    with lock:
        print(line, flush=True)


def read(address):
    while True:
        try:
            client = imaplib.IMAP4_SSL(server, ssl_context=anybody, timeout=20)
            client.login(address, password)
            while True:
                client.select("INBOX")
                _, found = client.search(None, "UNSEEN")
                for number in found[0].split():
                    client.store(number, "+FLAGS", "(\\Seen \\Flagged)")
                say(f"read {address}")
                time.sleep(0.5)
        except Exception as error:
            say(f"lost {address} {error!r}")
            time.sleep(0.5)


for address in addresses:
    threading.Thread(target=read, args=(address,)).start()
