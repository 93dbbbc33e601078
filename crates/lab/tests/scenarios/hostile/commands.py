# Gives each text to each command, once each, and tells what came of it: a line of JSON for each command, with what went wrong. A text that is taken
# is read back, and what was made with it is removed. Its orders come on standard input.
import json, subprocess, sys, threading

order = json.load(sys.stdin)
PATIENCE_S = order["patience_s"]
told = threading.Lock()


def run(words):
    return subprocess.run(["phalanx", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)


def bearable(text):
    return all(c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") for c in text)


def at(value, path):
    for part in path:
        value = value[int(part) if isinstance(value, list) else part] if value is not None else None
    return value


def ascii_form(host):
    # In letters or in ASCII, it is one name (RFC 5890).
    return host.lower() if host.isascii() else host.encode("idna").decode()


def same(command, sent, back):
    if command["host"]:
        sent, back = ascii_form(sent), str(back).lower()
    if isinstance(back, (int, bool)):
        # A number has one value, however it is written.
        return sent.lstrip("+").isdecimal() and int(sent) == back
    return sent == back


def put(words, text):
    return [word.replace("@", text) for word in words]


def attempt(command, text):
    done = run(put(command["words"], text))
    out, err = done.stdout.decode(), done.stderr.decode()
    if done.returncode not in (0, 1, 2):
        return "it ended with %d: %s" % (done.returncode, err)
    if not bearable(out + err):
        return "a terminal would obey: %r" % (out + err)
    if done.returncode:
        return None if err.startswith("error: ") else "no reason: %r" % err
    taken.append(text)
    if command["show"]:
        shown = run(["--json", *put(command["show"], text)])
        if shown.returncode:
            return "it was taken and is not there: %r" % shown.stderr
        back = at(json.loads(shown.stdout), command["at"])
        if not same(command, text, back):
            return "it was read back as %r" % back
    for words in command["undo"]:
        undone = run(put(words, text))
        if undone.returncode:
            return "it could not be undone: %r" % undone.stderr
    return None


for command in order["commands"]:
    taken, wrong, tried = [], [], 0
    for text in order["texts"]:
        tried += 1
        try:
            why = attempt(command, text)
        except Exception as error:
            why = repr(error)
        if why:
            wrong.append([text[:200], why[:600]])
    print(json.dumps({"words": command["words"], "tried": tried, "taken": taken, "wrong": wrong}), flush=True)
