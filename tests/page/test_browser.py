"""The page in a real browser: headless Chromium over the real page, with the real tiny model or the fake engine."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from visitor import free_port, served  # type: ignore[import-not-found]

from huanhuan.chat.cards import Card, card_json, card_png
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.personas import load_personas
from huanhuan.chat.portrait import portrait_png
from huanhuan.chat.transfer import to_json
from huanhuan.paths import MODELS
from huanhuan.template import stop_ids

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Where the pictures of a run go; docs/screenshots to renew those of the documents.
SHOTS = os.environ.get("HUANHUAN_SCREENSHOTS")
WAIT = 30_000
LONG = "从前有座山，山里有座庙，庙里有个老和尚，在给小和尚讲下山挑水时遇见的那位姑娘说过的话，一句也没有落下。"

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
def model(tiny_base: Path) -> Path:
    """The demo's character, the model that HUANHUAN_DEMO_MODEL names, or else random weights."""
    demo = Path(os.environ.get("HUANHUAN_DEMO_MODEL") or MODELS / "huanhuan-demo")
    return demo if (demo / "config.json").is_file() else tiny_base


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real page over ``model``."""
    with page_over(model, tmp_path_factory.mktemp("page")) as url:
        yield url


@pytest.fixture(scope="module")
def talkative(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same over a model that does not end its replies: what ends one is as likely as what begins a text."""
    folder = tmp_path_factory.mktemp("talkative")
    endless = folder / "model"
    shutil.copytree(model, endless)
    tokenizer: Any = AutoTokenizer.from_pretrained(endless, trust_remote_code=True)
    for file in endless.glob("*.safetensors"):
        tensors = load_file(file)
        head = tensors.get("output.weight")
        if head is not None:
            head[stop_ids(tokenizer)] = head[tokenizer.bos_token_id].clone()
            save_file(tensors, file, {"format": "pt"})
    with page_over(endless, folder) as url:
        yield url


@contextmanager
def page_over(model: Path, folder: Path) -> Iterator[str]:
    """The address of the real page with the real engine over ``model``, its log in ``folder``."""
    port = free_port()
    command = [str(ROOT / "app.py"), "--server.port", str(port), "--server.address", "127.0.0.1"]
    settings = {"HUANHUAN_MODEL": str(model), "HUANHUAN_ENGINE": "transformers", "HUANHUAN_GUARD": "off"}
    with served(command, port, folder / "server.log", **settings):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real page over the fake engine, which says slowly what it was told."""
    port = free_port()
    command = [str(Path(__file__).with_name("fake_server.py")), str(port), "2", "0.03"]
    with served(command, port, tmp_path_factory.mktemp("echo") / "server.log"):
        yield f"http://127.0.0.1:{port}"


def visit(browser: Browser, address: str, **settings: Any) -> tuple[BrowserContext, Page]:
    settings = {"locale": "zh-CN", "viewport": {"width": 1120, "height": 820}, "color_scheme": "light", **settings}
    context = browser.new_context(**settings)
    page = context.new_page()
    load(page, address)
    return context, page


def load(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("h1")).to_be_visible(timeout=WAIT)
    expect(page.get_by_test_id("stChatMessage").first).to_be_visible(timeout=WAIT)


PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}


def control(page: Page, key: str) -> Locator:
    return page.locator(f"[class*='st-key-{key}'] button").last


def say(page: Page, text: str) -> None:
    box = page.get_by_test_id("stChatInputTextArea")
    box.fill(text)
    box.press("Enter")


def answered(page: Page) -> None:
    """Until the reply is there and can be said again."""
    expect(control(page, "again-")).to_be_visible(timeout=WAIT)
    expect(control(page, "stop")).to_have_count(0, timeout=WAIT)


def bubble(page: Page, number: int) -> Locator:
    return page.get_by_test_id("stChatMessage").nth(number)


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.mouse.move(0, 0)
        page.wait_for_timeout(1200)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def narrow(page: Page) -> bool:
    """Whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_greeting_starter_reply_regenerate_and_export(browser: Browser, address: str) -> None:
    context, page = visit(browser, address)
    persona = next(iter(load_personas()[0].values()))
    expect(page.locator("h1")).to_have_text(persona.name)
    expect(bubble(page, 0)).to_contain_text(persona.greeting[:8])
    expect(page.get_by_text("人工智能生成")).to_be_visible()
    page.wait_for_function("document.documentElement.lang === 'zh-CN'", timeout=WAIT)
    shoot(page, "start")
    control(page, "starter-0").click()
    answered(page)
    expect(bubble(page, 1)).to_contain_text(persona.starters[0])
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
    assert exported["card"]["data"]["name"] == persona.name
    with page.expect_download(timeout=WAIT) as download:
        control(page, "export-markdown").click()
    assert "人工智能生成" in Path(download.value.path()).read_text("utf-8")
    with page.expect_download(timeout=WAIT) as download:
        control(page, "export-card_png").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    context.close()


