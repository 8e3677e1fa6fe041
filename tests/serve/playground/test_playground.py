"""The playground in headless Chromium, against a real server over the tiny checkpoint."""

from __future__ import annotations

import shutil

import httpx
import pytest

from mhc_model import save_checkpoint
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy
from serve.auth import ApiKeys

pytest.importorskip("selenium", reason="selenium is not installed")
from playground_page import PROMPT, Page, numbers
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromedriver are not installed",
)


def test_loads_from_this_server_only_and_describes_the_model(page, address, checkpoint):
    assert page.text("#model").startswith(f"model{checkpoint.name}")
    assert "layers3" in page.text("#model")
    urls = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert urls
    assert all(url.startswith(f"{address}/") for url in urls)
    assert len(page.all("#column-a .modes input")) == 4  # no policy is loaded, no behaviours
    assert page.all(".between") == []


def test_a_policy_is_offered_where_one_is_loaded(browser, start_server, checkpoint):
    sizes = {"n_layers": 3, "observation_dim": 32, "checkpoint_hash": checkpoint_hash(checkpoint)}
    policy = GatePolicy(PolicyConfig(action_space="global", **sizes))
    page = Page(browser, start_server(checkpoint, policy=policy))
    page.open("#a=policy&b=policy")
    assert page.one("#column-a input[value=policy]").is_selected()
    page.generate()
    assert page.text("#column-a .used h4").startswith("Gates used (policy): ")
    assert page.complaints() == []


def test_both_columns_stream_with_their_own_gates(page, address):
    page.generate()
    learned = httpx.get(f"{address}/v1/gates").json()["learned"]
    texts = {}
    for column, gates in (("a", "learned"), ("b", 0)):
        body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "seed": 0, "gates": gates}
        answer = httpx.post(f"{address}/v1/completions", json=body).json()
        texts[column] = answer["choices"][0]["text"]
        assert page.text(f"#column-{column} .output") == texts[column]
        tokens = answer["usage"]["completion_tokens"]
        assert f"tokens{tokens}" in page.text(f"#column-{column} .result")
        assert "first token" in page.text(f"#column-{column} .result")
    # The strip's rows are attention and mlp.
    used = numbers(page.label("#column-a .used svg").partition(":")[2])
    assert used == pytest.approx(learned[::2] + learned[1::2], abs=1e-3)
    assert "learned" in page.text("#column-a .used h4")
    assert page.text("#column-b .used h4") == "Gates used (request): 0 everywhere"
    assert texts["a"] != texts["b"]
    common = next(i for i, (x, y) in enumerate(zip(*texts.values(), strict=False)) if x != y)
    for column, text in texts.items():
        assert page.text(f"#column-{column} .output mark") == text[common:]


@pytest.mark.parametrize("mode", ["layer", "sublayer"])
def test_sliders_set_single_gates(page, mode):
    page.one(f"#column-b input[value={mode}]").click()
    sliders = page.all("#column-b input[type=range]")
    assert len(sliders) == {"layer": 3, "sublayer": 6}[mode]
    sliders[1].send_keys(*[Keys.ARROW_RIGHT] * 3)
    page.generate()
    used = numbers(page.label("#column-b .used svg").partition(":")[2])
    assert used == {"layer": [0, 0.03, 0, 0, 0.03, 0], "sublayer": [0, 0, 0, 0.03, 0, 0]}[mode]
    page.one("#column-b .tools button").click()
    shown = [float(slider.get_property("value")) for slider in page.all("#column-b [type=range]")]
    learned = numbers(page.label("#column-a .controls svg").partition(":")[2])  # 2 rows of 3
    if mode == "sublayer":
        assert shown[::2] + shown[1::2] == pytest.approx(learned, abs=0.006)
    else:
        means = [(learned[k] + learned[k + 3]) / 2 for k in range(3)]
        assert shown == pytest.approx(means, abs=0.006)


