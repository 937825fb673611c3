"""A question to Dify: as a request of httpx, or as bytes for a connection that is kept."""

from collections.abc import Iterator, Mapping

import httpx

from opendify.upstream.http1 import BadQuestion, question_head


class Address:
    """Where questions go, and what is the same in the heads of all of them, the key included.

    ``takes_bytes`` is false where such a head is no HTTP: what is wrong with it, httpx will say.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = httpx.URL(url)
        self._headers = {"Host": self._url.netloc.decode("ascii"), **headers}
        try:
            self._head = question_head(self._url.raw_path, self._headers)
        except BadQuestion:
            self._head = b""
        self.takes_bytes = bool(self._head)

    def question(self, headers: Mapping[str, str], content: bytes) -> bytes:
        """Head and body. ``headers`` are put as they are."""
        own = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return b"%b%b\r\n%b" % (self._head, own.encode("ascii"), content)

    def request(
        self, headers: Mapping[str, str], content: "Content", timeout: Mapping[str, float | None]
    ) -> httpx.Request:
        """The same for httpx. Its own way of building a request, for which it merges cookies,
        parameters and headers that we do not have, costs as much as all else that it does."""
        return httpx.Request(
            "POST",
            self._url,
            stream=content,
            headers={**self._headers, **headers},
            extensions={"timeout": timeout},
        )


class Content(httpx.SyncByteStream):
    """The body of a question, until it is forgotten: as long as its connection is lent, httpx
    holds the request that it was lent for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data

    def forget(self) -> None:
        self._data = b""
