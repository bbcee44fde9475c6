"""The console in a real Chromium, on real servers.

The variable CONSOLE_PICTURES=DIRECTORY writes the pictures of the documentation to that directory.
"""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from export.card import model_card
from tests.patience import DEADLINE_S
from tests.serve.admin.conftest import Operator
from tests.serve.inference.test_reload import replace_with
from tests.tureen.bundle.test_gallery import bundle_with, content
from tureen.bundle.bundle import MANIFEST, load_bundle, read_manifest
from tureen.bundle.examples import EXAMPLES
from tureen.pictures.ship import drawn_ship

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PHONE = {"width": 390, "height": 844}

expect.set_options(timeout=1000 * DEADLINE_S)

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: install Debian's package chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page. The test fails for any message on the console, any error and any request to another server."""
    with contextlib.ExitStack() as stack:
        failures = []

        def open_page(url, refused=(), **options):
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(1000 * DEADLINE_S)
            # The browser logs an error response on the console, too. refused: the statuses that the test expects.
            page.on(
                "console",
                lambda message: any(str(code) in message.text for code in refused) or failures.append(message.text),
            )
            page.on("pageerror", lambda error: failures.append(str(error)))
            page.on("request", lambda r: r.url.startswith((url, "blob:", "data:")) or failures.append(r.url))
            page.goto(f"{url}/ui")
            page.wait_for_selector("body[data-loaded]")
            return page

        yield open_page
        assert failures == []


@pytest.fixture
def image_file(tmp_path):
    pixels = load_bundle(EXAMPLES / "cifar10").golden.pixels[0]
    Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def operated(start_server, tmp_path):
    server = start_server("--state-dir", tmp_path / "state")
    server.wait_until_ready()
    return server, Operator(server, tmp_path / "state")


def is_accessible(page):
    """Returns whether axe-core finds no serious and no critical violation of WCAG 2 A and AA."""
    # Content-Security-Policy does not apply to scripts that run through the debugger's protocol.
    violations = page.evaluate(f"async () => {{ {AXE}; return (await axe.run()).violations }}")
    return [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ] == []


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def picture(page, name, *, full_page=True):
    if directory := os.environ.get("CONSOLE_PICTURES"):
        shot = Image.open(io.BytesIO(page.screenshot(full_page=full_page)))
        shot.convert("P", palette=Image.Palette.ADAPTIVE).save(Path(directory) / f"{name}.png", optimize=True)


@pytest.fixture
def with_gallery(start_server, tmp_path):
    """A server of the example with a gallery: the drawing of a ship, which the model reads rightly, and noisy ones."""
    drawing = np.asarray(drawn_ship().resize((32, 32), Image.Resampling.BOX))
    noise = np.random.default_rng(0).choice([-4, 4], (2, *drawing.shape))
    versions = [drawing, *np.clip(drawing + noise, 0, 255).astype(np.uint8)]
    drawn, clean, both = (base64.b64encode(png_of(pixels)).decode() for pixels in versions)
    ship = {"title": "a ship", "label": "ship", "drawn": drawn, "clean": clean, "both": both}
    wrong = {**ship, "title": "no truck", "label": "truck"}  # the model reads a ship
    gallery = content(signs=3, clean_attacks_failed=1, both_attacks_failed=2, pictures=[ship, wrong])
    server = start_server(bundle=bundle_with(tmp_path / "with-gallery", json.dumps(gallery).encode()))
    server.wait_until_ready()
    return server, drawing, versions[1]


def png_of(pixels):
    Image.fromarray(pixels).save(written := io.BytesIO(), "PNG")
    return written.getvalue()


