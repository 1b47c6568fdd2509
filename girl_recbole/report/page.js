"use strict";
(() => {
  const root = document.documentElement;
  const KEY = "girl-report-theme";

  // A browser that keeps nothing for files or blocks cookies throws here: the theme is then that of the system.
  const store = {
    read() { try { return localStorage.getItem(KEY); } catch { return null; } },
    write(theme) { try { localStorage.setItem(KEY, theme); } catch { /* shown, not remembered */ } },
  };

  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  const kept = store.read();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.hidden = false;
  name();
  system.addEventListener("change", name);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    store.write(root.dataset.theme);
    name();
  });

  // Sorting: a button in each head; empty cells stay last; the rows of the foot (prior, oracle) stay where they are.
  const said = document.getElementById("said");
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      head.setAttribute("aria-sort", "none");
      sorter.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.dataset.first;
        const other = first === "ascending" ? "descending" : "ascending";
        const order = now === first ? other : first;
        heads.forEach((one) => one.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", order);
        sort(table.tBodies[0], column, order === "ascending" ? 1 : -1);
        said.textContent = `${table.caption.textContent}: sorted by ${sorter.textContent}, ${order}`;
      });
    });
  }

  function sort(body, column, sign) {
    const key = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return cell.textContent.trim();
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * String(a).localeCompare(String(b), "en", { numeric: true });
    });
    body.append(...rows.map(([, row]) => row));
  }

  // On paper everything is open.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
})();
