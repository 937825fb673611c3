"""The files that an app makes, each shown once, however often Dify names it. No I/O."""

from collections.abc import Callable, Iterator

from opendify.dify.events import FileMade
from opendify.files import links
from opendify.telling.wording import Wording


class MadeFiles:
    """A file is shown at the end, where the text has no link to it by then; but its address is
    made at once, since Dify's link may be dead at the end."""

    def __init__(self, link: Callable[[str, str, str], str]) -> None:
        self._link = link
        self._shown: dict[str, tuple[FileMade, str]] = {}

    def note(self, file: FileMade, wording: Wording) -> None:
        """Dify has named this file."""
        identity = links.identity(file.url)
        if identity in self._shown or wording.holds(file.url):
            return
        name = file.name or file.url.partition("?")[0].rpartition("/")[2]
        address = self._link(file.url, file.name, file.kind)
        self._shown[identity] = file, links.markdown(name, address, file.kind == "image")

    def unsaid(self, wording: Wording) -> Iterator[str]:
        """Those that the text does not show, as markdown."""
        for file, shown in self._shown.values():
            if not wording.holds(file.url):
                yield shown
