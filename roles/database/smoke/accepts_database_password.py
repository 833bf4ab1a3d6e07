"""Ask PostgreSQL itself whether it lets somebody in with a password.

Run in the environment's network with `{"host", "port", "version", "value"}` on standard input, the
value as base64. Exit code 0: it does; 1: it refuses the password; 2: it could not be asked.
"""

import base64
import hashlib
import hmac
import json
import os
import socket
import struct
import sys

LOGINS = ("guestbook_b", "guestbook_a")
DATABASE = "guestbook"
TIMEOUT_S = 10.0
ACCEPTED, REFUSED, UNKNOWN = 0, 1, 2
REFUSALS = {"28P01", "28000"}
"""SQLSTATE: wrong password; may not log in."""


class Refused(Exception):
    pass


def main():
    order = json.load(sys.stdin)
    password = base64.b64decode(order["value"]).strip()
    with socket.create_connection((order["host"], order["port"]), TIMEOUT_S) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            log_in(connection, LOGINS[order["version"] % 2], password)
        except Refused:
            return REFUSED
        connection.sendall(b"X" + struct.pack("!I", 4))
    return ACCEPTED


def log_in(connection, user, password):
    """Authenticate with SCRAM-SHA-256 (RFC 5802 and 7677, PostgreSQL's protocol 3.0)."""
    fields = f"user\0{user}\0database\0{DATABASE}\0\0".encode()
    connection.sendall(struct.pack("!II", len(fields) + 8, 196608) + fields)
    expect(connection, 10)
    nonce = base64.b64encode(os.urandom(18)).decode()
    bare = f"n=,r={nonce}"
    first = f"n,,{bare}".encode()
    send(connection, b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
    answer = expect(connection, 11).decode()
    given = dict(part.split("=", 1) for part in answer.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password, base64.b64decode(given["s"]), int(given["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    final = f"c=biws,r={given['r']}"
    signed = f"{bare},{answer},{final}".encode()
    signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    send(connection, f"{final},p={proof}".encode())
    expect(connection, 12)
    expect(connection, 0)


def send(connection, content):
    connection.sendall(b"p" + struct.pack("!I", len(content) + 4) + content)


def expect(connection, wanted):
    """Return what comes with the wanted kind of authentication message."""
    head = read(connection, 5)
    body = read(connection, struct.unpack("!I", head[1:])[0] - 4)
    if head[:1] == b"E":
        states = [field[1:].decode() for field in body.split(b"\0") if field[:1] == b"C"]
        if REFUSALS.intersection(states):
            raise Refused
        raise OSError(f"the server says {states}")
    if head[:1] != b"R" or struct.unpack("!I", body[:4])[0] != wanted:
        raise OSError("the server asks for something else")
    return body[4:]


def read(connection, size):
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise OSError("the server hung up")
        content += piece
    return content


try:
    code = main()
except (OSError, ValueError, KeyError) as error:
    print(error, file=sys.stderr)
    code = UNKNOWN
sys.exit(code)
