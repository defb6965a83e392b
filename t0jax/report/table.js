// An extra: a click on a column's head sorts the table. Without JavaScript the tables are as they were written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll("th:not(.plain)").forEach((head) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const column = head.cellIndex;
      const down = head.getAttribute("aria-sort") !== "descending";
      const value = (row) => {
        const text = row.cells[column].textContent.trim();
        const number = parseFloat(text.replace("\u2212", "-"));
        return /^[+\u2212\d]/.test(text) && !Number.isNaN(number) ? number : text;
      };
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (typeof x === "number" && typeof y === "number") return y - x;
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return y.localeCompare(x);
      };
      const rows = [...body.rows].sort((a, b) => (down ? order(a, b) : order(b, a)));
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}
