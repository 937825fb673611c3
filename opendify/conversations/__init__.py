"""Which Dify conversation continues a chat.

`resolver` finds and remembers it, by a `fingerprint` of the history or by the client's chat ids
(`keys`); `unsettled` handles turns whose end was not seen. `store/` holds the records, in a JSON
file that processes share or in Redis; `locks/` serializes the turns of a chat, and `processes`
uses the locks to tell which processes are alive. `admin` serves operators; `migrate` is the
program that copies one store to another. See docs/decisions 0001 and 0004.
"""

from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.json_file import JsonFileStore
from opendify.conversations.store.records import ConversationRecord, Stats

__all__ = ["ConversationRecord", "ConversationStore", "JsonFileStore", "Stats"]
