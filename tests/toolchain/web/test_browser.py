"""The page in a real browser: loads, streams, cancels, folds reasoning away, and says what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import qtool
import qtool_runtime
from support.browser import Page, open_browser
from support.web_server import ISOLATED, serve

READY = "!document.querySelector('#load').disabled"
LOADED = "document.querySelector('#composer').checkVisibility()"
FAILED = "document.querySelector('#error').checkVisibility()"
DEFAULTS = {"temperature": "0", "top-k": "0", "top-p": "1", "max-tokens": "", "seed": "", "thinking": ""}
SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Page]:
    with open_browser(chromium) as page:
        yield page


@pytest.fixture(scope="module")
def root(page_folder: Path) -> Iterator[str]:
    with serve(page_folder) as address:
        yield address


@pytest.fixture(scope="module")
def loaded(chromium: str, root: str) -> Iterator[Page]:
    with open_browser(chromium) as page:
        load(page, root)
        yield page


@pytest.fixture
def page(loaded: Page) -> Page:
    """The page with the model loaded, a new conversation, and the model's own options."""
    loaded.emulate(width=1000, height=700)
    loaded.click("#new")
    for name, value in DEFAULTS.items():
        loaded.evaluate(f"document.querySelector('#{name}').value = {value!r}")
    return loaded


def load(page: Page, address: str) -> None:
    page.open(address)
    page.wait_for(READY)
    page.click("#load")
    page.wait_for(f"{LOADED} || {FAILED}")
    assert page.evaluate(LOADED), page.text("#error")


def ask(page: Page, question: str, timeout: float = 60) -> None:
    """Asks, and waits for the whole answer."""
    count = page.evaluate("document.querySelectorAll('.figures').length")
    page.fill("#prompt", question)
    page.click("#send")
    page.wait_for(f"document.querySelectorAll('.figures').length > {count} || {FAILED}", timeout)
    assert not page.evaluate(FAILED), page.text("#error")


def set_option(page: Page, name: str, value: str) -> None:
    page.evaluate("document.querySelector('#options').open = true")
    page.fill(f"#{name}", value)
    page.evaluate("document.querySelector('#options').open = false")


def last_answer(page: Page) -> dict[str, str]:
    """Returns what the last answer holds, folded or not."""
    answer = page.evaluate(
        "(() => { const last = [...document.querySelectorAll('.assistant')].at(-1);"
        " const text = (selector) => last.querySelector(selector)?.textContent ?? '';"
        " return {reasoning: text('.reasoning p'), text: text('.text'), figures: text('.figures')}; })()"
    )
    return dict(answer)


def test_answers_are_those_of_the_python_runtime(
    page: Page, root: str, python_model: qtool_runtime.Model
) -> None:
    messages: list[dict[str, str]] = []
    for question in ("What is 7 + 5?", "What can you do?"):
        ask(page, question)
        messages.append({"role": "user", "content": question})
        stream = python_model.chat(messages, temperature=0)
        answer = last_answer(page)
        assert answer["text"] == stream.read()
        assert answer["reasoning"] == stream.reasoning != ""
        tokens, rate, first = answer["figures"].split(" · ")
        assert tokens == f"{len(stream.token_ids)} tokens"
        assert rate.endswith(" tokens/s") and float(rate.split()[0]) > 0
        assert first.startswith("first after ")
        messages.append({"role": "assistant", "content": stream.text})
    assert page.text("#status").endswith("tokens/s")
    assert len(page.requests) > 20 and all(url.startswith((root, "data:")) for url in page.requests)
    assert not page.console


def test_reasoning_is_folded_away_and_can_be_opened(page: Page) -> None:
    ask(page, "What is 7 + 5?")
    assert "Thought for" in page.text("#conversation")
    shown = "document.querySelector('.reasoning p').checkVisibility()"
    assert not page.evaluate(shown)
    page.click(".reasoning summary")
    page.wait_for(shown, 5)


def test_reasoning_can_be_switched_off(page: Page, python_model: qtool_runtime.Model) -> None:
    page.evaluate("document.querySelector('#thinking').value = 'off'")
    ask(page, "What is 7 + 5?")
    stream = python_model.chat(
        [{"role": "user", "content": "What is 7 + 5?"}], temperature=0, enable_thinking=False
    )
    assert last_answer(page)["text"] == stream.read()
    assert last_answer(page)["reasoning"] == ""


