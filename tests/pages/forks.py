"""`xlm` without the seconds of its imports: a process that has them made runs each command in a fork of itself.

`python forks.py SOCKET` serves; `python forks.py SOCKET WORDS...` is the command, with its own folder, environment,
input and output.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys


def serve(path: str) -> None:
    """Run commands until killed; prints a line when it is ready."""
    import xlm.commands.assemble  # noqa: F401  # brings Lightning and Hydra
    from xlm.cli import main

    gc.freeze()  # or every fork copies what its first collection touches, in a second
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                break
            connection.close()
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    words, folder, environment = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [os.path.join(os.path.dirname(sys.executable), "xlm"), *words]  # other ranks are started by it
        code = main()
        sys.stdout.flush()
        os._exit(code)  # to end in an orderly way takes torch another second
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def ask(path: str, words: list[str]) -> int:
    """Have a command run; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b" "], [0, 1, 2])
        connection.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode() + b"\n")
        return int(connection.makefile().read())


if __name__ == "__main__":
    if sys.argv[2:]:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    serve(sys.argv[1])