def test_stop_ends_one_column_and_frees_its_row(page, address):
    page.fill("#prompt", PROMPT)
    page.fill("#max-tokens", 60)
    page.one("#generate").click()
    page.until(lambda: page.text("#column-a .output") and page.text("#column-b .output"))
    page.one("#column-a .halt").click()
    page.until(lambda: page.text("#column-a .state") == "stopped")
    assert page.text("#column-b .state") == "streaming"
    assert 0 < numbers(page.text("#column-a .facts"))[0] < 60
    page.press(Keys.ESCAPE)
    page.finished()
    assert page.text("#column-b .state") == "stopped"
    page.until(lambda: httpx.get(f"{address}/health").json()["active"] == 0)


@pytest.mark.parametrize("per_token", [False, True])
def test_routing_shows_what_the_server_says(page, address, per_token):
    page.fill("#prompt", PROMPT)
    if per_token:
        page.one("#per-token").click()
    page.show_routing()
    for column, gates in (("a", "learned"), ("b", 0)):
        body = {"prompt": PROMPT, "gates": gates}
        said = httpx.post(f"{address}/v1/routing", json=body).json()
        rows = page.run(
            f"return [...document.querySelectorAll('.panel.{column} tbody tr')]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert len(rows) == len(page.all(f".panel.{column} .sublayer")) == 6
        for cells, sublayer, gain in zip(
            rows, said["sublayers"], said["composite_gain"], strict=True
        ):
            assert cells[0] == sublayer["name"]
            gate, res = sublayer["gate"], sublayer["h_res"]
            mixed = [
                gate * value + (1 - gate) * (i == j)
                for i, line in enumerate(res)
                for j, value in enumerate(line)
            ]
            expected = [gate, *sublayer["h_pre"], *sublayer["h_post"]]
            expected += [*(value for line in res for value in line), *mixed]
            expected += [sublayer["identity_distance"], sublayer["stream_similarity"], gain]
            assert numbers(" ".join(cells[1:9])) == pytest.approx(expected, abs=2e-4)
        cells = page.all(f".panel.{column} .tokens rect")
        streams = said["n_streams"]
        assert len(cells) == (len(said["tokens"]) * streams**2 if per_token else 0)
        assert len(page.all(f".panel.{column} .token-names span")) == (
            len(said["tokens"]) if per_token else 0
        )


def test_values_over_tokens_of_the_chosen_sublayer(page, address):
    page.fill("#prompt", PROMPT)
    page.one("#per-token").click()
    page.show_routing()
    page.run("document.querySelector('#sublayer').focus()")
    page.press(Keys.ARROW_DOWN)  # layer 0 mlp
    page.run(
        "const s = document.querySelector('#token-figure'); s.value = 'post';"
        "s.dispatchEvent(new Event('change'))"
    )
    body = {"prompt": PROMPT, "per_token": True}
    post = httpx.post(f"{address}/v1/routing", json=body).json()["sublayers"][1]["h_post"]
    page.run("document.querySelector('.panel.a .tokens svg').focus()")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # stream 1, token 2
    assert page.text("#tooltip") == page.text("#spoken")
    assert numbers(page.text("#spoken"))[-1] == pytest.approx(post[2][1], abs=1e-4)


def test_everything_is_reached_and_done_by_keyboard(page):
    page.run("document.body.focus()")
    seen = []
    while len(seen) < 40:
        page.press(Keys.TAB)
        where = page.run(
            "const e = document.activeElement;"
            "const style = getComputedStyle(e.matches('.modes input') ? e.nextElementSibling : e);"
            "const name = e.id || e.ariaLabel || e.textContent || e.value;"
            "return [name, style.outlineStyle, style.outlineWidth]"
        )
        if where[0] == "api-key" and seen:
            break
        assert where[1:] == ["solid", "3px"], f"{where[0]!r} has no visible focus"
        seen.append(where[0])
        if where[0] == "show-routing":
            break
    wanted = ["api-key", "prompt", "generate", "All gates", "Generate B", "Answer B"]
    assert [name for name in seen if name in wanted] == wanted
    page.run("document.querySelector('#column-b input[value=global]').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert len(page.all("#column-b input[type=range]")) == 3
    page.run("document.querySelector('#prompt').focus()")
    page.press(Keys.CONTROL, "a", Keys.NULL, PROMPT)
    page.run("document.querySelector('#max-tokens').value = 8")
    page.press(Keys.CONTROL, Keys.ENTER)
    page.finished()
    assert page.text("#column-a .state") == "at max tokens"
    assert page.one("#prompt").get_property("value") == PROMPT
    page.run("document.querySelector('#show-routing').focus()")
    page.press(Keys.ENTER)
    page.until(lambda: page.all(".panel.a .sublayer input"))
    page.run("document.querySelector('.panel.a .sublayer input').focus()")
    page.press(Keys.ARROW_RIGHT)
    for panel in "ab":
        assert page.text(f".panel.{panel} .detail h4").startswith("layer 0 mlp, gate")


@pytest.mark.parametrize("mode", ["learned", "global", "layer", "sublayer"])
def test_fits_a_phone(page, mode):
    page.open(f"#a={mode}&b={mode}&p={'a' * 60}&m=4", width=360)
    page.one("#generate").click()
    page.finished()
    page.one("#per-token").click()
    page.show_routing()
    page.one(".values summary").click()
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    wide = page.run(
        "return [...document.querySelectorAll('button, input:not([type=radio]), select, textarea')]"
        ".filter(e => e.getBoundingClientRect().right > 360).map(e => e.outerHTML)"
    )
    assert wide == []


def test_errors_of_the_api_are_shown(page):
    page.fill("#column-b input[type=number]", 1.5)
    page.generate()
    assert "gate 0 is 1.5; allowed" in page.text("#column-b .error")
    assert "(400 invalid_gates)" in page.text("#column-b .error")
    assert page.text("#column-a .state") == "at max tokens"
    assert not page.one("#column-a .error").is_displayed()
    page.generate(max_tokens=500)
    assert "the context is 96 tokens" in page.text("#column-a .error")
    page.show_routing()
    assert "gate 0 is 1.5" in page.text(".panel.b .error")
    page.one("#column-b .tools button").click()  # back to the learned gates
    page.generate()
    assert not page.one("#column-b .error").is_displayed()


def test_texts_are_never_markup(page, browser, start_server, checkpoint):
    page.generate("<img src=x onerror=alert(1)><b>bold</b>")
    page.one("#per-token").click()
    page.show_routing()
    assert "<" in page.text(".panel.a .token-names")
    hostile = page.in_modules(
        """
        const text = "<img src=x onerror=alert(1)><b>bold</b>";
        const column = (ending) => ({
          text: text + ending, answered: true, running: false, outcome: "ended",
          output: element("div"),
        });
        const [a, b, verdict] = [column(text), column(""), element("p")];
        compare(a, b, verdict);
        const map = heatmap({
          name: text, rows: [text], columns: [text], values: [[1]], range: [0, 1], numbers: true,
        });
        const parts = [a.output, element("p", { text }), ...formula(`${text} H_res`), map];
        document.querySelector("main").append(...parts);
        return a.output.textContent;
        """
    )
    assert hostile == "<img src=x onerror=alert(1)><b>bold</b>" * 2
    assert page.all("main img, main b:not(.value b, .title b)") == []


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [("", "", 0), ("ab", "ab", 2), ("ab", "abc", 2), ("a🍎b", "a🍏b", 1), ("x", "y", 0)],
)
def test_where_texts_part_is_counted_in_characters(page, first, second, common):
    script = "return commonLength(...given)"
    assert page.in_modules(script, [first, second]) == common


def test_events_are_read_however_the_network_cuts_them(page):
    sent = ': hello\r\n\r\ndata: {"text": "é🍎"}\r\n\r\nevent: x\ndata:{"text":\ndata: "b"}\n\n'
    script = """
        const bytes = new TextEncoder().encode(given + "data: [DONE]\\n\\n");
        const real = window.fetch;
        window.fetch = async () => new Response(new ReadableStream({
          start(controller) {
            for (const byte of bytes) controller.enqueue(new Uint8Array([byte]));
            controller.close();
          },
        }));
        const events = [];
        for await (const event of stream("v1/completions", {})) events.push(event.text);
        window.fetch = real;
        return events;
    """
    assert page.in_modules(script, sent) == ["é🍎", "b"]


def test_the_address_keeps_the_settings_but_not_the_key(page):
    page.fill("#prompt", "a & b\n#")
    page.fill("#api-key", "secret")
    page.one("#column-a input[value=layer]").click()
    page.fill("#column-a .slider:nth-child(2) input[type=number]", 0.25)
    page.until(lambda: "0.25" in page.run("return location.hash"))
    fragment = page.run("return location.hash")
    assert "secret" not in fragment
    page.open(fragment)
    assert page.one("#prompt").get_property("value") == "a & b\n#"
    assert page.one("#column-a .slider:nth-child(2) input").get_property("value") == "0.25"
    assert page.one("#api-key").get_property("value") == "secret"
    page.open("#a=layer:0.5,x&b=nonsense&m=7")
    assert page.one("#column-a input[value=learned]").is_selected()
    assert page.one("#max-tokens").get_property("value") == "7"


@pytest.fixture(scope="module")
def behaved(browser, start_server, behaved_checkpoint) -> Page:
    return Page(browser, start_server(behaved_checkpoint))


def used(page: Page, column: str) -> list[float]:
    """The gates of the strip below an answer: those of attention, then those of mlp."""
    return numbers(page.label(f"#column-{column} .used svg").partition(":")[2])


def test_behaviours_are_offered_by_name(behaved):
    page = behaved
    page.open()
    offered = [each.text for each in page.all("#column-b .modes label")]
    wanted = ["Learned", "direct", "odd", "worked", "Between"]
    assert offered == [*wanted, "Global", "Per layer", "Per sublayer"]
    page.one("#column-a input[value='behaviour:direct']").click()
    assert "gates from 0 to 0.3 (50 % of all rows)" in page.text("#column-a .controls")
    assert "0.15 everywhere" in page.text("#column-a .controls")
    page.one("#column-b input[value='behaviour:worked']").click()
    assert "a range of gates for each layer; these" in page.text("#column-b .controls")
    page.generate()
    for column, name in (("a", "direct"), ("b", "worked")):
        body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "gates": name}
        answer = httpx.post(f"{page.address}/v1/completions", json=body).json()
        assert page.text(f"#column-{column} .output") == answer["choices"][0]["text"]
        head = page.text(f"#column-{column} .used h4")
        assert head.startswith(f"Gates used (behaviour {name}): ")
    page.show_routing()
    page.until(lambda: "behaviour:worked" in page.run("return decodeURIComponent(location.hash)"))
    page.open(page.run("return location.hash"))
    assert page.one("#column-b input[value='behaviour:worked']").is_selected()
    page.open("#a=behaviour:gone&b=between:direct,gone,0.5")
    assert page.one("#column-a input[value=learned]").is_selected()
    assert page.one("#column-b input[value=learned]").is_selected()
    assert page.complaints() == []


