"""Files that an app generates. Each is shown once, however often Dify mentions it. No I/O."""

from collections.abc import Iterator

from opendify.dify.events import FileGenerated
from opendify.files import links
from opendify.files.links import FileLink
from opendify.rendering.deltas import FileFound
from opendify.rendering.text_output import TextOutput


class GeneratedFiles:
    """A file is shown at the end unless the text links to it by then."""

    def __init__(self) -> None:
        self._found: dict[str, FileLink] = {}

    def add(self, file: FileGenerated, text: TextOutput) -> list[FileFound]:
        """Registers a file that Dify has mentioned."""
        identity = links.file_identity(file.url)
        if identity in self._found or text.links_to(file.url):
            return []
        link = self._found[identity] = FileLink(file.url, file.name, file.kind)
        return [FileFound(link)]

    def unlinked(self, text: TextOutput) -> Iterator[FileLink]:
        """The files that the text does not link to."""
        return (link for link in self._found.values() if not text.links_to(link.url))