def test_a_picture_of_the_gallery_is_seen_before_and_after_each_attack(with_gallery, open_page):
    server, drawing, attacked = with_gallery
    page = open_page(f"http://127.0.0.1:{server.port}", viewport={"width": 1280, "height": 900})
    pictures, versions = page.locator("#signs button"), page.locator("#versions button")
    expect(pictures).to_have_count(2)
    expect(page.locator("#gallery-about")).to_contain_text(
        "Drawings tried: 3. Drawings attacked for the clean token: 2, failed attacks: 1. Of the 2 pictures, the clean "
        "mode is wrong and the robust mode right on 1. The attack on both tokens failed on 2."
    )
    # The first picture is read without a click.
    expect(page.locator("#gallery-sentence")).to_contain_text("The true label is ship.")
    assert [button.get_attribute("aria-pressed") for button in pictures.all()] == ["true", "false"]
    pictures.nth(1).click()
    expect(page.locator("#gallery-sentence")).to_contain_text("The true label is truck.")

    # One click: the attacked picture, its change, and at which strengths the model is right.
    pictures.nth(0).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#change-figure")).to_be_visible()
    expect(page.locator("#change-caption")).to_contain_text("31 times as large")
    expect(page.locator("#gallery-sentence")).to_have_text(
        "The true label is ship. The model is right at every strength."
    )
    shown = page.evaluate(
        "[...document.querySelector('#change-picture').getContext('2d').getImageData(0, 0, 32, 32).data]"
    )
    change = 128 + 31 * (attacked.astype(int) - drawing)
    assert np.array_equal(np.reshape(shown, (32, 32, 4))[..., :3], np.clip(change, 0, 255))
    assert [button.get_attribute("aria-pressed") for button in versions.all()] == ["false", "true", "false"]
    assert is_accessible(page)
    assert fits(page)

    versions.nth(0).click()
    expect(page.locator("#change-figure")).to_be_hidden()
    expect(page.locator("#gallery-sentence")).to_contain_text("The true label is ship.")
    versions.nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#change-figure")).to_be_visible()
    assert page.evaluate("document.activeElement.value") == "both"  # the keyboard's place is kept
    assert [button.get_attribute("aria-pressed") for button in pictures.all()] == ["true", "false"]

    pictures.nth(1).click()
    expect(page.locator("#gallery-sentence")).to_have_text(
        "The true label is truck. The model is wrong at every strength: it reads ship."
    )

    # Another image takes the place of the picture.
    page.set_input_files("#file", {"name": "own.png", "mimeType": "image/png", "buffer": png_of(drawing)})
    expect(page.locator("#clean-label")).to_have_text("ship")
    for hidden in ("#versions", "#change-figure"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator("#gallery-sentence")).to_have_text("")
    assert [button.get_attribute("aria-pressed") for button in pictures.all()] == ["false", "false"]


def test_a_picture_of_a_bundle_that_is_replaced_meanwhile_is_no_longer_chosen(with_gallery, open_page, tmp_path):
    server, *_ = with_gallery
    page = open_page(f"http://127.0.0.1:{server.port}")
    page.locator("#signs button").first.click()
    expect(page.locator("#gallery-sentence")).to_contain_text("The true label is ship.")
    replace_with(tmp_path / "with-gallery", version="following")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == 1, "reloaded")
    page.locator("#versions button").nth(2).click()  # the response shows the page that the bundle is another one
    expect(page.locator("#model")).to_have_text("cifar10 following")
    expect(page.locator("#image")).to_be_visible()
    expect(page.locator("#versions")).to_be_hidden()
    expect(page.locator("#gallery-sentence")).to_have_text("")
    page.locator("#signs button").first.click()
    expect(page.locator("#gallery-sentence")).to_contain_text("The true label is ship.")
    expect(page.locator("#versions")).to_be_visible()


def test_on_a_phone_the_readings_are_in_view_on_load_and_after_each_tap(start_server, open_page):
    server = start_server(bundle=EXAMPLES / "signs")
    server.wait_until_ready()
    page = open_page(f"http://127.0.0.1:{server.port}", viewport=PHONE)
    expect(page.locator("#modes")).to_be_in_viewport(ratio=1)
    for button in (*page.locator("#signs button").all(), *page.locator("#versions button").all()):
        with page.expect_response("**/sweep*"):
            button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#gallery-sentence")).not_to_be_empty()
        expect(page.locator("#modes")).to_be_in_viewport(ratio=1)


def test_if_clients_may_not_choose_no_picture_is_read(start_server, open_page, tmp_path):
    server = start_server("--state-dir", tmp_path / "state", bundle=EXAMPLES / "signs")
    server.wait_until_ready()
    Operator(server, tmp_path / "state").change(clients_may_choose=False)
    page = open_page(f"http://127.0.0.1:{server.port}")
    expect(page.locator("#accuracy tbody tr")).to_have_count(5)
    assert page.is_hidden("#try")
    assert page.is_hidden("#error")


def test_the_gallery_fits_a_phone_in_the_dark(with_gallery, open_page):
    page = open_page(f"http://127.0.0.1:{with_gallery[0].port}", viewport=PHONE, color_scheme="dark")
    page.locator("#signs button").first.click()
    expect(page.locator("#change-figure")).to_be_visible()
    assert fits(page)
    assert is_accessible(page)
    if directory := os.environ.get("CONSOLE_PICTURES"):
        page.screenshot(path=Path(directory) / "gallery-phone.png", full_page=True)


