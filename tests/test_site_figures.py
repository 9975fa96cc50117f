"""The interactive figures live on the static page, with no kernel."""

import pytest

FIGURES = {
    "notebooks/01-why-scale-matters.html": "Learning rate",
    "notebooks/02-forward.html": "γ",
    "notebooks/06-train-and-inference.html": "momentum",
    "notebooks/14-learning-rates.html": "learning rate",
    "notebooks/19-scale-invariance.html": "learning rate",
    "notebooks/16-depth.html": "batch size",
    "notebooks/22-small-batches.html": "batch size",
    "notebooks/23-train-test-gap.html": "values a channel",
}
names = pytest.mark.parametrize("name", FIGURES)


@names
def test_every_control_answers_the_keyboard(page, site, name):
    page.goto(site + name)
    figure = page.locator(".live-figure").first
    figure.wait_for()
    sliders = figure.locator("input[type=range]")
    assert sliders.count() >= 3
    for i in range(sliders.count()):
        slider = sliders.nth(i)
        before, start = figure.inner_text(), slider.input_value()
        slider.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft",
                    "ArrowLeft"):
            page.keyboard.press(key)
        assert slider.input_value() != start
        assert figure.inner_text() != before
    for button in figure.locator("button").all():
        button.focus()
        page.keyboard.press("Enter")
    assert "NaN" not in figure.inner_text()


@names
def test_a_slider_follows_the_mouse_and_the_figure_the_slider(
        page, site, name):
    page.goto(site + name)
    figure = page.locator(".live-figure").first
    figure.wait_for()
    slider = figure.locator("input[type=range]").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"],
                     box["y"] + box["height"] / 2)
    low = float(slider.input_value())
    before = figure.locator("svg").first.inner_html()
    page.mouse.click(box["x"] + 0.9 * box["width"],
                     box["y"] + box["height"] / 2)
    assert float(slider.input_value()) > low
    assert figure.locator("svg").first.inner_html() != before


@names
def test_every_control_has_a_name(page, site, name):
    page.goto(site + name)
    figure = page.locator(".live-figure").first
    figure.wait_for()
    assert FIGURES[name] in figure.inner_text()
    unnamed = figure.evaluate("""f => [...f.querySelectorAll(
      'input, select, button, [role=slider]')].filter(e =>
      !(e.getAttribute('aria-label') || e.textContent.trim()
        || e.labels?.length || e.getAttribute('aria-labelledby')))
      .map(e => e.outerHTML)""")
    assert not unnamed


@names
def test_the_still_picture_stands_in_without_javascript(browser, site, name):
    for javascript in (True, False):
        context = browser.new_context(java_script_enabled=javascript)
        page = context.new_page()
        page.goto(site + name)
        if javascript:
            page.locator(".live-figure").first.wait_for()
        still = page.locator(".cell.tag_still img").first
        assert still.is_visible() is not javascript
        context.close()


def test_a_point_is_dragged_by_mouse_and_moved_by_key(page, site):
    page.goto(site + "notebooks/02-forward.html")
    figure = page.locator(".live-figure").first
    figure.wait_for()
    point = figure.locator("[role=slider]").first
    point.scroll_into_view_if_needed()
    value = float(point.get_attribute("aria-valuenow"))
    point.focus()
    page.keyboard.press("ArrowRight")
    moved = float(figure.locator("[role=slider]").first.get_attribute(
        "aria-valuenow"))
    assert moved > value
    text, box = figure.inner_text(), point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert float(figure.locator("[role=slider]").first.get_attribute(
        "aria-valuenow")) > moved
    assert figure.inner_text() != text
