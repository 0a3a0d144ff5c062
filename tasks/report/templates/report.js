for (const table of document.querySelectorAll("table")) {
  table.tHead.addEventListener("click", event => {
    const cell = event.target.closest("th");
    if (!cell) return;
    const up = cell.getAttribute("aria-sort") !== "ascending", index = cell.cellIndex;
    for (const other of cell.parentNode.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[index].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => value(a).localeCompare(value(b), "en", {numeric: true}));
    table.tBodies[0].append(...(up ? rows : rows.reverse()));
  });
}
