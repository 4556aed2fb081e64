"""The page in a real browser: by mouse, touch and keyboard, on a phone, in the dark, without scripts, under attack."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from axs_lib.evaluate.html.page import write_report

from .conftest import SIDE, Save

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


@pytest.fixture
def page_file(save: Save, tmp_path: Path) -> Path:
    """A page with a dark opt_v2 beside a bright opt_v3; the result's name and tags attack."""
    name = "<img src=x onerror=window.hacked=1><script>window.hacked=1<"
    ramp = np.linspace(0, 4000, SIDE * SIDE).reshape(SIDE, SIDE)[None].repeat(4, 0)
    dark, bright = np.full_like(ramp, 50.0), np.full_like(ramp, 3950.0)
    path = save(
        f"all/{name}.npz",
        tags={"AXS_SAMPLE": "</script><script>window.hacked=1</script>"},
        opt_v2=dark,
        opt_v3=bright,
        s2_real=ramp,
    )
    save("all/calm.npz")
    write_report(tmp_path / "report.html", [path, tmp_path / "all"], title=f"A {name} page")
    return tmp_path / "report.html"


def opened(browser: Browser, path: Path, **context: Any) -> Page:
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(60_000)
    page.asked, page.errors = [], []  # type: ignore[attr-defined]
    page.on("request", lambda request: page.asked.append(request.url))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
    page.on("console", lambda message: page.errors.append(message.text))  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    return page


def box_of(page: Page) -> dict[str, float]:
    swipe = page.locator(".swipe").first
    swipe.scroll_into_view_if_needed()
    box = swipe.bounding_box()
    assert box is not None
    return dict(box)


def divider(page: Page) -> float:
    return float(page.locator(".swipe input").first.input_value())


def brightness(page: Page, share: float) -> float:
    """Of the picture near its lower edge, away from labels and divider, at this share of its width."""
    box = box_of(page)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        pixel = shot.convert("L").getpixel((int(box["x"] + share * box["width"]), int(box["y"] + 0.9 * box["height"])))
    assert isinstance(pixel, int)
    return pixel


def test_the_mouse_moves_the_divider(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 1280, "height": 900})
    box = box_of(page)
    assert divider(page) == 50
    assert brightness(page, 0.4) < 60 and brightness(page, 0.6) > 200
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], y, steps=4)
    page.mouse.up()
    assert divider(page) == pytest.approx(20, abs=1)
    assert brightness(page, 0.1) < 60 and brightness(page, 0.4) > 200
    page.mouse.move(box["x"] + 0.9 * box["width"], y)  # released: it stays
    assert divider(page) == pytest.approx(20, abs=1)


def test_a_finger_moves_the_divider(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 375, "height": 740}, has_touch=True, is_mobile=True)
    box = box_of(page)
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert divider(page) == pytest.approx(75, abs=1)
    assert page.locator(".swipe").first.evaluate("e => getComputedStyle(e).touchAction") == "pan-y"


def test_the_keyboard_moves_the_divider_and_focus_is_seen(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 1280, "height": 900})
    handle = page.locator(".divider span").first
    style = "e => getComputedStyle(e).outlineStyle"
    assert handle.evaluate(style) == "none"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    assert page.evaluate("document.activeElement.type") == "range"
    assert handle.evaluate(style) == "solid"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert divider(page) == 53
    spoken = page.locator(".swipe input").first.get_attribute("aria-valuetext") or ""
    assert spoken.startswith("53 % opt_v2") and "opt_v3" in spoken
    page.keyboard.press("Home")
    assert divider(page) == 0 and brightness(page, 0.05) > 200


def test_lists_and_colours_choose_what_is_seen(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 1280, "height": 900})
    result = page.locator("[data-result]").first
    seen = (
        "es => es.filter(e => getComputedStyle(e).visibility === 'visible')"
        ".map(e => [e.dataset.view, e.dataset.colour])"
    )

    def visible() -> list[list[str]]:
        found: list[list[str]] = result.locator(".swipe img").evaluate_all(seen)
        return found

    assert visible() == [["opt_v2", "true"], ["opt_v3", "true"]]
    result.get_by_label("NIR, red, green").check()
    assert visible() == [["opt_v2", "false"], ["opt_v3", "false"]]
    result.locator("select[data-side=right]").select_option("uncertainty")
    assert visible() == [["opt_v2", "false"], ["uncertainty", "any"]]
    assert result.locator("[data-tag=right]").inner_text() == "uncertainty (1 std)"
    assert result.locator("[data-note=uncertainty]").is_visible()
    assert not result.locator("[data-note=gate]").is_visible()
    result.locator("select[data-side=left]").select_option("uncertainty")
    assert visible() == [["uncertainty", "any"]]
    box_of(page)
    assert result.locator(".is-left").evaluate("e => getComputedStyle(e).clipPath") == "none"


def test_a_phone_scrolls_down_only_and_the_dark_is_dark(browser: Browser, page_file: Path) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        page = opened(browser, page_file, viewport={"width": 375, "height": 740}, color_scheme=scheme, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(int(part) for part in colour[4:-1].split(","))
    assert shades["light"] > 600 and shades["dark"] < 150


def test_it_asks_for_nothing_and_no_foreign_script_runs(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file)
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.errors == []  # type: ignore[attr-defined]
    outside = [url for url in page.asked if not url.startswith("data:")]  # type: ignore[attr-defined]
    assert outside == [page_file.as_uri()]
    # Even a script that found its way in would be refused by the page's own policy.
    page.evaluate(
        "() => { const s = document.createElement('script'); s.text = 'window.hacked = 1'; document.body.append(s) }"
    )
    assert page.evaluate("window.hacked") is None


def test_without_scripts_both_images_are_seen(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file, java_script_enabled=False, viewport={"width": 1280, "height": 900})
    assert brightness(page, 0.2) < 60 and brightness(page, 0.8) > 200
    assert not page.locator("select").first.is_visible()
