"""What Open WebUI sends: requests that were recorded, and more of the same kind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RECORDED = Path(__file__).parent.parent / "data" / "openwebui-requests.jsonl"


@dataclass(frozen=True)
class Recorded:
    """One request; ``task``, ``message_id`` and so on are what its headers say of it."""

    scenario: str
    task: str
    chat: str
    body: dict[str, Any]
    message_id: str
    parent_id: str

    def headers(self, with_task: bool) -> dict[str, str]:
        """The headers of a connection with forwarding on, and with its own header for tasks, and
        for messages then too."""
        headers = {"X-OpenWebUI-Chat-Id": self.chat, "X-OpenWebUI-User-Id": "ada"}
        own = {
            "X-OpenWebUI-Task": self.task,
            "X-OpenWebUI-Message-Id": self.message_id,
            "X-OpenWebUI-User-Message-Parent-Id": self.parent_id,
        }
        return headers | (own if with_task else {})


def recorded(model: str = "tiny") -> list[Recorded]:
    """All requests, in the order in which they came; those with tools have some again."""
    requests = []
    for line in _RECORDED.read_text().splitlines():
        raw = json.loads(line)
        body = {**raw["body"], "model": model}
        if raw["tools"]:
            tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
            body["tools"] = [tool] * raw["tools"]
        names = (raw["message_id"], raw["parent_id"])
        requests.append(Recorded(raw["scenario"], raw["task"], raw["chat"], body, *names))
    return requests


def task_prompt(kind: str, history: str = "USER: Hi\nASSISTANT: Hello") -> str:
    """A prompt in the form of Open WebUI's own for this kind of task."""
    wanted = {
        "title_generation": '{ "title": "a title" }',
        "tags_generation": '{ "tags": ["tag1", "tag2"] }',
        "follow_up_generation": '{ "follow_ups": ["Question 1?"] }',
        "query_generation": '{\n  "queries": ["query1"]\n}',
        "autocomplete_generation": '`{ "text": "<completion>" }`',
        "image_prompt_generation": '{\n    "prompt": "A description."\n}',
    }[kind]
    return (
        f"### Task:\nDo what is asked.\n### Output:\nJSON format: {wanted}\n"
        f"### Chat History:\n<chat_history>\n{history}\n</chat_history>"
    )


def task_body(kind: str, model: str = "tiny", **more: Any) -> dict[str, Any]:
    """The body of a request for this task."""
    messages = [{"role": "user", "content": task_prompt(kind)}]
    return {"model": model, "messages": messages, "stream": False, **more}
