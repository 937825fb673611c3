"""The conversation with deploy.sh, which has the terminal and the host's files.

This process may run in a container: it asks for what it needs with lines on standard output, a
word and the rest, and deploy.sh answers each question with one line:

    say|tell|warn|error|detail TEXT     shown; ``say`` not with --quiet
    ask|hide PROMPT                     "=ANSWER", or "." at the end of the input
    file PATH                           "=" and its bytes in hexadecimal, "." where it is not there,
                                        "!" where it cannot be read
    line TEXT                           one more line of the file that was asked for
    put                                 "=" once that file is where it belongs
    set NAME VALUE                      a fact that the script needs
    finding LEVEL NAME TEXT             a line of ``doctor``
    exit CODE                           the end
"""

import errno
import os
import sys
from typing import BinaryIO

from opendify.deploy.messages import message


class Refused(Exception):
    """Ends the work with this exit code; the reason has been printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Gone(Exception):
    """deploy.sh has ended and answers no more."""


class Operator:
    """The person who runs deploy.sh. ``is_terminal``: wrong answers can be asked for again.
    ``agrees``: --yes was given."""

    def __init__(
        self,
        language: str,
        *,
        is_terminal: bool = False,
        agrees: bool = False,
        answers: BinaryIO | None = None,
        requests: BinaryIO | None = None,
    ) -> None:
        self.language, self.is_terminal, self.agrees = language, is_terminal, agrees
        self._answers = answers or sys.stdin.buffer
        self._requests = requests or sys.stdout.buffer

    def words(self, key: str, *arguments: object) -> str:
        return message(self.language, key, *arguments)

    def tell(self, key: str, *arguments: object) -> None:
        self._request("tell", self.words(key, *arguments))

    def line(self, text: str) -> None:
        """A line that is the same in every language."""
        self._request("tell", text)

    def say(self, key: str, *arguments: object) -> None:
        self._request("say", self.words(key, *arguments))

    def warn(self, key: str, *arguments: object) -> None:
        self._request("warn", self.words(key, *arguments))

    def complain(self, key: str, *arguments: object) -> None:
        self._request("error", self.words(key, *arguments))

    def detail(self, text: str) -> None:
        self._request("detail", text)

    def refuse(self, code: int, key: str, *arguments: object) -> Refused:
        """Prints the reason; the caller raises what is returned."""
        self.complain(key, *arguments)
        return Refused(code)

    def complain_or_refuse(self, key: str, *arguments: object) -> None:
        """Reports a wrong answer. Raises Refused without a terminal, where the question cannot be
        repeated."""
        self.complain(key, *arguments)
        if not self.is_terminal:
            raise Refused(65)

    def ask(self, key: str, *arguments: object, hidden: bool = False) -> bytes | None:
        """What was typed, or None at the end of the input."""
        self._request("hide" if hidden else "ask", self.words(key, *arguments))
        return self._answer()

    def agree(self, key: str, *arguments: object) -> bool:
        if self.agrees:
            return True
        answer = self.ask(key, *arguments) or b""
        return answer.strip().lower() in (b"y", b"yes")

    def read_file(self, path: str) -> bytes:
        """A file of the host; ``-`` is standard input. Raises OSError."""
        self._request("file", path)
        answer = self._answer(b"!")
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if answer == b"!":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return bytes.fromhex(answer.decode())

    def put(self, text: str) -> None:
        """Sends the text of the file that the script writes, and waits until it is in place."""
        for line in text.removesuffix("\n").split("\n"):
            self._request("line", line)
        self._request("put", "")
        self._answer()

    def set(self, name: str, value: object) -> None:
        """A fact about the configuration that the script plans with."""
        self._request("set", f"{name} {value}")

    def find(self, level: str, name: str, key: str, *arguments: object) -> None:
        """A finding of ``doctor``: good, warn or bad."""
        self._request("finding", f"{level} {name} {self.words(key, *arguments)}")

    def leave(self, code: int) -> None:
        """Ends the conversation with this exit code."""
        self._request("exit", str(code))

    def _request(self, word: str, text: str) -> None:
        line = f"{word} {text}".replace("\r", " ").replace("\n", " ")
        try:
            encoded = line.encode(errors="surrogateescape")  # a path as it was given
        except UnicodeEncodeError:
            encoded = line.encode(errors="replace")
        self._requests.write(encoded + b"\n")
        self._requests.flush()

    def _answer(self, *others: bytes) -> bytes | None:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise Gone
        line = line[:-1]
        if line in others:
            return line
        return line[1:] if line.startswith(b"=") else None