def test_the_first_attacked_sign_of_the_example_is_read_rightly_in_robust_mode(start_server, open_page):
    server = start_server(bundle=EXAMPLES / "signs")
    server.wait_until_ready()
    page = open_page(f"http://127.0.0.1:{server.port}", viewport={"width": 1280, "height": 940})
    expect(page.locator("#gallery-sentence")).to_contain_text("The true label is speed limit 30.")
    expect(page.locator("#robust-label")).to_have_text("speed limit 30")
    expect(page.locator("#robust-label")).to_have_attribute("title", "01-speed-limit-30")
    expect(page.locator("#clean-label")).to_have_text("speed limit 80")
    expect(page.locator("#change-figure")).to_be_visible()
    texts = page.evaluate("() => [...document.querySelectorAll('#curve text')].map((node) => node.textContent)")
    assert [text for text in texts if "…" in text] == []
    assert is_accessible(page)
    picture(page, "console", full_page=False)


def test_a_bundle_without_a_gallery_shows_none(operated, open_page):
    page = open_page(f"http://127.0.0.1:{operated[0].port}")
    expect(page.locator("#try")).to_be_visible()
    expect(page.locator("#gallery")).to_be_hidden()


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("no_overtaking_by_trucks_and_long_vehicles_{}", "no overtaking by trucks and long vehicles {}"),
        ("0{}-t-shirt", "t shirt"),
        ("{}_t-shirt", "t shirt"),
        ("T-shirt-{}", "T-shirt-{}"),
        ("T-shirt, size_{}", "T-shirt, size_{}"),
    ],
)
def test_a_label_for_programs_is_shown_as_words_and_is_not_cut_beside_its_curve(
    start_server, open_page, example_bundle, image_file, label, shown
):
    manifest = json.loads((example_bundle / MANIFEST).read_text())
    labels = [label.format(n) for n in range(len(manifest["labels"]))]
    (example_bundle / MANIFEST).write_text(json.dumps({**manifest, "labels": labels}))
    server = start_server(bundle=example_bundle)
    server.wait_until_ready()
    page = open_page(f"http://127.0.0.1:{server.port}", viewport={"width": 1280, "height": 900})
    page.set_input_files("#file", image_file)
    expect(page.locator("#bars .bar")).to_have_count(5)
    words = page.locator("#bars .bar span:first-child").all_inner_texts()
    assert set(words) <= {shown.format(n) for n in range(len(labels))}
    assert set(words) <= set(page.locator("#curve text").all_text_contents())
    assert page.get_attribute("#clean-label", "title") in labels


def test_an_image_is_seen_at_every_strength_from_one_sweep(operated, open_page, image_file):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}")
    sweeps = []
    page.on("request", lambda request: "/sweep" in request.url and sweeps.append(request.url))
    page.set_input_files("#file", image_file)
    expect(page.locator("#bars .bar")).to_have_count(5)
    first = page.inner_text("#bars")
    assert (page.inner_text("#strength-value"), page.inner_text("#beta-value")) == ("0.00", "0.00")
    page.focus("#strength")
    page.keyboard.press("End")
    assert (page.inner_text("#strength-value"), page.inner_text("#beta-value")) == ("1.00", "1.00")
    assert page.inner_text("#bars") != first
    assert page.get_attribute("#marker", "x1") == page.locator("#curve .axis").first.get_attribute("x2")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#strength-value") == "0.95"
    assert len(sweeps) == 1
    rows = load_bundle(EXAMPLES / "cifar10").manifest.accuracy
    for key, row in (("Home", rows[0]), ("End", rows[-1])):
        page.keyboard.press(key)
        measured = page.inner_text("#measured")
        assert f"{100 * row.clean.value:.1f} %" in measured
        assert f"{100 * row.robust.value:.1f} %" in measured
        assert page.inner_text("#measured-title") == "Measured accuracy at this strength"
        assert page.inner_text("#measured-note").endswith("500 images.")
        label, share = page.inner_text("#bars .bar >> nth=0").split("\n")
        mode = "clean" if key == "Home" else "robust"
        assert (page.inner_text(f"#{mode}-label"), page.inner_text(f"#{mode}-share")) == (label, share)
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#measured-title") == "Estimated accuracy at this strength"
    assert page.inner_text("#measured").count("≈ ") == 2
    assert "estimated on the line between the measured β 0.75 and 1" in page.inner_text("#measured-note")
    assert page.locator("#curve polyline").count() == 5
    assert page.inner_text("#answer-changes")
    assert page.locator("#accuracy tbody tr").count() == len(rows)
    assert f"{100 * rows[0].clean.value:.1f} %" in page.inner_text("#accuracy")
    assert "empirical" in page.inner_text("#measurement")
    assert is_accessible(page)
    picture(page, "console-cifar10")


