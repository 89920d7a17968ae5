// Takes the place of jQuery, Bootstrap, bootstrap-table and Vega in the pages of Great Expectations: the part of them that the
// pages use, without the internet. A call that is not known here does nothing.
(() => {
  "use strict";

  const show = (element, shown) => { element.style.display = shown ? "" : "none"; };

  const known = (elements) => ({
    parent: () => found(elements.map((one) => one.parentElement).filter(Boolean)),
    each: (act) => { elements.forEach((one, index) => act.call(one, index, one)); },
    fadeIn: () => elements.forEach((one) => show(one, true)),
    fadeOut: () => elements.forEach((one) => show(one, false)),
    data: (name) => elements[0]?.dataset[name],
    ready: (act) => { window.addEventListener("DOMContentLoaded", act); },
    bootstrapTable: (options) => elements.forEach((one) => (typeof options === "object" ? fill(one, options) : clear(one))),
  });

  const found = (elements) => {
    const calls = known(elements);
    const chain = new Proxy(calls, { get: (target, name) => (name in target ? target[name] : () => chain) });
    return chain;
  };

  window.$ = window.jQuery = (given) => {
    if (typeof given === "function") { window.addEventListener("DOMContentLoaded", given); return found([]); }
    return found(typeof given === "string" ? [...document.querySelectorAll(given)] : [given]);
  };
  window.vegaEmbed = () => Promise.resolve();

  // A table of the index: a search field above it, headers that sort, rows that lead to their page.
  function fill(table, options) {
    const head = document.createElement("thead"), body = document.createElement("tbody"), search = document.createElement("input");
    search.type = "search"; search.placeholder = "Search"; search.className = "headrace-search";
    table.before(search);
    const titles = head.insertRow();
    let rows = [...options.data], descending = false;
    const draw = () => {
      const words = search.value.toLowerCase();
      body.replaceChildren();
      for (const row of rows) {
        const line = document.createElement("tr");
        for (const column of options.columns) line.insertCell().innerHTML = row[column.field] ?? "";
        if (!line.textContent.toLowerCase().includes(words)) continue;
        if (row._table_row_link_path) {
          line.className = "clickable-row";
          line.addEventListener("click", (event) => {
            if (!event.target.closest("a")) window.location = row._table_row_link_path;
          });
        }
        body.append(line);
      }
    };
    const sort = (column, down) => {
      const key = column.sortName ?? column.field, order = down ? -1 : 1;
      const value = (row) => row[key] ?? "";
      rows.sort((one, other) => order * (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0));
    };
    for (const column of options.columns) {
      const title = document.createElement("th");
      title.textContent = column.title;
      title.addEventListener("click", () => { descending = !descending; sort(column, descending); draw(); });
      titles.append(title);
    }
    const first = options.columns.find((column) => column.field === options.sortName);
    if (first) { descending = options.sortOrder === "desc"; sort(first, descending); }
    search.addEventListener("input", draw);
    table.classList.add("table");
    table.append(head, body);
    table.headraceDraw = () => { search.value = ""; draw(); };
    draw();
  }

  function clear(table) { table.headraceDraw?.(); }

  // Tabs, and parts that open and close.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("[data-toggle]");
    const target = link?.getAttribute("href")?.startsWith("#") ? document.getElementById(link.getAttribute("href").slice(1)) : null;
    if (!target) return;
    if (link.dataset.toggle === "collapse") { event.preventDefault(); target.classList.toggle("show"); }
    if (link.dataset.toggle === "tab") {
      event.preventDefault();
      const name = (one) => one.classList.remove("active", "show");
      link.closest(".nav")?.querySelectorAll(".nav-link").forEach(name);
      target.parentElement.querySelectorAll(":scope > .tab-pane").forEach(name);
      link.classList.add("active");
      target.classList.add("active", "show");
    }
  });
})();
