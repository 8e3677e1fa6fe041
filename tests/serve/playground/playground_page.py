"""A browser and the playground in it, for test_playground.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
)
PROMPT = "Question: Tom has 7 apples"


def start_browser(chromium: str, chromedriver: str, profile: Path) -> Any:
    """Headless, with an empty profile; everything that the console says is kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(chromedriver))


class Page:
    """The open page, by CSS selectors."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, fragment: str = "", width: int = 1200, wait_for: str = "#model dd") -> None:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get("about:blank")  # the fragment alone would not load the page again
        self.browser.get(f"{self.address}/{fragment}")
        self.until(lambda: self.all(wait_for))

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).get_property("textContent")

    def label(self, selector: str) -> str:
        return self.one(selector).get_attribute("aria-label")

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, 10, 0.05).until(lambda _: condition())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def in_modules(self, script: str, given: Any = None) -> Any:
        """Runs the body of an async function of `given` that sees what the modules export."""
        names = {
            "api": "stream",
            "dom": "element, formula",
            "heatmap": "heatmap",
            "parting": "commonLength, compare",
        }
        imports = "".join(
            f"const {{ {what} }} = await import('{self.address}/static/{name}.js');"
            for name, what in names.items()
        )
        return self.run(f"const given = arguments[0];{imports}{script}", given)

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def fill(self, selector: str, value: object) -> None:
        self.one(selector).send_keys(Keys.CONTROL, "a", Keys.NULL, str(value))

    def generate(self, prompt: str = PROMPT, max_tokens: int = 12) -> None:
        self.fill("#prompt", prompt)
        self.fill("#max-tokens", max_tokens)
        self.one("#generate").click()
        self.finished()

    def finished(self) -> None:
        states = ("ended", "at max tokens", "stopped", "failed")
        self.until(lambda: all(e.text in states for e in self.all(".state")))
        self.run("return new Promise(requestAnimationFrame)")

    def show_routing(self) -> None:
        self.one("#show-routing").click()
        self.until(lambda: self.text("#routing-status").startswith("Means"))

    def complaints(self) -> list[str]:
        """What the console says; the browser's own notes on failed requests are left out."""
        entries = self.browser.get_log("browser")
        return [
            entry["message"]
            for entry in entries
            if entry["level"] in ("WARNING", "SEVERE") and entry["source"] != "network"
        ]


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]
