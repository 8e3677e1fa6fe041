"""What the playground asks for and says: its form, tokens, conversations, verdicts, waiting."""

from __future__ import annotations

import shutil

import httpx
import pytest

pytest.importorskip("selenium", reason="selenium is not installed")
from playground_page import PROMPT

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromedriver are not installed",
)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (("", "failed"), ("", "failed"), "A failed and B failed: there is nothing to compare."),
        (("ab", "ended"), ("", "failed"), "B failed: there is nothing to compare."),
        (("", "stopped"), ("", "ended"), "A stopped: there is nothing to compare."),
        (
            ("abc", "ended"),
            ("ab", "stopped"),
            "B stopped: as far as both go, the answers are the same.",
        ),
        (
            ("ax", "failed"),
            ("ab", "stopped"),
            "The answers are the same for 1 character, then they part (marked).",
        ),
        (("ab", "ended"), ("ab", "ended"), "Both answers are the same."),
        (("", "ended"), ("", "ended"), "Both answers are the same."),
    ],
)
def test_only_whole_answers_are_called_the_same(page, first, second, verdict):
    script = """
        const [a, b] = given.map(([text, outcome], index) => ({
          text, outcome, label: "AB"[index], answered: true, running: false,
          output: element("div"),
        }));
        const verdict = element("p");
        compare(a, b, verdict);
        return verdict.textContent;
    """
    assert page.in_modules(script, [first, second]) == verdict


def test_two_failed_requests_are_not_the_same_answer(page):
    page.generate("x" * 95, max_tokens=90)
    assert "failed" in page.text("#column-a .state")
    assert page.text("#parting") == "A failed and B failed: there is nothing to compare."


def test_the_routes_are_described_from_this_server_only(page, address):
    page.browser.get(f"{address}/docs")
    page.until(lambda: page.all(".operation"))
    urls = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert all(url.startswith(f"{address}/") for url in urls)
    titles = [title.text for title in page.all(".operation h2")]
    document = httpx.get(f"{address}/openapi.json").json()
    assert titles == [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    ]
    text = page.text("#operations")
    for said in ("repetition_penalty", "0.01 to 100", "token id -> number added to its logit"):
        assert said in text
    assert "undefined" not in text


def asked(page):
    """Paths and bodies of the requests that the page sends from now on, when called."""
    page.run(
        "window.asked = []; const real = window.fetch;"
        "window.fetch = (path, options) => {"
        "  if (options?.body) window.asked.push([path, JSON.parse(options.body)]);"
        "  return real(path, options);"
        "};"
    )
    return lambda: page.run("return window.asked")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("#max-tokens", 500, "Max tokens is 500; the context is 96 tokens: give 1 to 96."),
        ("#max-tokens", 0, "give 1 to 96"),
        ("#max-tokens", 1.5, "give a whole number"),
        ("#temperature", 2.5, "Temperature is 2.5; give 0 to 2."),
        ("#top-p", 0, "Top-p is 0; give 0.01 to 1."),
        ("#seed", -1, "Seed is -1; give 0 to"),
        ("#samples", 9, "Samples is 9; give 1 to 8."),
        ("#prompt", "", "The prompt is empty"),
    ],
)
def test_limits_are_said_without_asking_the_server(page, field, value, said):
    bodies = asked(page)
    if value == "":
        page.one(field).clear()
    else:
        page.fill(field, value)
    page.one("#generate").click()
    page.finished()
    for column in ("a", "b"):
        assert said in page.text(f"#column-{column} .error")
    assert bodies() == []


def test_what_is_set_is_what_is_asked(page):
    bodies = asked(page)
    for field, value in (("#top-p", 0.5), ("#samples", 3), ("#stop-strings", "zz\\n")):
        page.fill(field, value)
    page.fill("#temperature", 1.5)
    page.generate(max_tokens=6)
    path, body = bodies()[0]
    assert path == "v1/completions"
    wanted = {
        "top_p": 0.5,
        "n": 3,
        "stop": ["zz\n"],
        "temperature": 1.5,
        "max_tokens": 6,
        "seed": 0,
    }
    assert {name: body[name] for name in wanted} == wanted
    assert len(page.all("#column-a .others li")) == 2
    stateless = {key: value for key, value in body.items() if not key.startswith("stream")}
    answer = httpx.post(f"{page.address}/v1/completions", json=stateless).json()["choices"]
    shown = [page.text("#column-a .output"), *(e.text for e in page.all("#column-a .others li"))]
    assert shown[0] == answer[0]["text"]
    assert [text.strip() for text in shown] == [each["text"].strip() for each in answer]
    page.until(lambda: "tp=0.5" in page.run("return location.hash"))
    page.open(page.run("return location.hash"))
    assert page.one("#stop-strings").get_property("value") == "zz\\n"
    assert page.one("#samples").get_property("value") == "3"


def test_pointing_at_a_token_shows_how_likely_it_was(page):
    page.generate()
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 4}
    logprobs = httpx.post(f"{page.address}/v1/completions", json=body).json()["choices"][0][
        "logprobs"
    ]
    spans = page.all("#column-a .output [title]")
    pairs = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    whole = [(token, value) for token, value in pairs if token]
    text = "".join(span.get_property("textContent") for span in spans)
    assert text == page.text("#column-a .output") == "".join(token for token, _ in whole)
    for _, value in whole:
        assert any(f"(log-probability {value:.3f})" in s.get_attribute("title") for s in spans)
    assert "likeliest: " in spans[0].get_attribute("title")


def test_a_conversation_goes_on_in_each_column(page):
    bodies = asked(page)
    page.run("document.getElementById('kind').value = 'chat'")
    page.run("document.getElementById('kind').dispatchEvent(new Event('change'))")
    page.generate("Tom has 7 apples.", max_tokens=5)
    first = page.text("#column-a .output")
    page.generate("And now?", max_tokens=5)
    assert page.text("#column-a .history") == f"You: Tom has 7 apples.A: {first}"
    third = [body for path, body in bodies() if path == "v1/chat/completions"][2]
    assert third["messages"] == [
        {"role": "user", "content": "Tom has 7 apples."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And now?"},
    ]
    assert page.all("#column-a .output [title]")
    page.one("#new-chat").click()
    assert page.text("#column-a .history") == ""
    page.generate("And now?", max_tokens=5)
    assert len([body for _, body in bodies()][-1]["messages"]) == 1


def test_it_waits_for_a_server_that_starts(page):
    """The page is there before the model, or stays while a replica is replaced."""
    script = page.browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "const real = window.fetch; let left = 2;"
            "window.fetch = (...call) => left-- > 0"
            ' ? Promise.resolve(new Response(\'{"error": {"message": "starting",'
            ' "code": null}}\', {status: 503})) : real(...call);'
        },
    )
    try:
        page.open(wait_for="#notice:not([hidden])")
        assert page.text("#notice").startswith("Waiting for the server, ")
        assert page.text("#notice").endswith(" s: starting")
        page.until(lambda: page.all("#model dd"))
        assert not page.one("#notice").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
