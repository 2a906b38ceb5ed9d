"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  // --- Flame graph. Each node: depth, parent, keys, bytes, prefix. Parents come before children.
  const flame = document.getElementById("flame");
  if (flame) {
    const [DEPTH, PARENT, KEYS, SIZE, NAME] = [0, 1, 2, 3, 4];
    const nodes = data.flame, shapes = [...flame.querySelectorAll(":scope > svg")];
    const detail = document.getElementById("flame-detail");
    const row = shapes[0].height.baseVal.value;
    let metric = SIZE, zoomed = 0, at = 0;

    const under = (i, top) => { while (i > top) i = nodes[i][PARENT]; return i === top; };
    const size = (n) => {
      let unit = 0;
      while (n >= 1023.5 && unit < 5) { n /= 1024; unit++; }
      return (unit ? n.toPrecision(3) : n) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    };
    const tell = (i) => {
      const [, , keys, bytes, name] = nodes[i];
      const share = data.size ? (100 * bytes / data.size).toFixed(1) : "0";
      detail.textContent = (i ? name : "all keys") + " \u2014 " + keys.toLocaleString("en") + " keys, " + size(bytes) + ", " + share + " %";
    };
    const draw = () => {
      const whole = nodes[zoomed][metric] || 1, filled = nodes.map(() => 0), left = nodes.map(() => 0);
      let deepest = 0;
      nodes.forEach((node, i) => {
        const parent = node[PARENT];
        if (i !== zoomed && parent >= 0) { left[i] = left[parent] + filled[parent]; filled[parent] += node[metric]; }
        const above = under(zoomed, i), below = under(i, zoomed);
        const shape = shapes[i];
        shape.style.display = above || below ? "" : "none";
        if (!above && !below) return;
        deepest = Math.max(deepest, node[DEPTH]);
        shape.setAttribute("x", above ? "0%" : 100 * (left[i] - left[zoomed]) / whole + "%");
        shape.setAttribute("width", above ? "100%" : 100 * node[metric] / whole + "%");
      });
      flame.setAttribute("height", (deepest + 1) * row);
    };
    const focus = (i) => {
      shapes[at].setAttribute("tabindex", "-1");
      at = i;
      shapes[at].setAttribute("tabindex", "0");
      shapes[at].focus();
      tell(at);
    };
    const zoom = (i) => { zoomed = i; draw(); focus(i); };
    const measure = (by) => {
      metric = by;
      document.getElementById("flame-bytes").setAttribute("aria-pressed", String(by === SIZE));
      document.getElementById("flame-keys").setAttribute("aria-pressed", String(by === KEYS));
      draw();
    };
    const shown = (i) => i !== undefined && shapes[i].style.display !== "none";
    const walk = {
      ArrowDown: () => nodes.findIndex((n, i) => n[PARENT] === at && shown(i)),
      ArrowUp: () => nodes[at][PARENT],
      ArrowRight: () => nodes.findIndex((n, i) => i > at && n[DEPTH] === nodes[at][DEPTH] && shown(i)),
      ArrowLeft: () => nodes.findLastIndex((n, i) => i < at && n[DEPTH] === nodes[at][DEPTH] && shown(i)),
      Home: () => 0,
    };
    shapes.forEach((shape, i) => {
      shape.addEventListener("click", () => zoom(i));
      shape.addEventListener("mouseenter", () => tell(i));
      shape.addEventListener("focus", () => { if (at !== i) focus(i); else tell(i); });
    });
    flame.addEventListener("mouseleave", () => tell(zoomed));
    flame.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Enter" || event.key === " ") zoom(at);
      else if (event.key === "Escape") zoom(0);
      else if (walk[event.key]) { const to = walk[event.key](); if (to >= 0) focus(to); }
      else return;
      event.preventDefault();
    });
    document.getElementById("flame-bytes").addEventListener("click", () => measure(SIZE));
    document.getElementById("flame-keys").addEventListener("click", () => measure(KEYS));
    document.getElementById("flame-reset").addEventListener("click", () => zoom(0));
  }

  // --- Tables: a click on a heading sorts by it.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    if (body.rows.length < 2) continue;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const numbers = body.rows[0].cells[column].dataset.v !== undefined;
        const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : numbers;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (r) => numbers ? Number(r.cells[column].dataset.v) : r.cells[column].textContent;
        const rows = [...body.rows].map((r) => [value(r), r]);
        rows.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0) * (down ? -1 : 1));
        body.append(...rows.map((r) => r[1]));
      });
    });
  }

  // --- Export.
  const columns = {
    top_keys: ["key_base64", "key", "key_length", "rdb_size", "member_count", "type", "encoding", "instance", "db", "expire_at_ms"],
    prefixes: ["prefix_base64", "prefix", "key_count", "total_size"],
    changes: ["change", "key_base64", "key", "key_length", "size_before", "size_after", "type", "instance", "db"],
  };
  const named = (name) => data[name].map((row) => Object.fromEntries(columns[name].map((c, i) => [c, row[i]])));
  const cell = (value, name) => {
    // A spreadsheet would run a text that begins like a formula.
    const formula = typeof value === "string" && !name.endsWith("_base64") && /^[=+\-@\t\r]/.test(value);
    const text = (formula ? "'" : "") + (value ?? "");
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  for (const button of document.querySelectorAll("[data-export]")) {
    button.addEventListener("click", () => {
      const what = button.dataset.export;
      const text = what === "json"
        ? JSON.stringify({ ...data, flame: undefined, ...Object.fromEntries(Object.keys(columns).filter((n) => data[n]).map((n) => [n, named(n)])) }, null, 1)
        : [columns[what], ...data[what]].map((row) => row.map((v, i) => cell(v, columns[what][i])).join(",")).join("\r\n") + "\r\n";
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: what === "json" ? "application/json" : "text/csv" }));
      link.download = what === "json" ? "report.json" : what + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
})();
