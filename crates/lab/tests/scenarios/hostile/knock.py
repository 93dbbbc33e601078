# Sends raw bytes to a web server, one case after the other, and tells what came back, a line of JSON each. Its orders come on standard input.
import json, re, socket, sys, time

order = json.load(sys.stdin)
site = order["site"].encode()
GET = b"GET / HTTP/1.1\r\nHost: " + site + b"\r\n"
END = b"Connection: close\r\n\r\n"
HIDDEN = b"GET /smuggled.html HTTP/1.1\r\nHost: " + site + b"\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: " + site + b"\r\n"


def host(value, line=b"GET / HTTP/1.1"):
    return line + b"\r\nHost: " + value + b"\r\n" + END


def path(value, method=b"GET"):
    return host(site, method + b" " + value + b" HTTP/1.1")


# What is sent, which statuses may come of it beside those of 400 to 499 (none: only those; 200 alone: nothing else), how many requests
# are in it.
CASES = [
    # That the script can see a good answer at all.
    (GET + END, [200], 1),
    (GET + b"\r\n" + GET + END, [200], 2),
    (host(site.upper()), [200], 1),
    (host(site + b":80"), [200], 1),
    (host(site + b"."), [200, 400, 404], 1),
    (path(b"/%61%62/../"), [200, 400, 404], 1),
    (path(b"http://" + site + b"/"), [200, 400], 1),
    (POST + b"Content-Length: 3\r\n" + END + b"abc", [200, 405], 1),
    (POST + b"Transfer-Encoding: chunked\r\n" + END + b"3;x=y\r\nabc\r\n0\r\n\r\n", [200, 405], 1),
    (host(site, b"HEAD / HTTP/1.1"), [200], 1),
    (host(site, b"BREW / HTTP/1.1"), [405, 501, 400, 200], 1),
    (b"GET / HTTP/1.0\r\nHost: " + site + b"\r\n\r\n", [200, 400, 505], 1),
    (GET + b"Cookie: " + b"a=b; " * 200 + b"\r\n" + END, [200], 1),
    # The host's name.
    (b"GET / HTTP/1.1\r\n" + END, [], 1),
    (b"GET / HTTP/1.0\r\n\r\n", [404, 400], 1),
    (GET + b"Host: " + site + b"\r\n" + END, [], 1),
    (GET + b"Host: other.example.org\r\n" + END, [], 1),
    (host(b""), [], 1),
    (host(b" "), [], 1),
    (host(b"a b"), [], 1),
    (host(b"../../etc"), [], 1),
    (host(b"ada.example.org/x"), [], 1),
    (host(b"user@" + site), [], 1),
    (host(site + b"\x00"), [], 1),
    (host(site + b"\x00.evil.example"), [], 1),
    (host(site + b" evil"), [], 1),
    (host(site + b":99999"), [], 1),
    (host(site + b":x"), [], 1),
    (host(b"' OR '1'='1"), [], 1),
    (host(b"$(touch /tmp/pwned)"), [], 1),
    (host(b"%s%n"), [], 1),
    (host(b"\xff\xfe"), [], 1),
    (host("пример.рф".encode()), [], 1),
    (host(b"[::1]"), [], 1),
    (host(b"127.0.0.1"), [], 1),
    (host(b"a" * 254), [], 1),
    (host(b"a." * 4000), [], 1),
    (host(b"nobody.invalid"), [], 1),
    (host(b"ada.account.invalid"), [], 1),
    (path(b"http://nobody.invalid/"), [], 1),
    (b" Host: x\r\n".join([b"GET / HTTP/1.1\r\n", END]), [], 1),
    (b"GET / HTTP/1.1\r\nHost : " + site + b"\r\n" + END, [], 1),
    (b"GET / HTTP/1.1\r\nHost: " + site + b"\r\n folded\r\n" + END, [], 1),
    # Two readers, two lengths.
    (POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1\r\nA\r\n0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [], 1),
    (POST + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [], 1),
    (POST + b"Content-Length: +0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Content-Length: -1\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Content-Length: 0x5\r\n\r\nabcde" + HIDDEN, [], 1),
    (POST + b"Content-Length: 5 \x0b\r\n\r\nabcde" + HIDDEN, [], 1),
    (POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Content-Length: \r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Content-Length : 5\r\n\r\nabcde" + HIDDEN, [], 1),
    (POST + b"Content_Length: 5\r\nContent-Length: five\r\n\r\nabcde", [], 1),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + HIDDEN, [501], 1),
    (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN, [501], 1),
    (POST + b"Transfer-Encoding: identity\r\n\r\n" + HIDDEN, [501], 1),
    (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN, [501], 1),
    (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + HIDDEN, [501], 1),
    (POST + b"Transfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * 100000 + b"\r\nabc\r\n0\r\n\r\n" + HIDDEN, [], 1),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n" + HIDDEN, [], 1),
    (GET + b"X: y\r\n\rGET /smuggled.html HTTP/1.1\r\nHost: " + site + b"\r\n\r\n", [], 1),
    (GET.replace(b"\r\n", b"\r") + b"\r\r", [], 1),
    (GET + b"Connection: close, Host\r\n\r\n", [200, 400], 1),
    (GET + b"Connection: Content-Length\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [200, 400], 1),
    # The request's line.
    (b"\r\n\r\n\r\n" + GET + END, [200, 400], 1),
    (b"GET\r\n\r\n", [], 1),
    (b"GET /\r\n\r\n", [], 1),
    (b"GET / HTTP/9.9\r\n\r\n", [505], 1),
    (b"GET / HTTP/1.1 HTTP/1.1\r\nHost: " + site + b"\r\n\r\n", [], 1),
    (b"GET  / HTTP/1.1\r\nHost: " + site + b"\r\n\r\n", [], 1),
    (b"GET / http/1.1\r\nHost: " + site + b"\r\n\r\n", [505], 1),
    (b"GET\t/\tHTTP/1.1\r\nHost: " + site + b"\r\n\r\n", [], 1),
    (b"G\x00T / HTTP/1.1\r\nHost: " + site + b"\r\n\r\n", [], 1),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505], 1),
    (b"CONNECT 10.9.0.30:7400 HTTP/1.1\r\nHost: 10.9.0.30:7400\r\n\r\n", [405, 501], 1),
    (b"TRACE / HTTP/1.1\r\nHost: " + site + b"\r\n" + END, [405], 1),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, [], 1),
    (b"\x00" * 4096, [], 1),
    (b"\xff" * 70000, [], 1),
    (b"A" * 200000, [], 1),
    # Paths.
    (path(b"/../../../../etc/passwd"), [], 1),
    (path(b"/..%2f..%2f..%2fetc/passwd"), [], 1),
    (path(b"/%2e%2e/%2e%2e/etc/passwd"), [], 1),
    (path(b"/.htaccess"), [], 1),
    (path(b"/%00"), [], 1),
    (path(b"/a%00.html"), [], 1),
    (path(b"/%"), [], 1),
    (path(b"/%zz"), [], 1),
    (path(b"/%c0%ae%c0%ae/etc/passwd"), [], 1),
    (path(b"/\xc0\xae\xc0\xae/etc/passwd"), [], 1),
    (path(b"\\..\\..\\etc"), [], 1),
    (path(b"etc/passwd"), [], 1),
    (path(b"*"), [], 1),
    (path(b"//etc/passwd"), [], 1),
    (path(b"file:///etc/passwd"), [], 1),
    (path(b"/" + b"a" * 9000), [], 1),
    (path(b"/" + b"a/" * 20000), [], 1),
    (path(b"/index.php?" + b"a[]=&" * 10000), [], 1),
    (path(b"/x.php/../../../etc/passwd"), [], 1),
    (path(b"/.well-known/phalanx/health"), [], 1),
    # Heads.
    (GET + b"X-Long: " + b"a" * 100000 + b"\r\n" + END, [], 1),
    (GET + b"X: y\r\n" * 5000 + END, [], 1),
    (GET + b": empty\r\n" + END, [], 1),
    (GET + b"no colon\r\n" + END, [], 1),
    (GET + b"X Y: z\r\n" + END, [], 1),
    (GET + b"X: a\x00b\r\n" + END, [], 1),
    (GET + b"X: a\rb\r\n" + END, [], 1),
    (GET + b"X\xff: y\r\n" + END, [], 1),
    (GET + b"Range: bytes=" + b"0-,1-," * 500 + b"\r\n" + END, [200, 206, 400, 416], 1),
    (GET + b"Expect: 200-maybe\r\n" + END, [200, 417], 1),
    (GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n\r\n", [200, 400], 1),
    (GET + b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: evil\r\n" + END, [200], 1),
]


def knock(data):
    begin = time.monotonic()
    got, timed_out = b"", False
    with socket.create_connection((order["address"], order["port"]), order["patience_s"]) as stream:
        stream.settimeout(0.5)
        try:
            stream.sendall(data)
        except OSError:
            pass  # It has answered and closed already.
        while time.monotonic() - begin < order["patience_s"]:
            try:
                piece = stream.recv(65536)
            except TimeoutError:
                if b"\r\n\r\n" in got:
                    break  # An answer, and a connection that stays.
                if not got:
                    # The bytes were no whole request perhaps: that there are no more must end it.
                    stream.shutdown(socket.SHUT_WR)
                continue
            except OSError:
                break
            if not piece:
                break
            got += piece
        else:
            timed_out = True
    return got, timed_out, time.monotonic() - begin


for sent, may, requests in CASES:
    got, timed_out, took = knock(sent)
    lines = re.findall(rb"^HTTP/1\.[01] ([0-9]{3})[^\r]*\r$", got, re.MULTILINE)
    status = int(lines[0]) if lines else 0
    print(json.dumps({
        "sent": repr(sent[:200]), "requests": requests, "may": may, "status": status, "answers": len([line for line in lines if line != b"100"]),
        "timed_out": timed_out, "smuggled": b"SMUGGLED" in got, "took_s": round(took, 2), "got": repr(got[:300]),
    }))
