"""Serves GET /off/HOST and GET /status/HOST on 127.0.0.1:7070: each question is a file in /run/power, which the lab answers."""
import http.server
import itertools
import os
import time

PLACE = "/run/power"
NUMBERS = itertools.count()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if len(parts) != 2 or parts[0] not in ("off", "status") or not parts[1].isalnum():
            self.send_error(404)
            return
        question = os.path.join(PLACE, f"{parts[0]}.{parts[1]}.{next(NUMBERS)}")
        open(question, "w").close()
        for _ in range(200):
            if os.path.exists(question + ".answer"):
                break
            time.sleep(0.1)
        try:
            with open(question + ".answer", "rb") as file:
                answer = file.read()
            os.remove(question + ".answer")
        except FileNotFoundError:
            self.send_error(504)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", 7070), Handler).serve_forever()
