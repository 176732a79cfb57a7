"""The page at /ui in a real browser: Debian's Chromium without a screen, over a real server."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from tests.support.model_folder import LABELS, TEXTS, write_model_folder
from tests.support.servers import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "a-key-that-nobody-guesses"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]

Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = write_model_folder(tmp_path_factory.mktemp("ui") / "model")
    with serving(folder, "--max-batch-texts", "3", "--max-text-characters", "300") as (_, client):
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, client: httpx.Client) -> Iterator[Opened]:
    """Opens the page, in a context of its own; nothing may be logged, and nothing requested from any other server."""
    contexts: list[BrowserContext] = []
    messages: list[str] = []
    urls: list[str] = []

    def open_page(**context: Any) -> Page:  # noqa: ANN401 - as the library takes it
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(str(client.base_url))
        expect(page.locator("#model")).to_contain_text("DistriNews")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in messages if "status of 4" not in text and "net::ERR_FAILED" not in text] == []
    assert all(url.startswith((str(client.base_url), "data:,")) for url in urls), urls


def classify(page: Page, *lines: str) -> None:
    page.locator("#texts").fill("\n".join(lines))
    page.get_by_role("button", name="Classify").click()


def answer_with(status: int, detail: str, headers: dict[str, str] | None = None) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, json={"detail": detail}, headers=headers or {})


def test_keys_alone_classify_a_text_and_show_the_answer_of_the_server(opened: Opened, client: httpx.Client) -> None:
    page = opened()
    page.keyboard.type(TEXTS[0])
    page.keyboard.press("Control+Enter")
    answer = client.post("/predict", json={"text": TEXTS[0]}).json()
    row = page.get_by_role("row").nth(1)
    expect(row.get_by_role("rowheader")).to_have_text(TEXTS[0])
    expect(row.get_by_role("cell").first).to_contain_text(answer["label"])
    shares = [f"{name}{share * 100:.1f} %" for name, share in answer["probabilities"].items()]
    expect(row.get_by_role("listitem")).to_have_text(shares)
    widths = row.locator(".fill").evaluate_all("fills => fills.map(fill => parseFloat(fill.style.width))")
    assert widths == pytest.approx([share * 100 for share in answer["probabilities"].values()], abs=0.06)
    expect(page.get_by_role("status")).to_have_text(
        re.compile(r"1 text in \d+ ms \(server: queue [\d.]+ ms, tokenize [\d.]+ ms, infer [\d.]+ ms\)")
    )
    health = client.get("/health").json()
    expect(page.locator("#model")).to_have_text(
        f"DistriNews {health['version']} · {health['engine']} · int8 · model {health['sha256'][:12]}"
    )


def test_many_lines_go_out_in_batches_as_large_as_the_server_takes(opened: Opened) -> None:
    page = opened()
    sizes: list[int] = []
    page.on("request", lambda request: sizes.append(len(json.loads(request.post_data or "{}").get("texts", ()))))
    lines = [f"goal {number}" for number in range(7)]
    classify(page, "", *lines[:2], "   ", *lines[2:], "")
    expect(page.get_by_role("rowheader")).to_have_text(lines)
    expect(page.get_by_role("status")).to_contain_text("7 texts in")
    assert [size for size in sizes if size] == [3, 3, 1]
    counts = [int(text.split()[-1]) for text in page.locator("#tally li").all_inner_texts()]
    assert sum(counts) == 7


def test_more_rows_than_a_screenful_are_shown_on_demand(opened: Opened) -> None:
    page = opened()
    classify(page, *(f"goal {number}" for number in range(105)))
    expect(page.get_by_role("status")).to_contain_text("105 texts in")
    expect(page.get_by_role("rowheader")).to_have_count(100)
    page.get_by_role("button", name="Show more").click()
    expect(page.get_by_role("rowheader")).to_have_count(105)
    expect(page.locator("tr:focus")).to_contain_text("goal 100")


def test_a_text_is_never_taken_for_markup(opened: Opened) -> None:
    page = opened()
    evil = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    classify(page, evil)
    expect(page.get_by_role("rowheader")).to_contain_text(evil)
    assert page.locator("#rows img, #rows script").count() == 0
    assert page.title() == "DistriNews"


def test_the_policy_lets_no_other_script_run(client: httpx.Client, browser: Browser) -> None:
    page = browser.new_page()
    policy = str(page.goto(f"{client.base_url}/ui").headers["content-security-policy"])  # type: ignore[union-attr]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    )
    page.evaluate("document.body.setAttribute('onclick', 'window.ran = 1'); document.body.click()")
    assert page.evaluate("window.ran") is None
    page.close()


def test_a_truncated_text_is_marked_as_truncated(opened: Opened) -> None:
    page = opened()
    classify(page, TEXTS[3], "goal")
    expect(page.get_by_role("row").nth(1)).to_contain_text("Only its first 16 tokens were read")
    expect(page.get_by_role("row").nth(2)).not_to_contain_text("tokens")


def test_a_line_that_the_server_refuses_is_named_and_those_before_it_stay(opened: Opened) -> None:
    page = opened()
    classify(page, "goal", "", "bank", "vote", "chip", "x" * 301)
    expect(page.get_by_role("alert")).to_have_text("Line 6: String should have at most 300 characters")
    expect(page.get_by_role("rowheader")).to_have_text(["goal", "bank", "vote"])
    expect(page.get_by_role("status")).to_contain_text("3 of 5 texts in")


def test_a_busy_server_is_asked_again_after_its_time_and_then_given_up(opened: Opened) -> None:
    page = opened()
    page.clock.install()
    tries = []
    page.on("request", lambda request: tries.append(request.url))
    page.route("**/predict/batch", answer_with(429, "full", {"Retry-After": "7"}))
    classify(page, "goal")
    for number in range(1, 5):
        expect(page.get_by_role("status")).to_have_text("The server is busy; trying again in 7 s …")
        page.clock.fast_forward(6000)
        assert len(tries) == number
        with page.expect_response("**/predict/batch"):
            page.clock.fast_forward(1100)
    expect(page.get_by_role("alert")).to_have_text("The server has too much to do: full\nTry again in 7 s.")
    page.unroute("**/predict/batch")
    classify(page, "goal")
    expect(page.get_by_role("rowheader")).to_have_text(["goal"])
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_key_is_asked_for_when_needed_and_kept_nowhere(opened: Opened) -> None:
    page = opened()
    expect(page.get_by_label("API key")).to_be_hidden()

    def guarded(route: Route) -> None:
        allowed = route.request.headers.get("x-api-key") == KEY
        return route.continue_() if allowed else answer_with(401, "no such key")(route)

    page.route("**/predict/batch", guarded)
    classify(page, "goal")
    expect(page.get_by_role("alert")).to_have_text("The server wants an API key: no such key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not accept this API key: no such key")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader")).to_have_text(["goal"])
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.search]") == [
        0,
        0,
        "",
        "",
    ]


def test_a_server_that_is_gone_is_reported(opened: Opened) -> None:
    page = opened()
    page.route("**/predict/batch", lambda route: route.abort())
    classify(page, "goal")
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Is it still running?")
    expect(page.get_by_role("button", name="Classify")).to_be_visible()


def test_an_input_without_a_text_is_reported(opened: Opened) -> None:
    page = opened()
    classify(page, " ", "")
    expect(page.get_by_role("alert")).to_have_text("Type or paste a text first.")
    expect(page.get_by_label("Texts, one a line")).to_be_focused()


def test_many_lines_can_be_stopped_and_the_results_so_far_stay(opened: Opened) -> None:
    page, held = opened(), []
    page.route(
        "**/predict/batch",
        lambda route: held.append(route) if "goal 3" in str(route.request.post_data) else route.continue_(),
    )
    classify(page, *(f"goal {number}" for number in range(9)))
    expect(page.get_by_role("rowheader")).to_have_count(3)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_contain_text("3 of 9 texts in")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_screen_reader_finds_names_a_table_and_one_live_region(opened: Opened) -> None:
    page = opened()
    classify(page, "goal")
    expect(page.get_by_role("rowheader")).to_have_count(1)
    table = page.get_by_role("table").aria_snapshot()
    assert 'table "Each text with its label and the probability of every class"' in table
    assert 'columnheader "Probabilities"' in table
    assert 'rowheader "goal"' in table
    assert re.search(rf"listitem: {LABELS[0]} [\d.]+ %", table)
    assert page.locator("[aria-live]").count() == 1
    order = []
    page.get_by_label("Texts, one a line").focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.textContent"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == ["Classify", "Examples", "Clear"]


@pytest.mark.parametrize("width", [320, 375, 900])
def test_a_narrow_screen_needs_no_sideways_scrolling(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 700})
    classify(page, "goal " * 30, "w" * 250)
    expect(page.get_by_role("rowheader")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert 'rowheader "goal' in page.get_by_role("table").aria_snapshot(), "a table still"


_CONTRAST = """() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : color;
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
    && !["SCRIPT", "OPTION"].includes(element.tagName) && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.map((element) => {
    const [one, other] = [getComputedStyle(element).color, behind(element)].map(light).sort((a, b) => b - a);
    return [element.textContent.slice(0, 30), (one + 0.05) / (other + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_the_light_and_in_the_dark(opened: Opened, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    classify(page, TEXTS[3], "x" * 9, "goal", "x" * 301)
    expect(page.get_by_role("alert")).to_be_visible()
    found = dict(page.evaluate(_CONTRAST))
    assert len(found) > 15
    assert min(found.values()) >= 4.5, found
    page_is_light = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(2")
    assert page_is_light == (scheme == "light")


@pytest.mark.parametrize(("motion", "animation"), [("reduce", "none"), ("no-preference", "grow")])
def test_bars_move_unless_reduced_motion_is_preferred(opened: Opened, motion: str, animation: str) -> None:
    page = opened(reduced_motion=motion)
    classify(page, "goal")
    expect(page.locator(".fill")).to_have_count(3)
    assert page.locator(".fill").first.evaluate("fill => getComputedStyle(fill).animationName") == animation


def test_the_examples_and_clear_fill_and_empty_the_page(opened: Opened) -> None:
    page = opened()
    page.get_by_role("button", name="Examples").click()
    expect(page.locator("#count")).to_have_text("4 texts")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("rowheader")).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("table")).to_be_hidden()
    expect(page.locator("#count")).to_have_text("No text yet")
