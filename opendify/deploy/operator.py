"""The dialog with deploy.sh, which has access to the terminal and the host's files.

This process may run in a container. It sends requests as lines on standard output (a word and its
argument), and deploy.sh answers those that need an answer with one line:

    say|tell|warn|error|detail TEXT     printed; ``say`` not with --quiet
    ask|hide PROMPT                     "=ANSWER", or "." at the end of the input
    file PATH                           "=" and its bytes in hexadecimal, "." if it does not exist,
                                        "!" if it cannot be read
    line TEXT                           one more line of the file to write
    survey NAME                         "=" and what is known of that container, in hexadecimal
    put                                 "=" once that file has been written
    set NAME VALUE                      a fact for the script
    finding LEVEL NAME TEXT             a line of ``doctor``
    exit CODE                           the end
"""

import errno
import os
import sys
from typing import BinaryIO

from opendify.deploy.messages import message


class Aborted(Exception):
    """Ends the command with this exit code; the reason has been printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ScriptGone(Exception):
    """deploy.sh has exited."""


class Operator:
    """The person who runs deploy.sh. ``is_terminal``: questions can be repeated after invalid
    answers. ``assume_yes``: --yes was given."""

    def __init__(
        self,
        language: str,
        *,
        is_terminal: bool = False,
        assume_yes: bool = False,
        answers: BinaryIO | None = None,
        requests: BinaryIO | None = None,
    ) -> None:
        self.language, self.is_terminal, self.assume_yes = language, is_terminal, assume_yes
        self._answers = answers or sys.stdin.buffer
        self._requests = requests or sys.stdout.buffer

    def text(self, key: str, *arguments: object) -> str:
        return message(self.language, key, *arguments)

    def tell(self, key: str, *arguments: object) -> None:
        self._send("tell", self.text(key, *arguments))

    def line(self, text: str) -> None:
        """Prints a line that needs no translation."""
        self._send("tell", text)

    def say_line(self, text: str) -> None:
        """As ``line``, but not with --quiet."""
        self._send("say", text)

    def say(self, key: str, *arguments: object) -> None:
        self._send("say", self.text(key, *arguments))

    def warn(self, key: str, *arguments: object) -> None:
        self._send("warn", self.text(key, *arguments))

    def error(self, key: str, *arguments: object) -> None:
        self._send("error", self.text(key, *arguments))

    def detail(self, text: str) -> None:
        self._send("detail", text)

    def abort(self, code: int, key: str, *arguments: object) -> Aborted:
        """Prints the reason; the caller raises the returned exception."""
        self.error(key, *arguments)
        return Aborted(code)

    def error_or_abort(self, key: str, *arguments: object) -> None:
        """Reports an invalid answer. Raises Aborted without a terminal, where the question cannot
        be repeated."""
        self.error(key, *arguments)
        if not self.is_terminal:
            raise Aborted(65)

    def ask(self, key: str, *arguments: object, hidden: bool = False) -> bytes | None:
        """The answer, or None at the end of the input."""
        self._send("hide" if hidden else "ask", self.text(key, *arguments))
        return self._read_answer()

    def confirm(self, key: str, *arguments: object) -> bool:
        if self.assume_yes:
            return True
        answer = self.ask(key, *arguments) or b""
        return answer.strip().lower() in (b"y", b"yes")

    def read_file(self, path: str) -> bytes:
        """Reads a file on the host; ``-`` is standard input. Raises OSError."""
        self._send("file", path)
        answer = self._read_answer(b"!")
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if answer == b"!":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return bytes.fromhex(answer.decode())

    def survey(self, name: str) -> str:
        """What is known of this container and its service, as ``status.parse`` reads it."""
        self._send("survey", name)
        return bytes.fromhex((self._read_answer() or b"").decode()).decode(errors="replace")

    def write_file(self, text: str) -> None:
        """Sends the text of the file that the script writes, and waits until it is written."""
        for line in text.removesuffix("\n").split("\n"):
            self._send("line", line)
        self._send("put", "")
        self._read_answer()

    def set_fact(self, name: str, value: object) -> None:
        """Sends a fact about the configuration that the script needs."""
        self._send("set", f"{name} {value}")

    def report_finding(self, level: str, name: str, key: str, *arguments: object) -> None:
        """Reports a finding of ``doctor``; the level is good, warn or bad."""
        self._send("finding", f"{level} {name} {self.text(key, *arguments)}")

    def exit(self, code: int) -> None:
        """Ends the dialog with this exit code."""
        self._send("exit", str(code))

    def _send(self, word: str, text: str) -> None:
        line = f"{word} {text}".replace("\r", " ").replace("\n", " ")
        try:
            encoded = line.encode(errors="surrogateescape")  # paths need not be UTF-8
        except UnicodeEncodeError:
            encoded = line.encode(errors="replace")
        self._requests.write(encoded + b"\n")
        self._requests.flush()

    def _read_answer(self, *other_answers: bytes) -> bytes | None:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ScriptGone
        line = line[:-1]
        if line in other_answers:
            return line
        return line[1:] if line.startswith(b"=") else None
