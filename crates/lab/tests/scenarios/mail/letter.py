"""Prints a letter from signed.example, signed (dkimpy) with the key in the file that is named, and with a line in the name of whoever checks it."""
import sys

import dkim

key, sender, recipient, subject = sys.argv[1:]
letter = (
    f"From: {sender}\r\nTo: {recipient}\r\nSubject: {subject}\r\nDate: Sat, 28 Nov 2026 12:00:00 +0000\r\n"
    f"Message-ID: <{abs(hash(subject))}@signed.example>\r\n\r\nIt is the weather that we talk about.\r\n"
).encode()
signature = dkim.sign(letter, b"key", b"signed.example", open(key, "rb").read(), include_headers=[b"from", b"to", b"subject"])
forged = b"Authentication-Results: mail.example.net; dkim=pass header.d=bank.example\r\n"
sys.stdout.buffer.write(forged + signature + letter)
