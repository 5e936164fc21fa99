"use strict";
// A click on a heading sorts its column, a second one reverses it: numbers as numbers, empty cells last, equal rows
// as they stand.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const key = (row) => {
      const text = row.cells[column].textContent.trim();
      if (text === "" || text === "–") return null;
      return head.classList.contains("number") ? parseFloat(text.replace("−", "-").replaceAll(" ", "")) : text;
    };
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = Array.from(body.rows, (row) => ({ row, key: key(row) }));
      rows.sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
        return a.key < b.key ? -sign : a.key > b.key ? sign : 0;
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}