def test_text_streams(page: Page) -> None:
    page.evaluate(
        "window.lengths = new Set(); new MutationObserver(() => "
        "window.lengths.add(document.querySelector('.assistant .text')?.textContent.length)"
        ").observe(document.querySelector('#conversation'), {childList: true, subtree: true}), true"
    )
    ask(page, "What can you do?")
    assert page.evaluate("window.lengths.size") > 8


def test_stopping_ends_the_answer(page: Page) -> None:
    set_option(page, "temperature", "5")  # at random: such text goes on until the context is full
    set_option(page, "seed", "1")
    page.fill("#prompt", "Tell me something")
    page.click("#send")
    page.wait_for("document.querySelector('#status').textContent")
    assert page.evaluate("document.querySelector('#send').hidden")
    page.click("#stop")
    page.wait_for("document.querySelector('.figures')", 10)
    assert last_answer(page)["figures"].endswith(" · stopped")
    assert page.evaluate("document.querySelector('#stop').hidden")
    page.click("#new")
    assert page.text("#conversation").strip() == ""
    set_option(page, "temperature", "0")
    ask(page, "What is 7 + 5?")
    assert last_answer(page)["text"] == "7 + 5 = 12."


def test_options_start_as_the_models_own(browser: Page, root: str) -> None:
    load(browser, root)
    values = {name: browser.evaluate(f"document.querySelector('#{name}').value") for name in DEFAULTS}
    assert values == DEFAULTS


def test_invalid_options_are_reported(page: Page) -> None:
    set_option(page, "top-p", "7")
    page.fill("#prompt", "Hi")
    page.click("#send")
    page.wait_for(FAILED)
    assert page.text("#error") == "topP is 7; valid: above 0, up to 1"
    assert page.text("#conversation").strip() == ""
    assert page.evaluate("document.querySelector('#prompt').value") == "Hi"
    set_option(page, "top-p", "1")
    set_option(page, "max-tokens", "3")
    ask(page, "Hi")
    assert not page.evaluate(FAILED)
    assert last_answer(page)["figures"].startswith("3 tokens")
    assert last_answer(page)["figures"].endswith("reached the most tokens")


def test_progress_of_the_download_is_shown(browser: Page, page_folder: Path) -> None:
    weights = {"/model/model.onnx.data": (page_folder / "model" / "model.onnx.data").read_bytes()}
    with serve(page_folder, instead=weights, pause=0.05) as address:
        browser.open(address)
        browser.wait_for(READY)
        assert browser.text("#load") == "Load the model (1.5 MB)"
        browser.evaluate(
            "window.shown = new Set(); new MutationObserver(() => "
            "window.shown.add(document.querySelector('#progress-text').textContent)"
            ").observe(document.querySelector('#progress-text'), {childList: true}), true"
        )
        browser.click("#load")
        browser.wait_for(LOADED)
        shown = browser.evaluate("[...window.shown]")
    steps = [text for text in shown if text.endswith(" of 1.5 MB")]
    assert len(steps) > 4 and shown[-1] == "Preparing the model…"
    assert steps == sorted(steps)


def test_next_visit_downloads_nothing_large(browser: Page, page_folder: Path) -> None:
    sent: dict[str, bytes | None] = {}
    with serve(page_folder, headers={"Cache-Control": "no-store"}, instead=sent) as address:
        load(browser, address)
        sent |= {"/model/model.onnx.data": None, "/model/tokenizer.json": None}  # no longer on the server
        load(browser, address)
        ask(browser, "What is 7 + 5?")
        assert last_answer(browser)["text"] == "7 + 5 = 12."
        browser.evaluate(
            "caches.open('qtool-artifacts').then(async (cache) => {"
            " const [key] = (await cache.keys()).filter(({url}) => url.includes('model.onnx.data'));"
            " await cache.put(key, new Response('altered')); })"
        )
        del sent["/model/tokenizer.json"]
        browser.open(address)
        browser.wait_for(READY)
        browser.click("#load")
        browser.wait_for(FAILED)  # altered there, and not on the server
        assert "model.onnx.data cannot be loaded" in browser.text("#error-message")
        sent.clear()
        load(browser, address)


