"""No page breaks a WCAG A or AA rule that axe can see."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tools.browser import pages

RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"],
    # The theme's icon buttons carry a tooltip that differs from the icon's
    # hidden text.
    "rules": {"label-content-name-mismatch": {"enabled": False}},
}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", pages())
def test_axe(page, site, name, scheme, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(site + name)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(400)
    # What KaTeX draws is hidden from assistive technology, which reads the
    # MathML beside it; leaving it out makes this test ten times faster.
    found = Axe().run(page, context={"exclude": [[".katex-html"]]},
                      options=RULES).response["violations"]
    assert not found, "\n".join(
        f"{v['id']} ({v['impact']}) in {len(v['nodes'])} places, such as "
        f"{v['nodes'][0]['html'][:200]}" for v in found)
