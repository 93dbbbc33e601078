"""What the benchmark of mail does inside a host, where a clock sees both ends of what it measures. Each command writes lines of JSON.

  rcpt HOST COUNT TOTAL SEED     the time of each RCPT TO of addresses that exist: the same ones in each run, spread over all of them, since the
                                 first question for its room makes a mailbox' directories
  unknown HOST COUNT TOTAL SEED  the same for addresses that do not exist, in sessions as long as the server allows
  user SOCKET COUNT TOTAL SEED   the time of each look-up of a user by Dovecot's own protocol
  login SOCKET COUNT TOTAL SEED PASSWORD   the time of each login proven there
  change METHOD PATH [BODY]      one change through the API of this host's panel: when it was sent and answered
  watch HOST SOCKET CHANGE ADDRESS PASSWORD   says "ready", then when the change counted here; CHANGE is add, password or remove

Mailbox n is bN@dM.example, where M is n / 50. Times of day are of the machine's clock, which is that of all hosts. All loops are bounded.
"""
import base64
import json
import random
import select
import socket
import sys
import time
import urllib.request

PER_DOMAIN = 50
# More unknown recipients than this in a session are answered slowly (smtpd_soft_error_limit).
UNKNOWN_MAX = 9
# Fewer than smtpd_recipient_limit.
KNOWN_MAX = 500
ASKED_FOR_MAX = 500
LIMIT_S = 60
# The resolution of what is watched.
PAUSE_S = 0.005
LOGIN_PAUSE_S = 0.02


def address(number):
    return f"b{number}@d{number // PER_DOMAIN}.example"


class Session:
    """An SMTP session that asks for recipients."""

    def __init__(self, host):
        self.stream = socket.create_connection((host, 25), timeout=20)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = self.stream.makefile("rb")
        self.answer()
        self.ask("EHLO bench.far.example")
        self.ask("MAIL FROM:<ann@far.example>")

    def answer(self):
        while True:
            line = self.lines.readline().decode()
            if len(line) < 4:
                raise SystemExit(f"the server hung up: {line!r}")
            if line[3] == " ":
                return line

    def ask(self, words):
        self.stream.sendall(words.encode() + b"\r\n")
        return self.answer()

    def recipient(self, to):
        return self.ask(f"RCPT TO:<{to}>")


def recipients(host, count, total, seed, known):
    dice = random.Random(seed)
    some = random.Random(0).sample(range(total), min(total, ASKED_FOR_MAX))
    took, session, asked = [], None, 0
    for _ in range(count):
        if session is None or asked == (KNOWN_MAX if known else UNKNOWN_MAX):
            session, asked = Session(host), 0
        to = address(dice.choice(some)) if known else "x" + address(dice.randrange(total))
        begin = time.perf_counter()
        said = session.recipient(to)
        took.append((time.perf_counter() - begin) * 1e3)
        asked += 1
        if not said.startswith("250" if known else "550"):
            raise SystemExit(f"{to}: {said}")
    print(json.dumps(took))


class Auth:
    """A connection to Dovecot's auth service."""

    def __init__(self, path, hello):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(20)
        self.stream.connect(path)
        self.stream.sendall(hello)
        self.rest = b""

    def send(self, *fields):
        self.stream.sendall("\t".join(fields).encode() + b"\n")

    def login(self, number, who, password):
        proof = base64.b64encode(f"\0{who}\0{password}".encode()).decode()
        self.send("AUTH", str(number), "PLAIN", "service=smtp", "secured", f"resp={proof}")

    def lines(self, wait_s):
        """Whole lines that are there within a time."""
        if select.select([self.stream], [], [], wait_s)[0]:
            piece = self.stream.recv(65536)
            if not piece:
                raise SystemExit("the auth service hung up")
            self.rest += piece
        *whole, self.rest = self.rest.split(b"\n")
        return [line.decode().split("\t") for line in whole]

    def until(self, words, number):
        for _ in range(10_000):
            for line in self.lines(20):
                if line[0] in words and line[1] == str(number):
                    return line
        raise SystemExit("no answer of the auth service")


def client(path):
    auth = Auth(path, b"VERSION\t1\t2\nCPID\t%d\n" % random.randrange(1 << 20, 1 << 30))
    for _ in range(100):
        if any(line[0] == "DONE" for line in auth.lines(20)):
            return auth
    raise SystemExit("no greeting of the auth service")


def users(path, count, total, seed):
    dice, auth, took = random.Random(seed), Auth(path, b"VERSION\t1\t0\n"), []
    for number in range(1, count + 1):
        who = address(dice.randrange(total))
        begin = time.perf_counter()
        auth.send("USER", str(number), who, "service=imap")
        line = auth.until(("USER", "NOTFOUND", "FAIL"), number)
        took.append((time.perf_counter() - begin) * 1e3)
        if line[0] != "USER":
            raise SystemExit(f"{who}: {line}")
    print(json.dumps(took))


def logins(path, count, total, seed, password):
    dice, auth, took = random.Random(seed), client(path), []
    for number in range(1, count + 1):
        who = address(dice.randrange(total))
        begin = time.perf_counter()
        auth.login(number, who, password)
        line = auth.until(("OK", "FAIL"), number)
        took.append((time.perf_counter() - begin) * 1e3)
        if line[0] != "OK":
            raise SystemExit(f"{who}: {line}")
    print(json.dumps(took))


def change(method, path, body=""):
    token = open("/var/lib/phalanx/panel/admin.token").read().strip()
    head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:8080/api/v1{path}", body.encode() or None, head, method=method)
    sent = time.time()
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.read()
    print(json.dumps({"sent": sent, "answered": time.time()}))


def watch(host, path, what, who, password):
    """When this node takes or refuses mail for somebody, and their login, as it shall. Those asked before are answered otherwise."""
    auth = client(path)
    wanted_mail = {"add": "250", "remove": "550"}.get(what)
    wanted_login = "FAIL" if what == "remove" else "OK"
    print("ready", flush=True)
    end, session, asked = time.monotonic() + LIMIT_S, None, 0
    mail_at = None if wanted_mail else 0.0
    # Dovecot makes who fails wait for the answer; what counts is when it was asked.
    login_at, sent = None, {}
    next_login = 0.0
    while (mail_at is None or login_at is None) and time.monotonic() < end:
        now = time.time()
        if now >= next_login:
            number = len(sent) + 1
            sent[number] = now
            auth.login(number, who, password)
            next_login = now + LOGIN_PAUSE_S
        for line in auth.lines(0):
            if line[0] == wanted_login:
                at = sent[int(line[1])]
                login_at = at if login_at is None else min(at, login_at)
        if mail_at is None:
            if session is None or asked == UNKNOWN_MAX:
                session, asked = Session(host), 0
            asked += what == "add"
            now = time.time()
            if session.recipient(who).startswith(wanted_mail):
                mail_at = now
        time.sleep(PAUSE_S)
    if mail_at is None or login_at is None:
        raise SystemExit(f"{what} of {who} does not count after {LIMIT_S} s")
    print(json.dumps({"mail": mail_at, "login": login_at}))


def main(command, *words):
    match command:
        case "rcpt" | "unknown":
            host, *numbers = words
            recipients(host, *map(int, numbers), command == "rcpt")
        case "user":
            users(words[0], *map(int, words[1:]))
        case "login":
            logins(words[0], *map(int, words[1:4]), words[4])
        case "change":
            change(*words)
        case "watch":
            watch(*words)


main(*sys.argv[1:])