def test_a_slider_between_two_behaviours(behaved):
    page = behaved
    page.open("#a=between:direct,worked,0.25&b=between:odd,direct,1")
    page.generate()
    assert used(page, "a") == pytest.approx([0.325, 0.1875, 0.2375] * 2, abs=6e-4)
    assert used(page, "b") == pytest.approx([0.15] * 6)
    page.run("document.querySelector('#column-a .between input').focus()")
    page.press(*[Keys.ARROW_RIGHT] * 25)
    assert "50 % of the way from direct to worked" in page.text("#column-a .controls")
    page.run(
        "const s = document.querySelectorAll('#column-a .between select')[0]; s.value = 'odd';"
        "s.dispatchEvent(new Event('change'))"
    )
    page.generate()
    attention = [(0.0 + 0.85) / 2, (0.2 + 0.3) / 2, (0.4 + 0.5) / 2]
    mlp = [(0.1 + 0.85) / 2, (0.3 + 0.3) / 2, (1.0 + 0.5) / 2]
    assert used(page, "a") == pytest.approx(attention + mlp, abs=1e-3)
    page.one("#column-b h3 button").click()  # copy from A
    assert "50 % of the way from odd to worked" in page.text("#column-b .controls")
    page.until(lambda: "b=between%3Aodd%2Cworked%2C0.5" in page.run("return location.hash"))
    assert page.complaints() == []