# Notes how long the last bubble is whenever it changes while Stop is on the page.
WATCH = """() => {
    window.lengths = [];
    new MutationObserver(() => {
        if (!document.querySelector("[class*='st-key-stop'] button")) return;
        const last = [...document.querySelectorAll("[data-testid=stChatMessage] [data-testid=stMarkdown]")].pop();
        const length = last ? last.innerText.length : 0;
        if (length !== window.lengths.at(-1)) window.lengths.push(length);
    }).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""
GREW = (
    "window.lengths.filter((length, place, all) => place && length > all[place - 1] && all[place - 1] > 0).length >= 3"
)


def test_a_reply_of_the_real_model_streams_until_it_is_stopped(browser: Browser, address: str, talkative: str) -> None:
    if SHOTS:
        picture_while_it_is_written(browser, address)
    context, page = visit(browser, talkative)
    page.get_by_text("设置", exact=True).click()
    # As long as a reply may be, or the quickest of models is done before anybody can stop it.
    page.get_by_role("slider").nth(2).press("End")
    expect(page.get_by_test_id("stSliderThumbValue").nth(2)).to_have_text("1024", timeout=WAIT)
    page.evaluate(WATCH)
    control(page, "starter-0").click()
    page.wait_for_function(GREW, timeout=WAIT)
    control(page, "stop").click()
    expect(page.get_by_text("已停止")).to_be_visible(timeout=WAIT)
    answered(page)
    said = bubble(page, 2).get_by_test_id("stMarkdown").first
    kept = said.inner_text()
    page.wait_for_timeout(500)
    assert kept and said.inner_text() == kept, "nothing is written any more"
    # Its slot, the only one, is free for the next reply.
    page.evaluate("window.lengths = []")
    control(page, "again-").click()
    page.wait_for_function(GREW, timeout=WAIT)
    control(page, "stop").click()
    answered(page)
    context.close()


def picture_while_it_is_written(browser: Browser, address: str) -> None:
    """A picture of a reply that is not finished yet."""
    context, page = visit(browser, address)
    control(page, "starter-0").click()
    for _ in range(12):
        try:
            page.get_by_text("▌").wait_for(timeout=4000)
            page.wait_for_timeout(150)
            taken = page.screenshot()
            if page.get_by_text("▌").count():
                (Path(str(SHOTS)) / "chat.png").write_bytes(taken)
                break
        except Exception:
            # It was over before one looked.
            pass
        answered(page)
        control(page, "again-").click()
    context.close()


def test_a_stop_keeps_what_was_said(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    say(page, LONG)
    expect(bubble(page, 2)).to_contain_text("回「从前", timeout=WAIT)
    page.keyboard.press("Escape")
    expect(page.get_by_text("已停止")).to_be_visible(timeout=WAIT)
    kept = bubble(page, 2).inner_text()
    assert "回「从前" in kept and "第1句" not in kept
    context.close()


def test_a_click_elsewhere_does_not_lose_the_reply(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    say(page, LONG)
    expect(bubble(page, 2)).to_contain_text("回「", timeout=WAIT)
    page.get_by_text("设置", exact=True).click()
    page.get_by_text("显示速度").click()
    answered(page)
    expect(bubble(page, 2)).to_contain_text("第1句")
    context.close()


def test_a_reload_loses_nothing_and_a_link_gives_nothing_away(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    assert "chat=" not in page.url
    say(page, LONG)
    expect(bubble(page, 2)).to_contain_text("回「从前", timeout=WAIT)
    page.reload()
    answered(page)
    expect(bubble(page, 2)).to_contain_text("第1句")
    other, others = visit(browser, page.url)
    others.wait_for_timeout(500)
    assert others.get_by_test_id("stChatMessage").count() == 1
    window = context.new_page()
    load(window, page.url)
    expect(window.get_by_test_id("stChatMessage")).to_have_count(3, timeout=WAIT)
    page.get_by_text("设置", exact=True).click()
    page.get_by_text("显示速度").click()
    expect(page.get_by_text("另一个窗口")).to_be_visible(timeout=WAIT)
    control(page, "bring-here").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(3, timeout=WAIT)
    for each in (context, other):
        each.close()


def test_emphasis_between_chinese_letters(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    say(page, "她*微微一笑*说道，又*“哼”*了一声，2*3*4")
    answered(page)
    for number in (1, 2):
        assert bubble(page, number).locator("em").all_inner_texts() == ["微微一笑", "\u2060“哼”\u2060"]
        assert "2*3*4" in bubble(page, number).inner_text()
    context.close()


def test_settings_open(browser: Browser, address: str) -> None:
    context, page = visit(browser, address)
    control(page, "starter-1").click()
    answered(page)
    page.get_by_text("设置", exact=True).click()
    page.get_by_text("显示速度").click()
    expect(page.get_by_text("词/秒")).to_be_visible(timeout=WAIT)
    page.get_by_test_id("stSidebarContent").evaluate("each => each.scrollTo(0, 120)")
    shoot(page, "settings")
    context.close()


def test_english_on_a_phone_in_the_dark(browser: Browser, address: str) -> None:
    context, page = visit(browser, address, locale="en-GB", color_scheme="dark", **PHONE)
    expect(page.get_by_text("AI-generated")).to_be_visible(timeout=WAIT)
    page.wait_for_function("document.documentElement.lang === 'en'", timeout=WAIT)
    control(page, "starter-1").click()
    answered(page)
    shoot(page, "dark")
    assert control(page, "again-").inner_text().strip().endswith("Regenerate")
    assert narrow(page)
    dark = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert max(int(part) for part in dark[4:-1].split(",")) < 80, dark
    context.close()


def test_chinese_on_a_phone(browser: Browser, address: str) -> None:
    context, page = visit(browser, address, **PHONE)
    for number in (0, 1):
        starter = page.locator(f"[class*='st-key-starter-{number}'] button")
        box = starter.bounding_box()
        assert box and box["height"] >= 40, "large enough for a thumb"
    control(page, "starter-0").tap()
    answered(page)
    # The heading gives way to what is said.
    assert page.locator("h1").evaluate("each => parseFloat(getComputedStyle(each).fontSize)") <= 24
    shoot(page, "phone")
    assert narrow(page)
    context.close()


def test_the_sidebar_and_the_menus_of_a_phone(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo, **PHONE)
    for text in ("甲", "乙"):
        say(page, text)
        expect(page.get_by_text(f"回「{text}」")).to_be_visible(timeout=WAIT)
        answered(page)
    assert control(page, "edit-").count() and page.locator("[class*='st-key-menu-'] button").count() == 2
    page.locator("[class*='st-key-menu-'] button").first.tap()
    bubble(page, 1).locator("[class*='st-key-delete-'] button").tap()
    expect(page.get_by_text("回「甲」")).to_have_count(0, timeout=WAIT)
    control(page, "undo").tap()
    expect(page.get_by_text("回「甲」")).to_be_visible(timeout=WAIT)
    page.get_by_test_id("stExpandSidebarButton").tap()
    sidebar = page.get_by_test_id("stSidebar")
    expect(control(page, "new")).to_be_visible()
    for box in ("设置", "导入与导出"):
        sidebar.get_by_text(box, exact=True).tap()
    expect(page.locator("input[type=file]")).to_have_count(1)
    shoot(page, "phone-sidebar")
    assert narrow(page)
    wide = sidebar.evaluate(
        "bar => [...bar.querySelectorAll('button, input:not([type=range]), textarea, [data-testid=stSlider]')]"
        ".filter(e => e.offsetParent && e.getBoundingClientRect().right > bar.getBoundingClientRect().right + 1)"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert wide == []
    sidebar.get_by_test_id("stBaseButton-headerNoPadding").last.tap()
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_in_viewport()
    context.close()


FOCUSED = """() => {
    const e = document.activeElement, keyed = e.closest("[class*='st-key-']");
    return [e.tagName, e.type || "", e.getAttribute("role") || "",
            keyed ? keyed.className.match(/st-key-([\\w-]+)/)[1] : "", e.dataset.testid || ""].join(" ");
}"""


def tab_to(page: Page, wanted: str, most: int = 60) -> None:
    """Press Tab until the focus is where ``wanted`` says, a pattern for FOCUSED."""
    seen: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
        if re.search(wanted, seen[-1]):
            return
    pytest.fail(f"Tab does not lead to {wanted}: {seen}")


def test_the_keyboard_alone_is_enough(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    expect(control(page, "starter-5")).to_be_enabled(timeout=WAIT)
    tab_to(page, r"\bstarter-0\b")
    page.keyboard.press("Enter")
    answered(page)
    tab_to(page, "stChatInputTextArea")
    # Long enough that the reply is still being written when Tab has come to Stop, and nothing in it is said twice.
    page.keyboard.insert_text("".join(chr(0x4E00 + number) for number in range(1000)))
    page.keyboard.press("Enter")
    expect(control(page, "stop")).to_be_visible(timeout=WAIT)
    tab_to(page, r"\bstop\b")
    page.keyboard.press("Enter")
    expect(page.get_by_text("已停止")).to_be_visible(timeout=WAIT)
    tab_to(page, "stChatInputTextArea")
    page.keyboard.type("又一句")
    page.keyboard.press("Enter")
    expect(page.get_by_text("回「又一句」")).to_be_visible(timeout=WAIT)
    answered(page)

    tab_to(page, r"^SUMMARY.*settings-box")
    page.keyboard.press("Enter")
    tab_to(page, r"range +temperature")
    before = page.get_by_role("slider").first.get_attribute("aria-valuenow")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("slider").first).not_to_have_attribute("aria-valuenow", str(before))
    tab_to(page, r"TEXTAREA.*system-")
    tab_to(page, r"^SUMMARY.*files-box")
    page.keyboard.press("Enter")
    tab_to(page, r"BUTTON.*export-json")
    # Asked for before the focus comes there: the browser hands the window over only once it was told to.
    with page.expect_file_chooser(timeout=WAIT):
        tab_to(page, r"BUTTON.*import-0 stBaseButton")
        page.keyboard.press("Enter")

    tab_to(page, r"BUTTON.*menu-")
    page.keyboard.press("Enter")
    expect(bubble(page, 1).locator("[class*='st-key-delete-']")).to_be_visible(timeout=WAIT)
    tab_to(page, r"BUTTON.*delete-[0-9a-f]{12}", 2)
    page.keyboard.press("Enter")
    expect(bubble(page, 1)).not_to_contain_text("你平日里爱读些什么书", timeout=WAIT)
    tab_to(page, r"BUTTON.*undo")
    page.keyboard.press("Enter")
    expect(bubble(page, 1)).to_contain_text("你平日里爱读些什么书", timeout=WAIT)
    context.close()


UNNAMED = """[...document.querySelectorAll('button, input, textarea, img, [role=slider]')]
    .filter(e => e.offsetParent && !e.closest('[data-testid=stHeader], [data-testid=stSidebarHeader]')
             && !(e.innerText?.replace(/\\b[a-z]+(_[a-z]+)*\\b/, '').trim() || e.getAttribute('aria-label') || e.alt
             || e.title || e.labels?.length || e.getAttribute('aria-labelledby') || e.querySelector('p')?.textContent))
    .map(e => e.outerHTML.slice(0, 260))"""


def test_everything_has_a_name(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    for text in ("甲", "乙"):
        say(page, text)
        expect(page.get_by_text(f"回「{text}」")).to_be_visible(timeout=WAIT)
        answered(page)
    control(page, "again-").click()
    expect(page.get_by_text("2 / 2")).to_be_visible(timeout=WAIT)
    answered(page)
    for box in ("设置", "导入与导出"):
        page.get_by_text(box, exact=True).click()
    expect(page.locator("input[type=file]")).to_have_count(1)
    assert page.evaluate(UNNAMED) == []
    for name in ("上一版", "下一版", "更多", "重说", "继续说"):
        assert page.get_by_role("button", name=name).count(), name
    context.close()


class Outside:
    """Every request of a page that leaves for another place than its own server."""

    def __init__(self, page: Page, own: str) -> None:
        self.asked: list[str] = []

        def note(request: Any) -> None:
            if not request.url.startswith((own, own.replace("http", "ws"), "data:", "blob:")):
                self.asked.append(request.url)

        page.on("request", note)


EVIL = "http://evil.invalid"
ATTACKS = (
    f"![a]({EVIL}/markdown.png) <img src={EVIL}/html.png onerror=window.hit=1> <script>window.hit=1</script>",
    f"<iframe src={EVIL}/frame></iframe> [![b]({EVIL}/b.png)]({EVIL}/c) <svg onload=window.hit=1>",
    f"*![c]({EVIL}/emphasis.png)* **<img src={EVIL}/bold.png>** `x` ~~~html <b>",
    f":material/home: :red[![d]({EVIL}/d.png)] $\\href{{{EVIL}}}{{x}}$ [e](javascript:window.hit=1)",
)


def harmless(page: Page, outside: Outside, pictures: int) -> None:
    page.wait_for_timeout(500)
    assert outside.asked == []
    assert page.evaluate("window.hit") is None
    shown = page.locator("[data-testid=stMain], [data-testid=stSidebar]")
    assert shown.locator("iframe, script, object, embed, .katex").count() == 0
    bubbles = page.get_by_test_id("stChatMessage")
    assert bubbles.locator("img").count() == pictures, "only the character's own pictures"
    # A plain address becomes a link that shows where it leads; nothing else does.
    for link in page.get_by_test_id("stMain").locator("a").all():
        assert str(link.get_attribute("href")).startswith(EVIL) and link.inner_text().startswith(EVIL)


def test_nothing_in_a_message_loads_or_runs(browser: Browser, echo: str) -> None:
    context, page = visit(browser, echo)
    outside = Outside(page, echo)
    for number, attack in enumerate(ATTACKS):
        say(page, attack)
        expect(page.get_by_text(f"第{number + 1}句")).to_be_visible(timeout=WAIT)
        answered(page)
    harmless(page, outside, 1 + len(ATTACKS))
    context.close()


def test_nothing_in_a_card_loads_or_runs(browser: Browser, echo: str, tmp_path: Path) -> None:
    context, page = visit(browser, echo)
    outside = Outside(page, echo)
    page.get_by_text("导入与导出").click()
    names = (f"![n]({EVIL}/n.png)<b>", f"<img src={EVIL}/n.png onerror=window.hit=1>")
    for number, name in enumerate(names):
        card = Card(name, (), "扮演", ATTACKS[number], ATTACKS, (), ATTACKS[1:])
        held = Conversation("x", title=f"![t]({EVIL}/t.png)")
        held.say(ATTACKS[0])
        held.answer().version.text = ATTACKS[1]
        held.turns[-1].version.model = ATTACKS[2][:90]
        for kind, content in (
            ("png", card_png(card, portrait_png("x"))),
            ("json", card_json(card)),
            ("json", to_json(held, card, "扮演").encode()),
        ):
            path = tmp_path / f"card.{kind}"
            path.write_bytes(content)
            page.locator("input[type=file]").set_input_files(str(path))
            expect(page.get_by_text("已导入")).to_be_visible(timeout=WAIT)
            expect(page.locator("h1")).to_have_text(name)
            if content[:1] == b"{" and b"huanhuan-conversation" in content[:300]:
                harmless(page, outside, 2)
                with page.expect_download(timeout=WAIT) as download:
                    control(page, "export-markdown").click()
                text = Path(download.value.path()).read_text("utf-8")
                assert not re.search(r"(?<!\\)[<\[!]", text)
            else:
                harmless(page, outside, 1)
                control(page, "next_greeting").click()
                expect(page.get_by_text("2 / 4")).to_be_visible(timeout=WAIT)
                harmless(page, outside, 1)
    control(page, "new").click()
    control(page, "starter-0").click()
    answered(page)
    page.get_by_role("combobox", name="角色").click()
    page.wait_for_timeout(300)
    harmless(page, outside, 2)
    context.close()


def test_without_a_model_the_page_explains(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    command = [str(Path(__file__).with_name("fake_server.py")), str(port), "1", "0", "empty"]
    with served(command, port, tmp_path / "server.log", state="failed"):
        for locale, title in (("zh-CN", "还没有模型"), ("en-GB", "There is no model yet")):
            context = browser.new_context(locale=locale, viewport={"width": 1120, "height": 820})
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{port}")
            expect(page.locator("h1")).to_have_text(title, timeout=WAIT)
            expect(page.locator("code", has_text="make character")).to_be_visible()
            assert page.locator("pre").count() == 3 and control(page, "retry").is_visible()
            if locale == "zh-CN":
                shoot(page, "no-model")
            context.close()
