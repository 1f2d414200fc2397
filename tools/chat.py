"""在终端里与角色聊天 / chat with the character in the terminal."""

import sys

import _checkout  # noqa: F401
import click

from huanhuan.chat.terminal import chat
from huanhuan.cli import tool
from huanhuan.paths import DATA


@tool()
@click.option(
    "--persona", type=click.Path(), default=str(DATA / "huanhuan/persona.toml"), help="角色卡 / persona card."
)
@click.option(
    "--model",
    help="模型目录；默认 models/huanhuan，没有则演示模型 / model folder, else the demo; or the server's model name.",
)
@click.option("--say", metavar="TEXT", help="说一句，打印回复后退出 / say one thing, print the reply and exit.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="随机程度 / sampling temperature.")
@click.option("--top-p", type=float, default=0.8, show_default=True, help="核采样 / nucleus sampling.")
@click.option("--top-k", type=int, default=40, show_default=True, help="0 为不限 / 0 means no limit.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="回复上限 / longest reply, in tokens.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1 为不惩罚 / 1 means none.")
@click.option("--seed", type=int, help="固定随机数 / makes sampling repeatable.")
@click.option("--greedy", is_flag=True, help="总取最可能的词 / always take the likeliest token.")
@click.option(
    "--verbose", is_flag=True, help="日志写到标准错误 / write the log, the guard's included, to standard error."
)
def main(**options: object) -> None:
    """在终端里与角色聊天 / chat with the character in the terminal.

    HUANHUAN_ENGINE, HUANHUAN_MODEL 与 HUANHUAN_API_BASE 决定由谁来回答 / decide what answers; 全部设置见 / every
    setting: docs/deploy.md.

    \b
    python tools/chat.py
    python tools/chat.py --say 你是谁？ --greedy
    HUANHUAN_API_BASE=http://127.0.0.1:23333/v1 python tools/chat.py
    """
    sys.exit(chat(**options))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