def test_two_behaviours_label_the_ends_and_fit_a_phone(
    browser, start_server, tmp_path, tokenizer, tiny_model
):
    names = {"global": {"gates": [0, 0]}, "x" * 64: {"gates": [1, 1]}}
    size = {"vocab_size": tokenizer.vocab_size, "max_seq_len": 96}
    save_checkpoint(tmp_path / "two", tiny_model(**size, behaviours=names), tokenizer)
    page = Page(browser, start_server(tmp_path / "two"))
    page.open("#a=between&b=behaviour:global", width=360)
    assert page.one("#column-a input[value=learned]").is_selected()  # between what?
    page.one("#column-a input[value=between]").click()
    assert [each.text for each in page.all("#column-a .between .end")] == list(names)
    page.generate()
    assert used(page, "a") == [0.5] * 6
    assert page.text("#column-b .used h4") == "Gates used (behaviour global): 0 everywhere"
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    page.one("#column-b input[value=global]").click()  # the slider for all, not the behaviour
    assert page.all("#column-b .slider")
    assert page.complaints() == []


def test_gates_of_prompt_and_answer_are_shown_apart(browser, start_server, make_policy, checkpoint):
    policy = make_policy(action_space="prompt_and_answer")
    page = Page(browser, start_server(checkpoint, policy=policy))
    page.open("#a=policy")
    page.generate()
    heads = [each.text for each in page.all("#column-a .used h4")]
    assert [head.partition(" (policy): ")[0] for head in heads] == [
        "Gates used for the prompt",
        "Gates used for the answer",
    ]
    assert len(page.all("#column-a .used svg")) == 2
    assert page.complaints() == []


