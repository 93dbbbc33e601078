"""Sends letters and says which were taken: letters.py SERVER FIRST COUNT AT-ONCE PAUSE RECIPIENT…

Letter N has the subject "letter N." and goes to one of the recipients, in turns. Each that was answered with 250 is a line "taken N", each
other one "refused N WHY". AT-ONCE are sent at a time, each after PAUSE seconds; each is tried once.
"""
import concurrent.futures
import smtplib
import sys
import threading
import time

server, first, count, at_once, pause = sys.argv[1], *map(float, sys.argv[2:6])
recipients = sys.argv[6:]
numbers = iter(range(int(first), int(first + count)))
lock = threading.Lock()


def take():
    with lock:
        return next(numbers, None)


def say(line):
    with lock:
        print(line, flush=True)


def work(_):
    client = None
    while (number := take()) is not None:
        time.sleep(pause)
        to = recipients[number % len(recipients)]
        text = f"From: ann@far.example\r\nTo: {to}\r\nSubject: letter {number}.\r\n\r\nNumber {number}.\r\n"
        try:
            if client is None:
                client = smtplib.SMTP(server, 25, local_hostname="world.far.example", timeout=20)
            client.sendmail("ann@far.example", [to], text)
            say(f"taken {number}")
        except Exception as error:
            say(f"refused {number} {error!r}")
            client = None


with concurrent.futures.ThreadPoolExecutor(int(at_once)) as pool:
    list(pool.map(work, range(int(at_once))))
