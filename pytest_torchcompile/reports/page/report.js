// The page without this is complete; this hides cases by verdict and sorts the tables.
"use strict";
document.documentElement.classList.add("js");

const filters = [...document.querySelectorAll(".tiles input")];

function showChosen() {
  const chosen = new Set(filters.filter((filter) => filter.checked).map((filter) => filter.value));
  for (const element of document.querySelectorAll("[data-verdict]")) {
    element.hidden = !chosen.has(element.dataset.verdict);
  }
  const parts = [...document.querySelectorAll("section[data-verdict]")];
  const shown = parts.filter((part) => !part.hidden).length;
  document.getElementById("shown").textContent =
    shown < parts.length ? `${shown} of ${parts.length} shown` : "";
}

function sortBy(heading, table) {
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  const key = (row) => row.cells[heading.cellIndex].dataset.key;
  const compare = (a, b) => (key(a) ? key(a) - key(b) : a.cells[0].textContent.localeCompare(b.cells[0].textContent));
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].sort((a, b) => (rising ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...rows);
}

for (const filter of filters) filter.addEventListener("change", showChosen);
addEventListener("pageshow", showChosen); // a browser remembers what was ticked

for (const table of document.querySelectorAll("table")) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(heading, table));
  }
}
