"""Which Dify conversation each chat is in, kept in one JSON file that several processes share.

From the outside in: `store` says what can be asked (`contract`: of any kind of store), `keeper`
when the files are tidied. `ledger` is one process's view of the folder: `memory` is what it knows,
`journal` and `snapshot` are the two kinds of file, `loading` reads them all, `folder` keeps
processes apart, and `mapping` is what one entry is. How the files work together is told in
docs/decisions/0001-json-file-store.md. `turn_locks` stands beside: it keeps turns in order.
"""

from opendify.conversations.mapping import Mapping, Stats
from opendify.conversations.store import ConversationStore

__all__ = ["ConversationStore", "Mapping", "Stats"]
