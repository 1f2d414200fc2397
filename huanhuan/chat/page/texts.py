"""What the page says, in Chinese and English."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from huanhuan.chat.engine import EngineError
from huanhuan.chat.safe_text import plain_markdown

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
    "try_again": ("再试一次", "Try again"),
    "continue": ("继续说", "Continue"),
    "edit": ("编辑", "Edit"),
    "delete": ("删除", "Delete"),
    "more": ("更多", "More"),
    "less": ("收起", "Less"),
    "previous": ("上一版", "Previous version"),
    "next": ("下一版", "Next version"),
    "previous_greeting": ("上一句开场白", "Previous greeting"),
    "next_greeting": ("下一句开场白", "Next greeting"),
    "resend": ("重新发送", "Send again"),
    "save": ("保存", "Save"),
    "cancel": ("取消", "Cancel"),
    "edit_label": ("修改这句话", "Edit this message"),
    "rewrite_label": ("改写角色的这句话", "Rewrite what the character said"),
    "earlier": ("显示更早的 {count} 条", "Show {count} earlier messages"),
    "ahead": ("前面还有 {count} 位，请稍候……", "{count} before you, please wait …"),
    "next_up": ("马上就到您……", "You are next …"),
    "thinking": ("……", "…"),
    "once_more": ("（这一句没说好，正在重说）", "(That came out wrong; once more)"),
    "stopped": ("已停止", "Stopped"),
    "length": ("话长，未完", "Cut at the length limit"),
    "cut": ("说着说着打转了，就此打住", "Cut: it went in circles"),
    "broken": ("中断了", "Broken off"),
    "edited": ("由访客改写", "Rewritten by the visitor"),
    "unanswered": ("还没有回答", "Not answered"),
    "dropped": ("对话太长，最早的部分她已记不得了。", "The conversation is long: its beginning is forgotten."),
    "you": ("你", "You"),
    "blocked": ("这句话里有不能发送的词，请改写。", "The message holds a word that may not be sent: rephrase it."),
    "blocked_system": (
        "系统提示里有不能发送的词，请改写。",
        "The system prompt holds a word that may not be sent: rephrase it.",
    ),
    "blocked_import": (
        "文件里有不能发送的词，没有导入。",
        "The file holds a word that may not be sent: it was not imported.",
    ),
    "full_conversation": (
        "这个对话已经写满，请开一个新的。",
        "This conversation can grow no longer: begin a new one.",
    ),
    "full_versions": (
        "这句话已有 {most} 个版本，不能再多了。",
        "There are {most} versions of this message: no more can be added.",
    ),
    "full_reply": ("这句话已经太长，不能再继续了。", "This reply is too long to be continued."),
    "full_conversations": (
        "已有 {most} 个对话，请先删掉一个。",
        "There are {most} conversations: delete one first.",
    ),
    "full_cards": (
        "已导入 {most} 个角色，都还在对话里；请先删掉用不着的对话。",
        "{most} imported characters are in use: delete a conversation that you no longer need.",
    ),
    "full_page": (
        "您的对话合起来太多了，请先删掉一些。",
        "Your conversations take too much room together: delete some first.",
    ),
    "undo_note": ("已改动，可以撤销。", "Done; it can be undone."),
    "undo": ("撤销", "Undo"),
    "elsewhere": (
        "这个对话已在另一个窗口打开。",
        "This conversation is open in another window.",
    ),
    "bring_here": ("在这里继续", "Continue here"),
    "conversations": ("对话", "Conversations"),
    "conversation_title": ("{name}：{title}", "{name}: {title}"),
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
    "card_edited": ("角色卡用我改过的系统提示", "The card carries the system prompt as I changed it"),
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
    "misconfigured": (
        "页面的设置有误，请联系管理者",
        "The page is set up wrongly: ask whoever runs it",
    ),
    "no_model": ("还没有模型", "There is no model yet"),
    "no_model_intro": (
        "这一页要有模型才能聊天。下面三种办法任选一种，然后点“重试”；第二、三种改了环境变量，要重新启动页面。",
        "The page needs a model to chat with. Take one of these three ways, then press Try again; the second and the "
        "third set environment variables, so restart the page after them.",
    ),
    "train_one": ("1. 在这台机器上训练一个小角色", "1. Train a small character on this machine"),
    "train_one_text": (
        "不需要 GPU，也不下载权重；两核 CPU 上几分钟。",
        "It needs no GPU and downloads no weights; a few minutes on two cores.",
    ),
    "name_one": ("2. 使用已有的模型", "2. Use a model that exists"),
    "name_one_text": (
        "一个目录，或 ModelScope、Hugging Face 上的模型名（`用户名/模型名`）。",
        "A folder, or the name of a model on ModelScope or Hugging Face (`owner/model`).",
    ),
    "serve_one": ("3. 连接模型服务器", "3. Connect to a model server"),
    "serve_one_text": (
        "任何 OpenAI 兼容的服务，比如另一台机器上的 LMDeploy。",
        "Any OpenAI-compatible server, such as LMDeploy on another machine.",
    ),
    "read_more": ("详见 `docs/deploy.md`。", "More in `docs/deploy.md`."),
}


def browser_language() -> str:
    """``zh`` or ``en``, by the browser; Chinese if it does not say."""
    locale = st.context.locale or "zh"
    return "zh" if locale.lower().startswith("zh") else "en"


def language() -> Literal["zh", "en"]:
    """The visitor's language: the chosen one, else the browser's."""
    return "en" if (st.session_state.get("language") or browser_language()) == "en" else "zh"


def say(key: str, **values: object) -> str:
    """The text of ``key`` in the visitor's language.

    Streamlit reads it as Markdown almost everywhere; ``values`` that somebody wrote go through
    :func:`huanhuan.chat.safe_text.plain_markdown` first, unless the place shows plain text.
    """
    return TEXTS[key][0 if language() == "zh" else 1].format(**values)


def sentence(error: EngineError) -> str:
    """An error in the visitor's language, with its id."""
    return plain_markdown(f"{error.en if language() == 'en' else error.zh} [{error.id}]")
