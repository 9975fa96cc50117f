"""Every page in a real browser: it is whole, and it is on its own."""

import re

import pytest
import yaml

from tools.browser import SITE, pages
from tools.notebooks import ROOT

PAGES = pages()
CHAPTERS = [p for p in PAGES if p.startswith("notebooks/")]
KNOWN = "Got invalid theme mode"  # the theme logs it, harmlessly


def test_every_page_of_the_contents_was_built():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"]] + [c["file"] for part in toc["parts"]
                             for c in part["chapters"]]
    assert [f"{f}.html" for f in sorted(files)] == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_asks_nobody_else(page, site, name):
    foreign, failed, errors = [], [], []
    page.on("request", lambda r: r.url.startswith(
        (site, "data:", "blob:")) or foreign.append(r.url))
    page.on("response", lambda r: r.status < 400 or failed.append(r.url))
    page.on("pageerror", lambda e: errors.append(e.message))
    page.on("console", lambda m: m.type != "error" or KNOWN in m.text
            or errors.append(m.text))
    page.goto(site + name)
    page.wait_for_load_state("networkidle")
    assert not foreign
    assert not failed
    assert not errors
    assert page.locator(".katex-error").count() == 0
    text = page.locator("article").inner_text()
    assert "\\frac" not in text and "{ref}" not in text
    assert page.locator("article img:not([alt]), article img[alt='']"
                        ).count() == 0


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_the_number_of_its_file(name):
    """In its heading and in the list of chapters."""
    number = str(int(name.split("/")[1][:2]))
    html = (SITE / name).read_text()
    assert re.search(r'<h1><span class="section-number">(\d+)\. ',
                     html)[1] == number
    home = (SITE / "book/intro.html").read_text()
    assert re.search(rf'href="[./]*{name}">{number}\. ', home)


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_a_phone(page, site, name):
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto(site + name)
    page.wait_for_load_state("networkidle")
    wide = page.evaluate("""() => {
      const inside = e => { for (; e; e = e.parentElement) {
        const o = getComputedStyle(e).overflowX;
        if (o === 'auto' || o === 'scroll' || o === 'hidden') return true; }
        return false; };
      return [...document.querySelectorAll('article *')].filter(
        e => e.getBoundingClientRect().right > innerWidth + 1
             && e.getClientRects().length && !e.closest('svg *')
             && !inside(e))
        .map(e => e.outerHTML.slice(0, 120)).slice(0, 5); }""")
    assert not wide


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_opens_in_colab(page, site, name):
    page.goto(site + name)
    links = page.eval_on_selector_all(
        "a[href*='colab.research.google.com']", "e => e.map(a => a.href)")
    assert any(link.endswith(name.replace(".html", ".ipynb"))
               for link in links)


def test_links_within_the_book_lead_somewhere():
    ids = {}

    def anchors(path):
        if path not in ids:
            ids[path] = set(re.findall(r'\bid="([^"]+)"', path.read_text()))
        return ids[path]

    for name in PAGES:
        here = SITE / name
        article = here.read_text().split("<article", 1)[1].split(
            "</article>", 1)[0]
        for href in re.findall(r'href="([^"]+)"', article):
            if re.match(r"[a-z]+:", href):
                continue
            file, _, anchor = href.partition("#")
            to = (here.parent / file).resolve() if file else here
            assert to.exists(), f"{name} links to {href}"
            if anchor and to.suffix == ".html":
                assert anchor in anchors(to), f"{name} links to {href}"


def test_equations_are_linked_by_number(page, site):
    page.goto(site + "notebooks/03-backward.html")
    link = page.locator("article a[href*='#equation-']").first
    target = link.get_attribute("href").split("#")[1]
    number = target.removeprefix("equation-").replace("-", ".")
    assert link.inner_text() == f"({number})"
    link.click()
    assert f"({number})" in page.locator(
        f"[id='{target}'] .katex-html").inner_text()


def test_evidence_lists_every_claim_and_leads_to_its_cell(page, site):
    claims = yaml.safe_load((ROOT / "book/evidence.yml").read_text())
    assert len(claims) >= 40
    page.goto(site + "book/evidence.html")
    text = page.locator("article").inner_text()
    for claim in claims:
        assert page.locator(f"[id='claim-{claim['id']}']").count() == 1
    assert text.count("Measured:") == len(claims)
    assert "{" not in text  # BibTeX's braces around names
    page.locator("article a:has-text('the cell')").first.click()
    page.wait_for_load_state()
    assert page.locator(":target.claim").count() == 1


def test_evidence_is_filtered_and_the_address_says_how(page, site):
    claims = yaml.safe_load((ROOT / "book/evidence.yml").read_text())
    false = [c for c in claims if c["verdict"] == "false"]
    address = site + "book/evidence.html"
    shown = page.locator(".claim-entry:visible")
    page.goto(address)
    form = page.locator(".claim-filter")
    form.locator("[name=verdict]").select_option("false")
    assert shown.count() == len(false)
    assert f"{len(false)} of {len(claims)}" in form.inner_text()
    assert page.url == address + "?verdict=false"
    form.locator("[name=words]").fill("Decorrelates")
    assert 0 < shown.count() < len(false)
    assert page.locator("h2:visible", has_text="Chapter 7").count() == 0
    form.locator("button").click()
    page.wait_for_function("!location.search")
    assert shown.count() == len(claims)
    page.goto(address + "?chapter=7&verdict=partly")
    assert shown.count() == sum(
        c["chapter"].startswith("07") and c["verdict"] == "partly"
        for c in claims)
    # A link to a claim shows it whatever was chosen.
    page.evaluate(f"location.hash = 'claim-{claims[0]['id']}'")
    page.wait_for_function("!location.search")
    assert page.locator(f"[id='claim-{claims[0]['id']}']").is_visible()


def test_evidence_has_the_sixteen_popular_claims(page, site):
    page.goto(site + "book/evidence.html")
    rows = page.locator("table").first.locator("tbody tr")
    assert [row.locator("td").first.inner_text()
            for row in rows.all()] == [str(n) for n in range(1, 17)]
    page.locator("[name=popular]").check()
    assert page.locator(".claim-entry:visible").count() == 16


def test_search_finds_a_word(page, site):
    page.goto(site + "search.html?q=projector")
    page.locator("#search-results li a").first.wait_for()
    assert page.locator("#search-results li a").count() >= 2


def test_the_dark_theme_is_dark(page, site):
    page.emulate_media(color_scheme="dark")
    page.goto(site + "book/intro.html")
    colour = page.evaluate(
        "getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60


def test_icons_are_drawn(page, site):
    page.goto(site + "notebooks/02-forward.html")
    page.locator("button.theme-switch-button svg").first.wait_for(
        state="attached")
    bare = page.evaluate("""() => [...document.querySelectorAll(
      'i[class*="fa-"], svg.svg-inline--fa')].filter(
      e => e.tagName === 'I' || e.querySelector('path').getAttribute('d')
           .length < 10).map(e => e.outerHTML.slice(0, 100))""")
    assert not bare
