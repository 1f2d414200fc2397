"""The page in a real browser: headless Chromium over the real page, with the real tiny model or the fake engine."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from visitor import free_port, served  # type: ignore[import-not-found]

from huanhuan.chat.personas import load_personas

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Where the pictures of a run go; docs/screenshots to renew those of the documents.
SHOTS = os.environ.get("HUANHUAN_SCREENSHOTS")
WAIT = 30_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists() and not os.environ.get("CI"), reason="no Chromium here: apt-get install chromium"
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        built = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield built
        built.close()


@pytest.fixture(scope="module")
def address(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real page over the real tiny model, or over the model that HUANHUAN_SCREENSHOT_MODEL names."""
    port = free_port()
    model = os.environ.get("HUANHUAN_SCREENSHOT_MODEL") or str(tiny_base)
    command = [str(ROOT / "app.py"), "--server.port", str(port), "--server.address", "127.0.0.1"]
    log = tmp_path_factory.mktemp("page") / "server.log"
    with served(command, port, log, HUANHUAN_MODEL=model, HUANHUAN_ENGINE="transformers", HUANHUAN_GUARD="off"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    """The real page over the fake engine, which says slowly what it was told."""
    port = free_port()
    command = [str(Path(__file__).with_name("fake_server.py")), str(port), "2", "0.05"]
    with served(command, port, tmp_path / "server.log"):
        yield f"http://127.0.0.1:{port}"


def visit(browser: Browser, address: str, **settings: Any) -> tuple[BrowserContext, Page]:
    settings = {"locale": "zh-CN", "viewport": {"width": 1120, "height": 820}, "color_scheme": "light", **settings}
    context = browser.new_context(**settings)
    page = context.new_page()
    page.goto(address)
    expect(page.locator("h1")).to_be_visible(timeout=WAIT)
    expect(page.get_by_test_id("stChatMessage").first).to_be_visible(timeout=WAIT)
    return context, page


def control(page: Page, key: str) -> Any:
    return page.locator(f"[class*='st-key-{key}'] button").last


def say(page: Page, text: str) -> None:
    box = page.get_by_test_id("stChatInputTextArea")
    box.fill(text)
    box.press("Enter")


def answered(page: Page) -> None:
    """Until the reply is there and can be said again."""
    expect(control(page, "again-")).to_be_visible(timeout=WAIT)
    expect(control(page, "stop")).to_have_count(0, timeout=WAIT)


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(1200)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def test_greeting_starter_reply_regenerate_and_export(browser: Browser, address: str) -> None:
    context, page = visit(browser, address)
    persona = next(iter(load_personas()[0].values()))
    expect(page.locator("h1")).to_have_text(persona.name)
    expect(page.get_by_test_id("stChatMessage").first).to_contain_text(persona.greeting[:8])
    expect(page.get_by_text("人工智能生成")).to_be_visible()
    shoot(page, "start")
    control(page, "starter-0").click()
    answered(page)
    expect(page.get_by_test_id("stChatMessage").nth(1)).to_contain_text(persona.starters[0])
    shoot(page, "chat")
    control(page, "again-").click()
    expect(page.get_by_text("2 / 2")).to_be_visible(timeout=WAIT)
    answered(page)
    control(page, "previous-").click()
    expect(page.get_by_text("1 / 2")).to_be_visible(timeout=WAIT)
    page.get_by_text("导入与导出").click()
    with page.expect_download(timeout=WAIT) as download:
        control(page, "export-json").click()
    exported = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert exported["ai_generated"] and len(exported["turns"][1]["versions"]) == 2
    with page.expect_download(timeout=WAIT) as download:
        control(page, "export-card_png").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    context.close()


def test_a_reply_of_the_real_model_can_be_stopped(browser: Browser, address: str) -> None:
    context, page = visit(browser, address)
    page.get_by_text("设置", exact=True).click()
    slider = page.get_by_role("slider").first
    slider.focus()
    for _ in range(14):
        slider.press("ArrowRight")
    for attempt in range(6):
        say(page, f"讲一个很长的故事，第{attempt}回")
        try:
            control(page, "stop").click(timeout=5000)
        except Exception:
            # The random model ended its reply by itself.
            answered(page)
            continue
        expect(control(page, "stop")).to_have_count(0, timeout=WAIT)
        if page.get_by_text("已停止").count():
            break
    else:
        pytest.fail("no reply was long enough to be stopped")
    context.close()


def test_a_reply_streams_and_a_stop_keeps_what_was_said(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    text = "从前有座山山里有座庙庙里有个老和尚在讲故事" * 4
    say(page, text)
    reply = page.get_by_test_id("stChatMessage").nth(2)
    expect(reply).to_contain_text("回「从前", timeout=WAIT)
    lengths = []
    for _ in range(3):
        lengths.append(len(reply.inner_text()))
        page.wait_for_timeout(400)
    assert lengths[0] < lengths[1] < lengths[2], "it grows while one looks"
    page.keyboard.press("Escape")
    expect(page.get_by_text("已停止")).to_be_visible(timeout=WAIT)
    kept = reply.inner_text()
    assert "回「从前" in kept and "第1句" not in kept
    context.close()


def test_a_click_elsewhere_does_not_lose_the_reply(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    say(page, "从前有座山山里有座庙庙里有个老和尚在讲故事讲的是一个小和尚下山挑水的经过")
    expect(page.get_by_test_id("stChatMessage").nth(2)).to_contain_text("回「", timeout=WAIT)
    page.get_by_text("设置", exact=True).click()
    page.get_by_text("显示速度").click()
    answered(page)
    expect(page.get_by_test_id("stChatMessage").nth(2)).to_contain_text("第1句")
    context.close()


def test_english_on_a_phone_in_the_dark(browser: Browser, address: str) -> None:
    context, page = visit(
        browser, address, locale="en-GB", viewport={"width": 390, "height": 780}, color_scheme="dark", is_mobile=True
    )
    expect(page.get_by_text("AI-generated")).to_be_visible(timeout=WAIT)
    shoot(page, "phone")
    control(page, "starter-1").click()
    answered(page)
    assert control(page, "again-").inner_text().strip().endswith("Regenerate")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert max(int(part) for part in dark[4:-1].split(",")) < 80, dark
    context.close()


def test_the_keyboard_alone_is_enough_and_everything_has_a_name(browser: Browser, address: str) -> None:
    context, page = visit(browser, address)
    control(page, "starter-0").focus()
    page.keyboard.press("Enter")
    answered(page)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, img')]
        .filter(e => e.offsetParent && !e.closest('[data-testid=stHeader], [data-testid=stSidebarHeader]')
                 && !(e.textContent.trim() || e.getAttribute('aria-label') || e.alt || e.title
                 || e.labels?.length || e.getAttribute('aria-labelledby')))
        .map(e => e.outerHTML.slice(0, 260))"""
    )
    assert unnamed == []
    context.close()


def test_nothing_in_a_message_loads_or_runs(browser: Browser, echo: str) -> None:
    asked: list[str] = []

    class Pixel(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    pixel = ThreadingHTTPServer(("127.0.0.1", 0), Pixel)
    threading.Thread(target=pixel.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{pixel.server_port}"
    attacks = (
        f"![a]({host}/markdown.png) <img src={host}/html.png onerror=window.hit=1> <script>window.hit=1</script>",
        f"<iframe src={host}/frame></iframe> [![b]({host}/b.png)]({host}/c) <svg onload=window.hit=1>",
        f"*![c]({host}/emphasis.png)* **<img src={host}/bold.png>** `x` ~~~html <b>",
    )
    context, page = visit(browser, echo)
    for number, attack in enumerate(attacks):
        say(page, attack)
        expect(page.get_by_text(f"第{number + 1}句")).to_be_visible(timeout=WAIT)
        answered(page)
    page.wait_for_timeout(500)
    assert asked == []
    assert page.evaluate("window.hit") is None
    bubbles = page.get_by_test_id("stChatMessage")
    assert bubbles.locator("iframe, script, object, embed").count() == 0
    assert bubbles.locator("img").count() == 1 + len(attacks), "only the character's own pictures"
    # A plain address becomes a link that shows where it leads; nothing else does.
    for link in bubbles.locator("a").all():
        assert str(link.get_attribute("href")).startswith(host) and link.inner_text().startswith(host)
    pixel.shutdown()
    context.close()
