"""Which Dify conversation continues a chat.

`resolver` finds it and remembers it, by a `fingerprint` of the history or by the client's ids
(`keys`); `unsettled` is about turns whose end was not seen. `store/` keeps the records, in a JSON
file that processes share or in Redis; `locks/` lets one turn of a chat run at a time, and
`processes` tells by them which processes are alive. `admin` serves operators; `migrate` is the
program that copies one store to another. See docs/decisions 0001 and 0004.
"""

from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.json_file import JsonFileStore
from opendify.conversations.store.records import ConversationRecord, Stats

__all__ = ["ConversationRecord", "ConversationStore", "JsonFileStore", "Stats"]
