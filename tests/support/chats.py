"""Random uses of the conversations by several processes, compared with a dict."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from opendify.conversations import ChatRecord, ConversationRecord, ConversationStore, Update

DAY = 86400
TIMES = st.integers(1_699_999_990, 1_700_100_000)
MOST_BRANCHES = 8
KEYS = ["a", "b", "c"]
CONVERSATIONS = [f"c{number}" for number in range(1, 10)]  # one more than a chat has branches


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def one_branch(
    conversation_id: str,
    created_at: int = 1,
    last_used: int = 1,
    history_digest: str = "",
    reason: str = "",
    system_digest: str = "",
) -> ChatRecord:
    """A chat with this branch only."""
    return ChatRecord(
        (
            ConversationRecord(
                conversation_id, created_at, last_used, history_digest, reason, system_digest
            ),
        )
    )


def conversations_of(chat: ChatRecord | None) -> list[str]:
    """The conversations of the branches, most recently used first."""
    return [branch.conversation_id for branch in chat.branches] if chat else []


def latest_of(store: ConversationStore) -> dict[str, str]:
    """The conversation that each chat used last."""
    return {key: chat.latest.conversation_id for key, chat in store.entries()}


def chat_records(branches: st.SearchStrategy[ConversationRecord]) -> st.SearchStrategy[ChatRecord]:
    """Chats with these branches."""
    several = st.lists(
        branches,
        min_size=1,
        max_size=MOST_BRANCHES,
        unique_by=lambda branch: branch.conversation_id,
    )
    return several.map(lambda found: ChatRecord(tuple(found)))


class Chats(RuleBasedStateMachine):
    """Three stores of one kind on one place; what a kind is made of comes with its tests."""

    keys = st.sampled_from(KEYS)
    conversations = st.sampled_from(CONVERSATIONS)
    digests = st.sampled_from(["", "h", "other"])
    updates = st.builds(
        Update,
        digests,
        st.sampled_from([None, "", "first-turn"]),
        st.sampled_from([None, "", "system"]),
    )
    whose = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.prepare()
        self.stores = [self.open() for _ in range(3)]
        self.model: dict[str, ChatRecord] = {}

    def prepare(self) -> None:
        raise NotImplementedError

    def open(self) -> ConversationStore:
        raise NotImplementedError

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    def branches(self, key: str) -> list[ConversationRecord]:
        return list(self.model[key].branches) if key in self.model else []

    def known(self, key: str, conversation_id: str) -> ConversationRecord | None:
        return next((b for b in self.branches(key) if b.conversation_id == conversation_id), None)

    def write(self, key: str, branches: Sequence[ConversationRecord]) -> None:
        self.model.pop(key, None)
        if branches:
            self.model[key] = ChatRecord(tuple(branches[:MOST_BRANCHES]))

    def drop(self, key: str, conversation_id: str) -> None:
        self.write(key, [b for b in self.branches(key) if b.conversation_id != conversation_id])

    def use(
        self, key: str, conversation_id: str, update: Update, old: ConversationRecord | None
    ) -> None:
        now = int(self.clock.now)
        branch = old or ConversationRecord(conversation_id, now, now)
        branch = replace(branch, last_used=now, history_digest=update.history_digest)
        if update.reason is not None:
            branch = replace(branch, reason=update.reason)
        if update.system_digest is not None:
            branch = replace(branch, system_digest=update.system_digest)
        self.drop(key, conversation_id)
        self.write(key, [branch, *self.branches(key)])

    @rule(who=whose, key=keys, conversation_id=conversations, update=updates)
    def put(self, who: int, key: str, conversation_id: str, update: Update) -> None:
        self.stores[who].put(key, conversation_id, update)
        self.use(key, conversation_id, update, self.known(key, conversation_id))

    @rule(who=whose, key=keys, used=st.permutations(CONVERSATIONS))
    def put_more_branches_than_a_chat_has(self, who: int, key: str, used: list[str]) -> None:
        for conversation_id in used:
            self.put(who, key, conversation_id, Update("h"))

    @rule(
        who=whose, key=keys, conversation_id=conversations, expected_digest=digests, update=updates
    )
    def update_if(
        self, who: int, key: str, conversation_id: str, expected_digest: str, update: Update
    ) -> None:
        old = self.known(key, conversation_id)
        possible = old is not None and old.history_digest == expected_digest
        store = self.stores[who]
        assert store.update_if(key, conversation_id, expected_digest, update) is possible
        if possible:
            self.use(key, conversation_id, update, old)

    @rule(who=whose, key=keys, conversation_id=conversations)
    def forget(self, who: int, key: str, conversation_id: str) -> None:
        self.stores[who].forget(key, conversation_id)
        self.drop(key, conversation_id)

    @rule(who=whose, old=keys, new=keys, conversation_id=conversations, update=updates)
    def move(self, who: int, old: str, new: str, conversation_id: str, update: Update) -> None:
        known = self.known(old, conversation_id)
        moved = self.stores[who].move(old, new, conversation_id, update)
        assert moved is (known is not None)
        if known is not None:
            self.drop(old, conversation_id)
            self.use(new, conversation_id, update, known)

    @rule(who=whose, conversation_id=conversations)
    def remove_conversation(self, who: int, conversation_id: str) -> None:
        gone = {key for key in self.model if self.known(key, conversation_id)}
        assert set(self.stores[who].remove_conversation(conversation_id)) == gone
        for key in gone:
            self.drop(key, conversation_id)

    @rule(who=whose, days=st.sampled_from([0.0, 1.0, 2.0]))
    def cleanup(self, who: int, days: float) -> None:
        before = self.clock.now - days * DAY
        gone = {key for key in self.model if self.branches(key)[0].last_used < before}
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
            chat_records(
                st.builds(ConversationRecord, conversations, st.just(7), TIMES, digests, digests)
            ),
        ),
        overwrite=st.booleans(),
    )
    def adopt(self, who: int, newcomers: dict[str, ChatRecord], overwrite: bool) -> None:
        before = dict(self.model)
        for key, newcomer in newcomers.items():
            if overwrite or key not in before:
                self.model[key] = newcomer
            else:
                self.write(key, merged(self.branches(key), newcomer.branches))
        changed = [key for key in newcomers if self.model[key] != before.get(key)]
        assert self.stores[who].adopt(newcomers, overwrite) == len(changed)

    @rule(who=whose)
    def close(self, who: int) -> None:
        self.stores[who].close()

    @invariant()
    def all_know_the_same(self) -> None:
        for store in self.stores:
            assert dict(store.entries()) == self.model
            assert sorted(store.keys()) == sorted(self.model)
            assert all(store.get(key) == self.model.get(key) for key in KEYS)
            for conversation_id in CONVERSATIONS:
                keys = [key for key in KEYS if self.known(key, conversation_id)]
                assert store.owners(conversation_id) == keys
            created = [min(b.created_at for b in chat.branches) for chat in self.model.values()]
            stats = store.stats()
            assert (stats.count, stats.oldest) == (len(created), min(created, default=None))
            assert stats.newest == max(created, default=None)


def merged(
    first: Sequence[ConversationRecord], second: Sequence[ConversationRecord]
) -> list[ConversationRecord]:
    """All branches, newest first; of one conversation, the one used later, or that of the
    second."""
    if list(first) == list(second):
        return list(first)
    known = {branch.conversation_id: branch for branch in second}
    for branch in first:
        other = known.get(branch.conversation_id)
        if other is None or branch.last_used > other.last_used:
            known[branch.conversation_id] = branch
    return sorted(known.values(), key=lambda branch: -branch.last_used)