def test_the_table_is_rounded_as_the_model_card(start_server, open_page, example_bundle):
    """Also a tie such as 94.25 %, which JavaScript rounds to 94.3 and Python to 94.2."""
    manifest = json.loads((example_bundle / MANIFEST).read_text())
    values = [0.9425, 0.9475, 0.0325, 0.44449, 0.6666]
    for row, value in zip(manifest["accuracy"], values, strict=True):
        row["clean"] = row["robust"] = {"value": value, "low": value, "high": value}
    (example_bundle / MANIFEST).write_text(json.dumps(manifest))
    server = start_server(bundle=example_bundle)
    server.wait_until_ready()
    page = open_page(f"http://127.0.0.1:{server.port}")
    card = model_card(read_manifest(example_bundle))
    for line, value in zip(page.locator("#accuracy tbody tr").all(), values, strict=True):
        clean = line.locator("td").nth(1).inner_text().replace("\u2060", "").replace(" %", "")
        assert clean == f"{100 * value:.1f} ({100 * value:.1f}–{100 * value:.1f})"
        assert f"| {clean} | {clean} |" in card


def test_it_fits_a_phone_and_the_dark(operated, open_page, image_file):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}", viewport=PHONE, color_scheme="dark")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.set_input_files("#file", image_file)
    expect(page.locator("#bars .bar")).to_have_count(5)
    assert fits(page)
    assert is_accessible(page)
    picture(page, "console-phone")
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "light"
    assert is_accessible(page)


def test_a_file_that_is_no_image_is_refused_and_the_next_one_is_accepted(operated, open_page, image_file, tmp_path):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}", refused=(415,))
    (tmp_path / "words.txt").write_text("these are words")
    page.set_input_files("#file", tmp_path / "words.txt")
    expect(page.locator("#error")).to_have_text("words.txt: the data is not a JPEG, PNG or WebP image")
    page.set_input_files("#file", image_file)
    expect(page.locator("#bars .bar")).to_have_count(5)
    assert page.is_hidden("#error")


def test_a_bad_file_clears_the_last_image_and_result_and_is_named(operated, open_page, image_file, tmp_path):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}", refused=(400, 413, 415))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.png").write_text("these are words")
    (tmp_path / "cut.png").write_bytes(image_file.read_bytes()[:-2000])
    Image.new("L", (6000, 6000)).save(tmp_path / "large.png")
    for name, words in (
        ("empty.png", "the image is empty"),
        ("words.png", "the data is not a JPEG, PNG or WebP image"),
        ("cut.png", "it is damaged or cut short"),
        ("large.png", "more than 25,000,000 pixels"),
    ):
        page.set_input_files("#file", image_file)
        expect(page.locator("#bars")).to_be_visible()
        assert page.is_hidden("#error")
        page.set_input_files("#file", tmp_path / name)
        expect(page.locator("#error")).to_contain_text(f"{name}: ")
        expect(page.locator("#error")).to_contain_text(words)
        assert "Content-Type" not in page.inner_text("#error")
        for part in ("#image", "#bars", "#figure"):
            assert page.is_hidden(part)


def test_the_result_of_an_earlier_file_is_never_shown_with_a_later_one(operated, open_page, image_file, tmp_path):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}", refused=(415,))
    held = []
    page.route("**/sweep*", lambda route: route.continue_() if held else held.append(route))
    page.set_input_files("#file", image_file)
    page.wait_for_function("() => document.getElementById('result').hidden")
    while not held:
        page.wait_for_timeout(10)
    (tmp_path / "words.txt").write_text("these are words")
    page.set_input_files("#file", tmp_path / "words.txt")
    expect(page.locator("#error")).to_contain_text("words.txt: ")
    with page.expect_response("**/sweep*") as response:
        held[0].continue_()
    response.value.finished()
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert page.is_hidden("#result")
    assert "words.txt: " in page.inner_text("#error")


