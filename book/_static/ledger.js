// Tables of the class `ledger` can be searched, filtered and sorted; without this script they are whole.
(() => {
  "use strict";

  const FILTERED = ["Source", "Evidence", "Verdict"];
  const make = (name, properties) => Object.assign(document.createElement(name), properties);
  const key = (cell) => (cell.querySelector(".key") || cell).textContent.trim();

  function equip(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    const form = make("form", { className: "ledger-filter", onsubmit: () => false });
    const said = make("output", { className: "ledger-count" });
    const search = make("input", { type: "search", placeholder: "any words" });
    const tests = [];

    function show() {
      const words = search.value.toLowerCase().split(/\s+/);
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !(words.every((word) => text.includes(word)) && tests.every((test) => test(row)));
        count += !row.hidden;
      }
      said.textContent = `${count} of ${rows.length} shown`;
    }

    function offer(title, control) {
      const label = make("label", { textContent: `${title} ` });
      label.append(control);
      form.append(label);
      control.addEventListener("input", show);
    }

    offer("Search", search);
    headings.forEach((heading, column) => {
      const title = heading.textContent.trim();
      if (FILTERED.includes(title)) {
        const choice = make("select");
        choice.add(new Option("all", ""));
        for (const value of [...new Set(rows.map((row) => key(row.cells[column])))].sort()) {
          choice.add(new Option(value, value));
        }
        tests.push((row) => !choice.value || key(row.cells[column]) === choice.value);
        offer(title, choice);
      }
      const button = make("button", { type: "button", textContent: title, title: `sort by ${title}` });
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sorted = [...rows].sort((a, b) => key(a.cells[column]).localeCompare(key(b.cells[column])));
        body.append(...(down ? sorted.reverse() : sorted));
      });
      heading.replaceChildren(button);
    });
    form.append(said);
    const place = table.closest(".pst-scrollable-table-container") || table;
    place.before(form);
    show();
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("table.ledger").forEach(equip));
})();
