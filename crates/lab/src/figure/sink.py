"""The world's mail server: takes every message for every address, and keeps it as a line of JSON in /var/spool/world.jsonl.

It answers 550 to recipients that begin with "nobody@" and 451 to those that begin with "later@", and knows no extensions but those listed.
"""
import asyncio
import json
import time

KEPT = "/var/spool/world.jsonl"
LINE_MAX = 4 << 20


async def talk(reader, writer):
    def say(line):
        writer.write(line.encode() + b"\r\n")

    client = writer.get_extra_info("peername")[0]
    helo, sender, recipients = None, None, []
    say("220 mx.far.example ESMTP")
    while True:
        await writer.drain()
        line = await reader.readline()
        if not line:
            break
        word, _, rest = line.decode("latin-1").strip().partition(" ")
        word = word.upper()
        if word == "EHLO":
            helo = rest
            say("250-mx.far.example")
            say("250-8BITMIME")
            say("250-SIZE 100000000")
            say("250 ENHANCEDSTATUSCODES")
        elif word == "HELO":
            helo = rest
            say("250 mx.far.example")
        elif word == "MAIL":
            sender, recipients = rest[rest.find("<") + 1:rest.find(">")], []
            say("250 2.1.0 ok")
        elif word == "RCPT":
            recipient = rest[rest.find("<") + 1:rest.find(">")]
            if recipient.startswith("nobody@"):
                say("550 5.1.1 nobody of that name")
            elif recipient.startswith("later@"):
                say("451 4.3.0 come back later")
            else:
                recipients.append(recipient)
                say("250 2.1.5 ok")
        elif word == "DATA":
            say("354 go on")
            await writer.drain()
            data = []
            while (line := await reader.readline()) not in (b".\r\n", b""):
                data.append(line[1:] if line.startswith(b".") else line)
            message = {"at": time.time(), "client": client, "helo": helo, "from": sender, "to": recipients,
                       "data": b"".join(data).decode("latin-1")}
            with open(KEPT, "a", encoding="utf-8") as kept:
                kept.write(json.dumps(message) + "\n")
            say("250 2.0.0 kept")
        elif word in ("RSET", "NOOP"):
            say("250 2.0.0 ok")
        elif word == "QUIT":
            say("221 2.0.0 bye")
            break
        else:
            say("502 5.5.1 not here")
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(talk, "0.0.0.0", 25, limit=LINE_MAX)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
