"""Random uses of the conversations by several processes, compared with a dict."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from opendify.conversations import ConversationRecord, ConversationStore

DAY = 86400
TIMES = st.integers(1_699_999_990, 1_700_100_000)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Chats(RuleBasedStateMachine):
    """Three stores of one kind on one place; what a kind is made of comes with its tests."""

    keys = st.sampled_from(["a", "b", "c", "d"])
    conversations = st.sampled_from(["c1", "c2", "c3"])
    whose = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.prepare()
        self.stores = [self.open() for _ in range(3)]
        self.model: dict[str, ConversationRecord] = {}

    def prepare(self) -> None:
        raise NotImplementedError

    def open(self) -> ConversationStore:
        raise NotImplementedError

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    def use(
        self, key: str, conversation_id: str, heard: str, old: ConversationRecord | None
    ) -> None:
        now = int(self.clock.now)
        kept = old is not None and old.conversation_id == conversation_id
        self.model[key] = ConversationRecord(
            conversation_id, old.created_at if old and kept else now, now, heard
        )

    @rule(who=whose, key=keys, conversation_id=conversations, heard=st.sampled_from(["", "h"]))
    def put(self, who: int, key: str, conversation_id: str, heard: str) -> None:
        self.stores[who].put(key, conversation_id, heard)
        old = self.model.get(key)
        if old is None or (
            (old.conversation_id, old.history_digest) != (conversation_id, heard)
            or self.clock.now - old.last_used >= 3600
        ):
            self.use(key, conversation_id, heard, old)

    @rule(who=whose, key=keys)
    def touch(self, who: int, key: str) -> None:
        self.stores[who].touch(key)
        old = self.model.get(key)
        if old is not None and self.clock.now - old.last_used >= 3600:
            self.use(key, old.conversation_id, old.history_digest, old)

    @rule(who=whose, key=keys, conversation_id=conversations)
    def forget(self, who: int, key: str, conversation_id: str) -> None:
        self.stores[who].forget(key, conversation_id)
        if key in self.model and self.model[key].conversation_id == conversation_id:
            del self.model[key]

    @rule(who=whose, old=keys, new=keys, conversation_id=conversations)
    def move(self, who: int, old: str, new: str, conversation_id: str) -> None:
        known = self.model.get(old)
        possible = known is not None and known.conversation_id == conversation_id
        assert self.stores[who].move(old, new, conversation_id, "moved") is possible
        if possible:
            del self.model[old]
            self.use(new, conversation_id, "moved", known)

    @rule(who=whose, conversation_id=conversations)
    def remove_conversation(self, who: int, conversation_id: str) -> None:
        gone = {k for k, v in self.model.items() if v.conversation_id == conversation_id}
        assert set(self.stores[who].remove_conversation(conversation_id)) == gone
        for key in gone:
            del self.model[key]

    @rule(who=whose, days=st.sampled_from([0.0, 1.0, 2.0]))
    def cleanup(self, who: int, days: float) -> None:
        before = self.clock.now - days * DAY
        gone = {k for k, v in self.model.items() if v.last_used < before}
        assert self.stores[who].cleanup(days) == len(gone)
        for key in gone:
            del self.model[key]

    @rule(seconds=st.sampled_from([1, 1800, 3600, DAY, -10]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(
        who=whose,
        newcomers=st.dictionaries(
            keys,
            st.builds(ConversationRecord, conversations, st.just(7), TIMES),
        ),
        overwrite=st.booleans(),
    )
    def adopt(self, who: int, newcomers: dict[str, ConversationRecord], overwrite: bool) -> None:
        taken = {
            key: new
            for key, new in newcomers.items()
            if (old := self.model.get(key)) is None
            or (old != new and (overwrite or old.last_used <= new.last_used))
        }
        assert self.stores[who].adopt(newcomers, overwrite) == len(taken)
        self.model |= taken

    @rule(who=whose)
    def close(self, who: int) -> None:
        self.stores[who].close()

    @invariant()
    def all_know_the_same(self) -> None:
        for store in self.stores:
            assert dict(store.entries()) == self.model
            assert sorted(store.keys()) == sorted(self.model)
            assert all(store.get(key) == self.model.get(key) for key in "abcd")
            for conversation_id in ("c1", "c2", "c3"):
                keys = (k for k, v in self.model.items() if v.conversation_id == conversation_id)
                assert store.owner(conversation_id) == min(keys, default=None)
            created = [mapping.created_at for mapping in self.model.values()]
            stats = store.stats()
            assert (stats.count, stats.oldest) == (len(created), min(created, default=None))
            assert stats.newest == max(created, default=None)
