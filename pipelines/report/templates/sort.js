"use strict";
// A table's rows by one of its columns: a click on the head, or Enter and Space on it, goes from ascending to
// descending to the order as it was. Numbers go by `data-order`; what has no value comes last either way.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const asItWas = [...body.rows];
  if (asItWas.length < 2 || "unsorted" in table.dataset) continue;
  const heads = [...table.tHead.rows[0].cells].filter(head => !("unsorted" in head.dataset));
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort") ?? ""] ?? "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== "");
      body.append(...(next ? sorted(asItWas, head.cellIndex, next === "ascending" ? 1 : -1) : asItWas));
    });
    head.append(button);
  }
  table.caption?.firstElementChild?.append("; sortable by its column heads");
}

function sorted(rows, column, sign) {
  const values = new Map(rows.map(row => [row, valueOf(row.cells[column])]));
  return [...rows].sort((one, other) => {
    const a = values.get(one), b = values.get(other);
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "number" ? a - b || 0 : a.localeCompare(b, "en", { numeric: true }));
  });
}

function valueOf(cell) {
  const text = cell.textContent.trim();
  if (!("order" in cell.dataset)) return text === "" || text === "\u2013" ? null : text;
  return cell.dataset.order === "" ? null : Number(cell.dataset.order);
}