def test_on_a_phone_no_text_of_the_curve_is_cut_or_overlaps_and_no_table_is_cut(operated, open_page, image_file):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}", viewport=PHONE)
    page.set_input_files("#file", image_file)
    expect(page.locator("#bars .bar")).to_have_count(5)
    for width in (390, 320, 1280):  # turns and resizes the phone while the page shows the curve
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function(
            "() => { const curve = document.getElementById('curve');"
            " return curve.viewBox.baseVal.width === curve.clientWidth }"
        )
        around, *boxes = page.evaluate(
            "() => [...document.querySelectorAll('#curve, #curve text')]"
            ".map((node) => node.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) == (14 if width > 1000 else 12)  # 3 shares, 5 or 3 β, the axis's name, 5 labels
        for n, box in enumerate(boxes):
            assert around["left"] <= box["left"] < box["right"] <= around["right"]
            assert around["top"] <= box["top"] < box["bottom"] <= around["bottom"]
            for other in boxes[:n]:
                is_apart = (
                    box["left"] >= other["right"]
                    or box["right"] <= other["left"]
                    or box["top"] >= other["bottom"] - 3  # a box has some space above capitals and below the line
                    or box["bottom"] - 3 <= other["top"]
                )
                assert is_apart, (box, other)
        assert fits(page)
        accuracy = page.locator(".scroll", has=page.locator("#accuracy"))
        # A page narrower than a phone scrolls the table.
        assert width < 390 or accuracy.evaluate("(box) => box.scrollWidth <= box.clientWidth")


def test_an_operator_changes_the_default_and_rolls_it_back(operated, open_page, image_file):
    server, operator = operated
    for beta in (0, 0.3, 0.7, 0.7, 1):
        assert server.ask("POST", f"/classify?beta={beta}", image_file.read_bytes())[0] == 200
    page = open_page(operator.url, refused=(401,))
    page.on("dialog", lambda dialog: dialog.accept("it is over" if dialog.type == "prompt" else None))
    assert page.is_hidden("#try")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#error")).to_contain_text("bearer token is missing or wrong")
    page.fill("#token", operator.token)
    page.keyboard.press("Enter")
    expect(page.locator("#active")).to_contain_text("β 0 (bundle), revision 0")
    assert operator.token not in page.url
    expect(page.locator("#controls")).to_be_visible()
    page.focus("#dial")
    page.keyboard.press("End")
    expect(page.locator("#expected")).to_contain_text("Then: clean")
    rows = load_bundle(EXAMPLES / "cifar10").manifest.accuracy
    shares = [100 * row.robust.value for row in (rows[0], rows[-1])]
    expect(page.locator("#comparison tbody tr").nth(1)).to_have_text(
        f"Attacked images{shares[0]:.1f} %{shares[1]:.1f} %+{shares[1] - shares[0]:.1f} points"
    )
    page.fill("#reason", "attack on uploads")
    page.select_option("#ttl", "3600")
    page.click("#set")
    expect(page.locator("#active")).to_contain_text("β 1 (operator), revision 1")
    expect(page.locator("#pending")).to_contain_text("revert to the server's default β")
    expect(page.locator("#history tbody tr")).to_have_count(1)
    expect(page.locator("#history")).to_contain_text("attack on uploads")
    assert operator.ask("GET", "/admin/beta")[2]["default_beta"] == 1
    expect(page.locator("#traffic .bar")).to_have_count(4)  # β 0, below 0.5, below 0.75 and 1
    expect(page.locator("#traffic")).to_contain_text("below 0.16 (β 0.5)")
    expect(page.locator("#live")).to_contain_text("p50 within")
    operator.change(beta_min=0.2, policies={"uploads": 0.9}, canary={"beta": 0.9, "share": 0.1})
    expect(page.locator("#live")).to_contain_text("may choose β 0.2 to 1; policy uploads: β 0.9; canary: 10 % at β 0.9")
    assert is_accessible(page)
    picture(page, "console-operator")
    page.click("#pending button")
    expect(page.locator("#history tbody tr")).to_have_count(3)
    page.click("#history tbody tr:nth-child(3) button")
    expect(page.locator("#active")).to_contain_text("revision 4")
    changed = operator.ask("GET", "/admin/beta")[2]["changed"]
    assert (changed["action"], changed["reason"]) == ("rollback to 1", "it is over")
    expect(page.locator("#history")).to_contain_text("policy uploads none → 0.9")


def test_both_sliders_move_in_strength_and_show_the_beta_of_the_model(
    start_server, open_page, example_bundle, image_file, tmp_path
):
    curve = {"betas": [0, 0.6, 1], "strengths": [0, 0.5, 1], "n": 9}
    manifest = json.loads((example_bundle / MANIFEST).read_text())
    (example_bundle / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 3, "strength": curve}))
    server = start_server("--state-dir", tmp_path / "state", bundle=example_bundle)
    server.wait_until_ready()
    operator = Operator(server, tmp_path / "state")
    operator.change(default_strength=0.5, beta_min=0.5)
    page = open_page(f"http://127.0.0.1:{server.port}")
    page.set_input_files("#file", image_file)
    expect(page.locator("#bars .bar")).to_have_count(5)
    assert (page.inner_text("#strength-value"), page.inner_text("#beta-value")) == ("0.50", "0.60")
    page.focus("#strength")
    page.keyboard.press("Home")
    # The lowest strength whose β is not below 0.5, the bound.
    assert (page.inner_text("#strength-value"), page.inner_text("#beta-value")) == ("0.45", "0.54")
    page = open_page(operator.url)
    page.fill("#token", operator.token)
    page.keyboard.press("Enter")
    expect(page.locator("#active")).to_contain_text("strength 0.5, β 0.6 (operator), revision 1")
    expect(page.locator("#controls")).to_be_visible()
    page.focus("#dial")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#dial-value")).to_have_text("0.75 (β 0.80)")
    page.on("dialog", lambda dialog: dialog.accept())
    page.fill("#reason", "more")
    page.click("#set")
    expect(page.locator("#active")).to_contain_text("strength 0.75, β 0.8 (operator), revision 2")


