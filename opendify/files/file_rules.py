"""What an app accepts, and the messages for what it does not. No I/O."""

from dataclasses import dataclass

from opendify.dify.apps import FILE_KINDS, FileRules
from opendify.errors import InvalidRequest, RequestTooLarge
from opendify.files.content import Content
from opendify.files.media import kind_by_extension
from opendify.files.names import extension_of

UNSUPPORTED = "unsupported_content"

_MEGABYTE = 1024 * 1024
_WHERE = (
    "In Dify this is enabled in the app's editor: 'Vision', 'Document' or 'Audio' for a "
    "chatbot, agent or text generator, 'Features > File Upload' for a chatflow or workflow."
)


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """What the app of a model accepts. ``rules`` is None if that is unknown; nothing is checked
    then. Errors name ``path``, the place in the request."""

    model: str
    rules: FileRules | None
    speech_to_text: bool

    def kind_for(self, kind: str, extension: str) -> str:
        """The Dify type to send a file as; empty if the app does not accept it.

        An empty ``kind`` means that nothing is known about the file: Dify inspects it and decides.
        """
        if self.rules is None:
            return kind or "document"
        if kind not in ("", "custom") and kind in self.rules.kinds:
            return kind
        if "custom" in self.rules.kinds and extension in self.rules.extensions:
            return "custom"
        any_kind = next((k for k in ("document", *FILE_KINDS) if k in self.rules.kinds), "")
        return "" if kind else any_kind

    def check_count(self, count: int) -> None:
        """Raises InvalidRequest if there are too many files."""
        if self.rules is not None and 0 < self.rules.max_count < count:
            raise InvalidRequest(
                f"The message has {count} files; the app of model '{self.model}' takes at most "
                f"{self.rules.max_count}. The number is set in Dify with the app's file upload.",
                param="messages",
            )

    def check_method(self, method: str, path: str) -> None:
        """Raises InvalidRequest if the app does not accept this transfer method."""
        if self.rules is None or not self.rules.methods or method in self.rules.methods:
            return
        accepted = (
            "uploaded files only: send the file itself, as 'data:<type>;base64,...'"
            if method == "remote_url"
            else "addresses of files only: send an http(s) address that Dify can reach"
        )
        raise InvalidRequest(
            f"The app of model '{self.model}' takes {accepted}. "
            "Dify calls this setting 'Upload Method'.",
            param=path,
            code=UNSUPPORTED,
        )

    def check_size(self, content: Content) -> None:
        """Dify's limits depend on the extension, even if the app lists it as ``custom``.

        Raises RequestTooLarge.
        """
        kind = kind_by_extension(extension_of(content.name)) or "custom"
        limit = self.rules.max_bytes.get(kind, 0) if self.rules else 0
        if limit:
            check_size_limit(content, limit, "Dify takes such files")

    def rejection(self, kind: str, name: str, path: str) -> InvalidRequest:
        """The error for a file that Dify would silently drop."""
        shown = f" ('{name[:100]}')" if name else ""
        extension = extension_of(name)
        if self.rules is None or not self.rules.kinds:
            what = f"no files{shown}, and Dify would silently drop them"
        elif kind not in ("", "custom"):
            what = f"no {kind} files{shown}, {self._accepted(self.rules)}"
        elif extension:
            what = f"no files with the extension .{extension}{shown}, {self._accepted(self.rules)}"
        else:
            what = f"no files of this type{shown}, {self._accepted(self.rules)}"
        return InvalidRequest(
            f"The app of model '{self.model}' takes {what}. {_WHERE}", param=path, code=UNSUPPORTED
        )

    @staticmethod
    def _accepted(rules: FileRules) -> str:
        kinds = [kind for kind in FILE_KINDS if kind in rules.kinds and kind != "custom"]
        if "custom" in rules.kinds:
            kinds += [f".{name}" for name in sorted(rules.extensions)]
        return f"only {', '.join(kinds)}" if kinds else "and no other files"


def check_size_limit(content: Content, limit: int, subject: str) -> None:
    """Raises RequestTooLarge if the content has more than ``limit`` bytes."""
    if len(content.data) > limit:
        raise RequestTooLarge(
            f"'{content.name}' has {len(content.data) / _MEGABYTE:.1f} MB; "
            f"{subject} up to {limit / _MEGABYTE:g} MB.",
            param=content.path,
            code="file_too_large",
        )
