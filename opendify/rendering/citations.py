"""The sources of an answer, in the formats that clients show. No I/O.

Dify does not guarantee a URL for a passage; the metadata of its document may contain one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_PASSAGE = 2000


@dataclass(slots=True)
class Citations:
    """``annotations`` are OpenAI ``url_citation`` objects, ``events`` are Open WebUI ``source``
    events, and ``markdown`` is a list for all other clients."""

    annotations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    markdown: str = ""


def choose_format(setting: str, in_open_webui: bool, streamed: bool) -> str:
    """The format for one request, from the model's setting: ``auto``, ``annotations``, ``events``,
    ``markdown`` or ``off``. Only a stream can carry events."""
    if setting == "auto" and in_open_webui and streamed:
        return "events"
    return "auto" if setting == "events" and not streamed else setting


def cite(resources: Sequence[Mapping[str, Any]], form: str) -> Citations:
    """Formats the sources. ``auto`` produces annotations for sources with a URL, and a list of the
    others."""
    sources = _by_document(resources) if form != "off" else []
    if form == "events":
        return Citations(events=[_event(source) for source in sources])
    cited = Citations()
    if form in ("auto", "annotations"):
        cited.annotations = [_annotation(source) for source in sources if source.url]
    listed = sources if form == "markdown" else [s for s in sources if not s.url]
    if listed and form != "annotations":
        lines = [_line(number, source) for number, source in enumerate(listed, 1)]
        cited.markdown = "\n".join(["**Sources**", "", *lines])
    return cited


@dataclass(slots=True)
class _Source:
    name: str
    url: str
    passages: list[str] = field(default_factory=list)


def _by_document(resources: Sequence[Mapping[str, Any]]) -> list[_Source]:
    sources: dict[str, _Source] = {}
    for resource in resources:
        name = _first(resource, "document_name", "title", "dataset_name") or "Source"
        url = _url(resource)
        source = sources.setdefault(url or name, _Source(name, url))
        if passage := _first(resource, "content"):
            source.passages.append(passage[:MAX_PASSAGE])
    return list(sources.values())


def _url(resource: Mapping[str, Any]) -> str:
    metadata = resource.get("doc_metadata")
    for holder in (resource, metadata if isinstance(metadata, dict) else {}):
        url = _first(holder, "url", "source_url", "link")
        if url.startswith(("http://", "https://")):
            return url
    return ""


def _event(source: _Source) -> dict[str, Any]:
    passages = source.passages or [source.name]
    metadata: dict[str, str] = {"source": source.url or source.name, "name": source.name}
    described = {"name": source.name} | ({"url": source.url} if source.url else {})
    return {
        "type": "source",
        "data": {
            "source": described,
            "document": passages,
            "metadata": [metadata for _ in passages],
        },
    }


def _annotation(source: _Source) -> dict[str, Any]:
    citation = {"url": source.url, "title": source.name, "start_index": 0, "end_index": 0}
    return {"type": "url_citation", "url_citation": citation}


def _line(number: int, source: _Source) -> str:
    name = _plain(source.name)
    return f"{number}. [{name}]({source.url})" if source.url else f"{number}. {name}"


def _plain(name: str) -> str:
    for character in "[]()`<>\r\n":
        name = name.replace(character, " ")
    return " ".join(name.split())


def _first(holder: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = holder.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