def test_an_operator_sees_the_model_that_serves_after_a_reload(start_server, open_page, example_bundle, tmp_path):
    server = start_server("--state-dir", tmp_path / "state", bundle=example_bundle)
    server.wait_until_ready()
    operator = Operator(server, tmp_path / "state")
    page = open_page(operator.url)
    page.fill("#token", operator.token)
    page.keyboard.press("Enter")
    expect(page.locator("#controls")).to_be_visible()
    manifest = json.loads((example_bundle / MANIFEST).read_text())
    rows = manifest["accuracy"]
    doubt = {"name": "doubt", "beta": 0, "n": 9, "has_passed": False, "figures": {}, "sentence": "Beware."}
    evaluation = {**manifest["evaluation"], "checks": [doubt]}
    promised = [{**row, "clean": {"value": 0.123, "low": 0.1, "high": 0.2}} for row in rows]
    replace_with(example_bundle, version="following", accuracy=promised, evaluation=evaluation)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="ok"}') == 1, "reloaded")
    expect(page.locator("#model")).to_have_text("cifar10 following")
    expect(page.locator("#expected")).to_contain_text("Now: clean 12.3 %")
    expect(page.locator("#accuracy")).to_contain_text("12.3 %")
    for place in ("#accuracy", "#expected", "#comparison"):
        expect(page.locator(place)).to_contain_text("! too high: check failed (doubt)")


def test_an_operator_with_a_stale_revision_gets_an_error_and_changes_nothing(operated, open_page):
    _, operator = operated
    page = open_page(operator.url, refused=(412,))
    page.fill("#token", operator.token)
    page.keyboard.press("Enter")
    expect(page.locator("#active")).to_contain_text("revision 0")
    page.fill("#reason", "too late")

    def accept(dialog):
        operator.change(default_beta=0.3)  # another operator, while the dialog is open
        dialog.accept()

    page.on("dialog", accept)
    page.click("#set")
    expect(page.locator("#error")).to_contain_text("Another operator changed the settings first")
    expect(page.locator("#active")).to_contain_text("β 0.3 (operator), revision 1")


def test_a_planted_fault_of_accessibility_is_found(operated, open_page):
    server, _ = operated
    page = open_page(f"http://127.0.0.1:{server.port}")
    assert is_accessible(page)
    page.evaluate("document.getElementById('theme').textContent = ''")
    assert not is_accessible(page)


def test_the_page_may_load_and_send_nothing_elsewhere(operated):
    server, _ = operated
    for path in ("/ui", "/ui/static/console.js", "/ui/static/console.css"):
        status, head, _ = server.ask("GET", path)
        assert status == 200
        assert "default-src 'none'" in head["Content-Security-Policy"]
    assert server.ask("GET", "/ui/static/..%2froutes.py")[0] == 404
