"""Sends letters of one login, at the servers in turns, one after the other; prints the answer to each."""
import smtplib
import ssl
import sys

user, password, count, *servers = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE


def session(server):
    smtp = smtplib.SMTP(server, 587, "world.far.example", timeout=30)
    smtp.starttls(context=context)
    smtp.login(user, password)
    return smtp


sessions = [session(server) for server in servers]
for number in range(int(count)):
    smtp = sessions[number % len(sessions)]
    smtp.mail(user)
    smtp.rcpt(user)
    code, words = smtp.data(f"From: {user}\r\nTo: {user}\r\nSubject: one of many {number}\r\n\r\nHello.\r\n")
    print(code, words.decode())
    if code != 250:
        smtp.rset()
