"""What a mailbox holds on both sides of mbsync: here, in Maildirs, and there, by IMAP. Writes JSON: for each side the folders that hold letters, and in
each the subjects with their flags.

Usage: sides.py SERVER ADDRESS PASSWORD DIRECTORY
"""
import email
import imaplib
import json
import pathlib
import re
import ssl
import sys

server, address, password, directory = sys.argv[1:]
WORDS = {"S": "Seen", "F": "Flagged", "R": "Answered", "D": "Draft", "T": "Deleted"}


def subject(source):
    return email.message_from_bytes(source)["Subject"]


def near():
    found = {}
    for path in pathlib.Path(directory).rglob("*"):
        if path.parent.name in ("new", "cur") and path.is_file():
            letters = path.name.partition(":2,")[2]
            flags = sorted(WORDS[letter] for letter in letters)
            folder = str(path.parent.parent.relative_to(directory))
            found.setdefault(folder, []).append([subject(path.read_bytes()), flags])
    return found


def far():
    found = {}
    imap = imaplib.IMAP4_SSL(server, ssl_context=ssl._create_unverified_context())
    imap.login(address, password)
    for line in imap.list()[1]:
        folder = line.decode().rpartition(' "." ')[2].strip('"')
        imap.select(f'"{folder}"', readonly=True)
        numbers = imap.search(None, "ALL")[1][0].decode().split()
        for number in numbers:
            answer = imap.fetch(number, "(FLAGS BODY.PEEK[])")[1]
            told = answer[0][0].decode() + (answer[1].decode() if isinstance(answer[1], bytes) else "")
            flags = sorted(set(re.findall(r"\\(\w+)", told)) - {"Recent"})
            found.setdefault(folder, []).append([subject(answer[0][1]), flags])
    imap.logout()
    return found


print(json.dumps({"near": near(), "far": far()}))
