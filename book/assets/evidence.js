// The evidence page: which claims are shown, by verdict, chapter and words.
// The choice stands in the address, so that a link can lead to it.
addEventListener("DOMContentLoaded", () => {
  const claims = [...document.querySelectorAll(".claim-entry")];
  if (!claims.length) return;
  const texts = claims.map((c) => c.textContent.toLowerCase());
  const chapters = [...new Set(claims.map(chapterOf))];
  const options = chapters.map((n) => `<option value="${n}">${n}</option>`);
  const form = document.createElement("form");
  form.className = "claim-filter";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Claims");
  form.innerHTML = `
<label>Words <input type="search" name="words"></label>
<label>Verdict <select name="verdict"><option value="">any</option>
<option value="true">true</option><option value="partly">partly true</option>
<option value="false">false</option></select></label>
<label>Chapter <select name="chapter"><option value="">any</option>
${options.join("")}</select></label>
<label><input type="checkbox" name="popular" value="yes">
what people say most often</label>
<button type="reset">Show all</button><output></output>`;
  claims[0].closest("section").before(form);

  function chapterOf(claim) {
    return /chapter-(\d+)/.exec(claim.className)[1];
  }

  function chosen() {
    const fields = [...new FormData(form)].filter(([, value]) => value.trim());
    return Object.fromEntries(fields);
  }

  function fits(claim, text, { words = "", verdict, chapter, popular }) {
    return words.toLowerCase().split(/\s+/).every((w) => text.includes(w)) &&
      (!verdict || claim.classList.contains(`verdict-${verdict}`)) &&
      (!chapter || chapterOf(claim) === chapter) &&
      (!popular || claim.classList.contains("popular"));
  }

  function show() {
    const choice = chosen();
    claims.forEach((c, i) => { c.hidden = !fits(c, texts[i], choice); });
    for (const part of new Set(claims.map((c) => c.closest("section")))) {
      part.hidden = !part.querySelector(".claim-entry:not([hidden])");
    }
    const shown = claims.filter((c) => !c.hidden).length;
    form.querySelector("output").textContent =
      `${shown} of ${claims.length} claims`;
    const query = new URLSearchParams(choice).toString();
    history.replaceState(null, "",
      location.pathname + (query && `?${query}`) + location.hash);
  }

  for (const [name, value] of new URLSearchParams(location.search)) {
    const field = form.elements[name];
    if (field?.type === "checkbox") field.checked = value === "yes";
    else if (field) field.value = value;
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(show));
  // A link to a claim shows it, whatever was chosen before.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target?.closest("[hidden]")) form.reset();
  };
  addEventListener("hashchange", reveal);
  show();
  reveal();
});
