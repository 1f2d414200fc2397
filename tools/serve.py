"""把模型开成 OpenAI 兼容的服务 / serve the model to others: LMDeploy's api_server, and a proxy over several."""

import logging

import _checkout  # noqa: F401
import click

from huanhuan.chat.model_folder import model_folder
from huanhuan.chat.terminal import show_progress
from huanhuan.cli import tool


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """把模型开成 OpenAI 兼容的服务 / serve the model to others; 完整步骤见 / every step: docs/scale.md.

    \b
    export HUANHUAN_API_KEY=$(python -c "import secrets; print(secrets.token_urlsafe(24))")
    python tools/serve.py api models/huanhuan --host 0.0.0.0
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")


@tool(name="api", short_help="在一块 GPU 上启动服务 / one server on one GPU.")
@click.argument("model", required=False)
@click.option("--name", default="huanhuan", show_default=True, help="对外的模型名 / the name that clients ask for.")
@click.option("--host", default="127.0.0.1", show_default=True, help="监听地址 / address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=23333, show_default=True, help="端口 / port.")
@click.option("--behind-proxy", is_flag=True, help="在代理之后：不要密钥，只听内网 / no key, private address only.")
def api(model: str | None, name: str, host: str, port: int, behind_proxy: bool) -> None:
    """在一块 GPU 上启动服务 / one server on one GPU. MODEL: 目录或模型名 / a folder or a hub's id.

    没有 --behind-proxy 时，密钥从 HUANHUAN_API_KEY 读 / without --behind-proxy the key is read from HUANHUAN_API_KEY.

    \b
    python tools/serve.py api models/huanhuan --host 0.0.0.0
    CUDA_VISIBLE_DEVICES=1 python tools/serve.py api models/huanhuan --behind-proxy --port 23334
    """
    from huanhuan.chat import server

    key = None if behind_proxy else server.api_key()
    if behind_proxy:
        server.check_private(host)
    server.check_gpu()
    folder = model_folder(model, gpu=True, report=show_progress)
    server.serve(folder, name=name, host=host, port=port, key=key)


@tool(name="proxy", short_help="把请求分给多个服务 / spread requests over several servers.")
@click.argument("nodes", nargs=-1, required=True, metavar="URL…")
@click.option("--host", default="0.0.0.0", show_default=True, help="监听地址 / address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="端口 / port.")
def proxy(nodes: tuple[str, ...], host: str, port: int) -> None:
    """把请求分给多个服务 / spread requests over several servers. 密钥从 HUANHUAN_API_KEY 读 / the key is read from it.

    \b
    python tools/serve.py proxy http://127.0.0.1:23333 http://127.0.0.1:23334
    """
    from huanhuan.chat import server

    key = server.api_key()
    server.serve_proxy(server.node_urls(nodes), host=host, port=port, key=key)


main.add_command(api)
main.add_command(proxy)

if __name__ == "__main__":
    main()
