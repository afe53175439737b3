// Sorts the table by a column, each block of methods for itself. Without this script the page shows all it has.
"use strict";
(() => {
  const table = document.getElementById("scores");
  const headers = [...table.tHead.rows[0].cells];

  const opposite = (direction) => (direction === "ascending" ? "descending" : "ascending");

  function compare(one, other, sign) {
    if ("value" in one.dataset || "value" in other.dataset) {
      if (!("value" in one.dataset)) return 1; // what has no number comes last, whatever the direction
      if (!("value" in other.dataset)) return -1;
      return sign * (Number(one.dataset.value) - Number(other.dataset.value));
    }
    return sign * one.textContent.localeCompare(other.textContent);
  }

  function sort(header, direction) {
    const sign = direction === "ascending" ? 1 : -1;
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
      rows.sort((a, b) => compare(a.cells[header.cellIndex], b.cells[header.cellIndex], sign));
      body.append(...rows);
    }
    for (const other of headers) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
  }

  // #sort=macro sorts by a column the way that is usual for it, #sort=-macro the other way: a link to a sorted table.
  function sortByFragment() {
    const wanted = new URLSearchParams(location.hash.slice(1)).get("sort") ?? "";
    const header = headers.find((one) => wanted === one.dataset.key || wanted === "-" + one.dataset.key);
    if (!header) return;
    const first = header.dataset.first;
    sort(header, wanted === header.dataset.key ? first : opposite(first));
  }

  for (const header of headers) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const first = header.dataset.first;
      const direction = header.getAttribute("aria-sort") === first ? opposite(first) : first;
      sort(header, direction);
      const key = (direction === first ? "" : "-") + header.dataset.key;
      history.replaceState(null, "", "#" + new URLSearchParams({ sort: key }));
    });
  }
  addEventListener("hashchange", sortByFragment);
  sortByFragment();
})();