def test_a_plain_model_has_no_gate_controls(browser, start_server, plain_checkpoint):
    page = Page(browser, start_server(plain_checkpoint))
    page.open()
    assert page.one("#column-a .plain-note").is_displayed()
    assert page.all("#column-a .modes input, #column-a .controls *") == []
    assert not page.one("#routing").is_displayed()
    page.generate()
    assert page.text("#parting") == "Both answers are the same."
    assert page.complaints() == []


def test_asks_for_the_key_and_sends_it(browser, start_server, checkpoint):
    page = Page(browser, start_server(checkpoint, keys=ApiKeys(["key-of-a-test"])))
    page.open(wait_for="#notice:not([hidden])")
    assert "Enter the server's API key above" in page.text("#notice")
    page.press("key-of-a-test", Keys.TAB)  # the field has the focus
    page.until(lambda: page.all("#model dd"))
    assert not page.one("#notice").is_displayed()
    page.generate()
    assert page.text("#column-a .output")
    page.show_routing()
    page.run("sessionStorage.clear()")
    assert page.complaints() == []


def test_an_error_in_the_middle_keeps_what_came(browser, start_server, checkpoint):
    page = Page(browser, start_server(checkpoint, fails=True))
    page.open()
    page.fill("#prompt", PROMPT)
    page.one("#column-a .run").click()
    page.until(lambda: page.text("#column-a .state") == "failed")
    assert "the engine failed" in page.text("#column-a .answer .error")
    assert page.text("#column-a .output")
    assert numbers(page.text("#column-a .facts"))[0] > 0
    assert page.complaints() == []