def test_isolated_page_uses_threads(browser: Page, page_folder: Path) -> None:
    with serve(page_folder, headers=ISOLATED) as address:
        load(browser, address)
        assert browser.evaluate("crossOriginIsolated")
        count = min(browser.evaluate("navigator.hardwareConcurrency"), 8)
        assert f"WebAssembly, {count} thread" in browser.text("#facts")
        ask(browser, "What is 7 + 5?")
        assert last_answer(browser)["text"] == "7 + 5 = 12."


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/model/model.onnx.data", None, "model.onnx.data cannot be loaded: the server answered 404"),
        ("/model/model.onnx", b"x" * 39096, "model.onnx is damaged: "),
        ("/model/tokenizer.json", b"{}", "tokenizer.json is damaged: the download ended after 2 of"),
        ("/qtool/session.js", None, "the model's worker failed"),
        ("/lib/onnxruntime-web/ort.wasm.js", None, "onnxruntime-web (ort.wasm.js) cannot be loaded"),
        (
            "/lib/onnxruntime-web/ort-wasm-simd-threaded.wasm",
            None,
            "onnxruntime-web 1.30.0 cannot open the model",
        ),
    ],
)
def test_what_fails_in_loading_is_shown(
    browser: Page, page_folder: Path, path: str, content: bytes | None, message: str
) -> None:
    if path == "/model/model.onnx":
        size = (page_folder / "model" / "model.onnx").stat().st_size
        content = b"x" * size
    with serve(page_folder, instead={path: content}) as address:
        browser.open(address)
        browser.wait_for(READY)
        browser.click("#load")
        browser.wait_for(FAILED)
    assert message in browser.text("#error-message")
    assert browser.text("#error-hint")
    assert browser.evaluate("document.querySelector('#load').checkVisibility()")  # to try again


def test_wrong_artifact_is_reported_before_anything_is_loaded(
    browser: Page, page_folder: Path, tmp_path: Path
) -> None:
    other = qtool.build(target="x64-int4", output=tmp_path / "other").path
    manifest = (other / "manifest.json").read_bytes()
    with serve(page_folder, instead={"/model/manifest.json": manifest}) as address:
        browser.open(address)
        browser.wait_for(FAILED)
    assert "built for x64-int4, which a browser cannot run" in browser.text("#error-message")
    assert "--target web-int4" in browser.text("#error-hint")
    assert browser.evaluate("document.querySelector('#load').disabled")


def test_missing_webgpu_is_an_error_only_where_it_is_asked_for(browser: Page, root: str) -> None:
    browser.open(f"{root}?provider=webgpu")
    browser.wait_for(READY)
    browser.click("#load")
    browser.wait_for(FAILED)
    assert browser.text("#error-message") == "this browser gives no WebGPU adapter"


def test_page_that_is_not_secure_says_so(chromium: str, root: str) -> None:
    """Served under a name other than localhost, without https, the browser cannot check files."""
    with open_browser(chromium, "--host-resolver-rules=MAP device.example 127.0.0.1") as page:
        page.open(root.replace("localhost", "device.example"))
        page.wait_for(FAILED)
        assert "this page cannot check the files it loads" in page.text("#error-message")
        assert page.text("#error-hint") == "Serve the folder over https, or open it as http://localhost."


def test_page_fits_small_screens_and_everything_has_a_name(page: Page) -> None:
    ask(page, "Turn on the kitchen light")
    page.evaluate("document.querySelector('#options').open = true")
    for width in (320, 1000):
        page.emulate(width=width, height=640, dark=width == 320)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    named = 0
    for node in page.accessibility_tree():
        if node["role"] in ("button", "textbox", "spinbutton", "combobox", "progressbar", "log"):
            assert node["name"], node
            named += 1
    assert named > 8


@pytest.mark.slow
def test_webgpu_gives_the_same_answer(chromium: str, root: str, python_model: qtool_runtime.Model) -> None:
    """On a GPU in software (SwiftShader), which says nothing about speed."""
    with open_browser(chromium, *SOFTWARE_GPU) as page:
        page.open(root)
        assert page.evaluate("navigator.gpu?.requestAdapter().then((adapter) => Boolean(adapter))")
        load(page, f"{root}?provider=webgpu")
        assert "WebGPU" in page.text("#facts")
        set_option(page, "max-tokens", "8")
        ask(page, "What is 7 + 5?", timeout=240)
        stream = python_model.chat(
            [{"role": "user", "content": "What is 7 + 5?"}], temperature=0, max_tokens=8
        )
        stream.read()
        answer = last_answer(page)
        assert (answer["reasoning"], answer["text"]) == (stream.reasoning, stream.text)
