"""Requests in the form in which clients other than Open WebUI send their background tasks: the
fields and their types, and the beginnings and ends of the prompts. What stands between is ours."""

import json
from typing import Any

QUESTION = "How do I descale a kettle?"
ANSWER = "With vinegar."
CHAT = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
]

NEXTCHAT_TITLE = (
    "Please generate a four to five word title summarizing our talk, and nothing else. "
    "Remove enclosing quotation marks."
)
NEXTCHAT_TITLE_ZH = "使用四到五个字直接返回这句话的简要主题，不要别的，请直接返回“闲聊”"
NEXTCHAT_SUMMARY = "Summarize the discussion briefly in 200 words, as a prompt for future context."
NEXTCHAT_SUMMARY_ZH = "简要总结一下对话内容，用作后续的上下文提示 prompt，控制在 200 字以内"

LOBE_TITLE = (
    "You are a professional conversation summarizer. Generate a concise title.\n\n"
    "Rules:\n- Use the language specified by the locale code: en-US"
)
LOBE_TRANSLATION = (
    "You are a professional translator. Translate the input text to zh-CN.\n\n"
    "Rules:\n- Output ONLY the translated text"
)


def nextchat(messages: list[dict[str, Any]], stream: bool) -> dict[str, Any]:
    numbers = {"temperature": 0.5, "presence_penalty": 0, "frequency_penalty": 0, "top_p": 1}
    return {"messages": messages, "stream": stream, "model": "tiny", **numbers}


def nextchat_title(prompt: str = NEXTCHAT_TITLE) -> dict[str, Any]:
    return nextchat([*CHAT, {"role": "user", "content": prompt}], stream=False)


def nextchat_summary(prompt: str = NEXTCHAT_SUMMARY) -> dict[str, Any]:
    memory = {"role": "system", "content": "This is a summary of the chat history: tea"}
    return nextchat([memory, *CHAT, {"role": "system", "content": prompt}], stream=True)


def alone(prompt: str, role: str = "user", **more: Any) -> dict[str, Any]:
    """LibreChat and Chatbox: one message."""
    return {"model": "tiny", "messages": [{"role": role, "content": prompt}], **more}


def librechat_title() -> dict[str, Any]:
    prompt = (
        "Provide a concise, 5-word-or-less title for the conversation, using its language, and "
        f"only return the title itself.\n\nConversation:\nUser: {QUESTION}\nAI: {ANSWER}"
    )
    return alone(prompt, stream=False, user="66f2", temperature=0.2)


def librechat_structured_title() -> dict[str, Any]:
    prompt = (
        "Analyze this conversation and provide:\n1. The detected language of the conversation\n"
        f"2. A concise title in the detected language\n\nUser: {QUESTION}\nAI: {ANSWER}"
    )
    return alone(prompt, stream=False)


def earlier_librechat_title(role: str = "system") -> dict[str, Any]:
    prompt = (
        "Please generate a concise, 5-word-or-less title for the conversation, using its "
        f'language\n\n||>User:\n"{QUESTION}"\n||>Response:\n"\\"{ANSWER}\\""\n\n||>Title:'
    )
    return alone(prompt, role, stream=False, presence_penalty=0, frequency_penalty=0)


def librechat_summary() -> dict[str, Any]:
    prompt = (
        "Summarize the conversation by integrating new lines into the current summary.\n\n"
        f"EXAMPLE:\n...\n\nCurrent summary:\n\nNew lines:\nHuman: {QUESTION}\n\nNew summary:"
    )
    return alone(prompt, stream=False)


def system_and_user(system: str, user: str, **more: Any) -> dict[str, Any]:
    """LobeChat and Cherry Studio: an instruction, and what it is about."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"model": "tiny", "messages": messages, **more}


def lobechat_title(system: str = LOBE_TITLE, **more: Any) -> dict[str, Any]:
    said = f"user: {QUESTION}\nassistant: {ANSWER}"
    return system_and_user(system, said, stream=True, **more)


def lobechat_json_title(description: bool = False) -> dict[str, Any]:
    form = (
        "Return title and description strings"
        if description
        else 'Return one JSON object with a single "title" string'
    )
    said = (
        "<task>\nGenerate.\n</task>\n\n<conversation>\n"
        f"<user>\n{QUESTION}\n</user>\n<assistant>\n{ANSWER}\n</assistant>\n</conversation>"
    )
    schema = {"type": "json_schema", "json_schema": {"name": "topic_title", "schema": {}}}
    return system_and_user(f"{LOBE_TITLE}\n- {form}", said, response_format=schema)


def lobechat_title_zh() -> dict[str, Any]:
    said = f"user: {QUESTION}\nassistant: {ANSWER}\n\n请总结上述对话为10个字以内的标题"
    system = "你是一名擅长会话的助理，你需要将用户的会话总结为 10 个字以内的标题"
    return system_and_user(system, said, stream=True)


def cherry_studio_title(system: str = "起个标题", suffix: str = "") -> dict[str, Any]:
    """Whatever the system message says, the chat is JSON."""
    said = [
        {"role": "user", "mainText": QUESTION, "files": ["manual.pdf"]},
        {"role": "assistant", "mainText": ANSWER},
    ]
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")) + suffix
    return system_and_user(system, text, stream=False, temperature=1, top_p=1, max_tokens=1000)


def earlier_cherry_studio_title() -> dict[str, Any]:
    system = "你是一名擅长会话的助理，你需要将用户的会话总结为 10 个字以内的标题，不要特殊符号"
    said = f"User: {QUESTION}\nAssistant: {ANSWER}"
    return system_and_user(system, said, stream=False, max_tokens=1000)


def chatbox_title(**more: Any) -> dict[str, Any]:
    prompt = (
        "Based on the chat history, give this conversation a name.\nKeep it short.\n\n"
        f"Here's the conversation:\n\n```\n{QUESTION}\n\n---------\n\n{ANSWER}\n```\n\n"
        "The name is:"
    )
    content = [{"type": "text", "text": prompt}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}
