// Small repairs to the theme's markup; tests/site checks them with axe.
addEventListener("DOMContentLoaded", () => {
  for (const field of document.querySelectorAll(".search-button-field")) {
    field.removeAttribute("aria-label");
  }
  for (const icon of document.querySelectorAll(
    ".theme-switch-button svg, .theme-switch-button span")) {
    icon.setAttribute("aria-hidden", "true");
  }
  for (const list of document.querySelectorAll(
    ".citation-list, .citation[role]")) {
    list.removeAttribute("role");
  }
  // Code and output that scroll sideways must be reachable by keyboard.
  for (const block of document.querySelectorAll(
    "div.highlight pre, .cell_output pre, .bd-article table")) {
    block.tabIndex = 0;
  }
});
