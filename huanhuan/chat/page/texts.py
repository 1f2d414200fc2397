"""What the page says, in Chinese and English."""

from __future__ import annotations

import streamlit as st

LANGUAGES = {"zh": "中文", "en": "English"}

TEXTS: dict[str, tuple[str, str]] = {
    "ai": (
        "角色的话由人工智能生成，并非真人所说",
        "The character's words are AI-generated",
    ),
    "say": ("对{name}说……", "Say something to {name} …"),
    "loading": ("正在准备模型……", "Getting the model ready …"),
    "failed": ("现在还不能聊天", "The chat is not ready"),
    "retry": ("重试", "Try again"),
    "starters": ("可以这样开头", "You could begin with"),
    "stop": ("停止", "Stop"),
    "again": ("重说", "Regenerate"),
    "continue": ("继续说", "Continue"),
    "edit": ("编辑", "Edit"),
    "delete": ("删除", "Delete"),
    "previous": ("上一版", "Previous version"),
    "next": ("下一版", "Next version"),
    "resend": ("重新发送", "Send again"),
    "cancel": ("取消", "Cancel"),
    "edit_label": ("修改这句话", "Edit this message"),
    "ahead": ("前面还有 {count} 位，请稍候……", "{count} before you, please wait …"),
    "next_up": ("马上就到您……", "You are next …"),
    "thinking": ("……", "…"),
    "once_more": ("（这一句没说好，正在重说）", "(That came out wrong; once more)"),
    "stopped": ("已停止", "Stopped"),
    "length": ("话长，未完", "Cut at the length limit"),
    "broken": ("中断了", "Broken off"),
    "dropped": ("对话太长，最早的部分她已记不得了。", "The conversation is long: its beginning is forgotten."),
    "you": ("你", "You"),
    "blocked": ("这句话里有不能发送的词，请改写。", "The message holds a word that may not be sent: rephrase it."),
    "conversations": ("对话", "Conversations"),
    "new": ("新对话", "New conversation"),
    "untitled": ("（还没开始）", "(not begun)"),
    "delete_conversation": ("删除这个对话", "Delete this conversation"),
    "persona": ("角色", "Character"),
    "settings": ("设置", "Settings"),
    "temperature": ("温度", "Temperature"),
    "temperature_help": ("越高越随意，0 为总取最可能的词", "Higher is freer; 0 always takes the likeliest word"),
    "top_p": ("核采样 top-p", "Top-p"),
    "top_p_help": ("只在累计概率达到此值的词里挑", "Chooses among words up to this share of probability"),
    "length_limit": ("回复长度（词）", "Reply length (tokens)"),
    "system": ("系统提示", "System prompt"),
    "system_help": (
        "模型是照角色卡里的原句训练的，改动后可能不像她",
        "The model was trained with the card's own words; changing them may cost the character",
    ),
    "speed": ("显示速度", "Show speed"),
    "speed_line": (
        "首字 {first} 秒 · {rate} 词/秒 · {tokens} 词",
        "first token {first} s · {rate} tok/s · {tokens} tokens",
    ),
    "reset": ("恢复默认", "Restore defaults"),
    "files": ("导入与导出", "Import and export"),
    "markdown": ("对话 Markdown", "Conversation, Markdown"),
    "json": ("对话 JSON", "Conversation, JSON"),
    "card_json": ("角色卡 JSON", "Character card, JSON"),
    "card_png": ("角色卡 PNG", "Character card, PNG"),
    "import": ("导入角色卡或对话", "Import a card or a conversation"),
    "import_help": (
        "SillyTavern V2/V3 角色卡（JSON 或 PNG），或本页导出的对话 JSON",
        "A SillyTavern V2/V3 card (JSON or PNG), or a conversation exported here",
    ),
    "imported": ("已导入：{name}", "Imported: {name}"),
    "language": ("语言 / Language", "语言 / Language"),
    "answered_by": ("由 {label} · {model} 回答", "Answered by {label} · {model}"),
    "fallback": (
        "TurboMind 不可用，改由 PyTorch 引擎回答，会慢一些。",
        "TurboMind is not available; the slower PyTorch engine answers.",
    ),
    "unexpected": ("页面出错了，请刷新后重试", "The page failed: reload it and try again"),
}


def browser_language() -> str:
    """``zh`` or ``en``, by the browser; Chinese if it does not say."""
    locale = st.context.locale or "zh"
    return "zh" if locale.lower().startswith("zh") else "en"


def say(key: str, **values: object) -> str:
    """The text of ``key`` in the visitor's language."""
    language = st.session_state.get("language") or browser_language()
    return TEXTS[key][0 if language == "zh" else 1].format(**values)
