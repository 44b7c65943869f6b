"use strict";
// Conveniences only: the page says everything without them.

function sortKey(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, "en", { numeric: true });
}

// Rows whose cell has no number stay last in either direction; equal rows keep their order.
function sortTable(table, column, direction) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: sortKey(row, column) }));
  const numeric = rows.some((entry) => typeof entry.key === "number");
  rows.sort((a, b) => {
    const missing = numeric ? (typeof a.key !== "number") - (typeof b.key !== "number") : 0;
    return missing || direction * compare(a.key, b.key);
  });
  body.append(...rows.map((entry) => entry.row));
}

function makeSortable(table) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      // the first click shows the largest first: that is what one looks for
      const descending = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortTable(table, column, descending ? -1 : 1);
    });
  });
}

function makeToggle(item) {
  const part = item.dataset.part;
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = true;
  box.setAttribute("aria-label", `show ${part}`);
  box.addEventListener("change", () => {
    document.querySelectorAll(`.bar .${part}`).forEach((span) => { span.hidden = !box.checked; });
  });
  item.prepend(box);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".legend [data-part]").forEach(makeToggle);
