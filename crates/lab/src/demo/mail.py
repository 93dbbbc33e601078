"""The demonstration's clients of mail, on the world's host: one sends a letter every half second and tries again as a mail server does; one reads
the mailbox over IMAP and logs in anew when the session ends. Arguments: the cluster's address, the mailbox, its password, the file that ends
the sending. It writes one line of JSON for each letter, and one for each look into the mailbox, when all letters were read or nothing more came.
"""
import imaplib
import json
import os
import re
import smtplib
import ssl
import sys
import threading
import time
from email.utils import formatdate

EVERY_S = 0.5
LETTERS_MAX = 400
PATIENCE_S = 5
# A mail server tries for days; here a minute stands for that.
TRIES_FOR_S = 60
READ_FOR_S = 60
LOOKS_MAX = 2_000

server, address, password, stop_file = sys.argv[1:]
begin = time.monotonic()
letters, looks, lock = {}, [], threading.Lock()


def now():
    return round(time.monotonic() - begin, 3)


def send(number):
    text = (
        f"Date: {formatdate()}\r\nMessage-Id: <{number}.{os.getpid()}@far.example>\r\nFrom: Ann <ann@far.example>\r\n"
        f"To: {address}\r\nSubject: demo letter {number}\r\n\r\nA letter.\r\n"
    )
    letter = {"number": number, "at": now(), "tries": 0, "took": None, "taken": None, "read": None, "copies": 0, "said": ""}
    with lock:
        letters[number] = letter
    while letter["taken"] is None and now() - letter["at"] < TRIES_FOR_S:
        letter["tries"] += 1
        tried = now()
        try:
            with smtplib.SMTP(server, timeout=PATIENCE_S, local_hostname="world.far.example") as smtp:
                smtp.sendmail("ann@far.example", [address], text)
            letter["taken"] = now()
            letter["took"] = letter["taken"] - tried
        except (OSError, smtplib.SMTPException) as error:
            letter["said"] = f"{type(error).__name__}: {error}"[:100]
            time.sleep(1)


def login():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    imap = imaplib.IMAP4_SSL(server, ssl_context=context, timeout=PATIENCE_S)
    imap.login(address, password)
    imap.select("INBOX")
    return imap


def read(sending):
    imap, seen, logins = None, 0, 0
    for _ in range(LOOKS_MAX):
        at, why = now(), ""
        try:
            if imap is None:
                imap = login()
                logins += 1
            imap.noop()
            found = imap.uid("SEARCH", f"UID {seen + 1}:*")[1][0].split()
            for uid in (int(uid) for uid in found):
                if uid <= seen:
                    continue
                head = imap.uid("FETCH", str(uid), "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1][0][1].decode()
                number = re.search(r"demo letter (\d+)", head)
                seen = uid
                if number:
                    with lock:
                        letter = letters[int(number.group(1))]
                        letter["copies"] += 1
                        letter["read"] = letter["read"] or now()
        except (OSError, imaplib.IMAP4.error, imaplib.IMAP4.abort) as error:
            imap, why = None, f"{type(error).__name__}: {error}"[:100]
        looks.append({"look": at, "took": now() - at, "logins": logins, "why": why})
        done_at = sending.get("done")
        if done_at is not None:
            with lock:
                missing = [letter for letter in letters.values() if letter["taken"] is not None and letter["read"] is None]
            if not missing or now() - done_at > READ_FOR_S:
                break
        time.sleep(EVERY_S / 2)


def main():
    sending = {}
    reader = threading.Thread(target=read, args=(sending,))
    reader.start()
    threads = []
    for number in range(LETTERS_MAX):
        if os.path.exists(stop_file):
            break
        threads.append(threading.Thread(target=send, args=(number,)))
        threads[-1].start()
        time.sleep(max(0.0, (number + 1) * EVERY_S - now()))
    for thread in threads:
        thread.join()
    sending["done"] = now()
    reader.join()
    for line in [*letters.values(), *looks]:
        print(json.dumps(line))


print(json.dumps({"clock": time.time()}), flush=True)
main()
