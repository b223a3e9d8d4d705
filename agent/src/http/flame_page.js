// Draws the profile that the page holds: magnify, search, filter by thread and by what it worked on, and
// the table beside it.
"use strict";

const ROW_PX = 17;
const LEAST_PX = 1.5;
const TABLE_ROWS = 100;

const source = document.getElementById("data");
const graph = document.getElementById("graph");
const search = document.getElementById("search");
const thread = document.getElementById("thread");
const work = document.getElementById("work");
const status = document.getElementById("status");
const table = document.querySelector("#top tbody");
const more = document.getElementById("more");
const [ownHeading, totalHeading] = document.querySelectorAll("#top thead th");
const HEADINGS = [[ownHeading, "own"], [totalHeading, "total"]];

if (source) {
  const data = JSON.parse(source.textContent);
  // What is shown: of which thread and work, from which frame on, what is looked for, the table's order.
  const view = { thread: "", work: "", focus: null, needle: "", by: "own" };
  let root = null;

  function build() {
    root = node(-1, null, 0);
    for (const stack of data.stacks) {
      if (view.thread !== "" && stack.thread !== Number(view.thread)) continue;
      if (view.work !== "" && stack.work !== Number(view.work)) continue;
      let at = root;
      at.count += stack.count;
      for (const name of stack.names) {
        let next = at.children.get(name);
        if (!next) at.children.set(name, (next = node(name, at, at.depth + 1)));
        next.count += stack.count;
        at = next;
      }
      at.own += stack.count;
    }
    view.focus = root;
  }

  function node(name, parent, depth) {
    return { name, parent, depth, count: 0, own: 0, children: new Map() };
  }

  const label = (at) => (at.name < 0 ? "all" : data.names[at.name]);
  const isKernel = (at) => label(at).endsWith("_[k]");
  const share = (count, of) => `${((count * 100) / of).toFixed(1)} %`;

  // Warm for user code, blue for the kernel, grey where there is no name; a name keeps its shade.
  function colour(name) {
    let hash = 2166136261;
    for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
    const shade = (hash >>> 0) % 100;
    if (name.endsWith("_[k]")) return `hsl(${200 + shade / 5} 60% ${66 + shade / 8}%)`;
    if (name.startsWith("[")) return `hsl(40 6% ${70 + shade / 8}%)`;
    return `hsl(${18 + shade / 3} 85% ${62 + shade / 8}%)`;
  }

  function draw() {
    const width = graph.clientWidth;
    const parts = document.createDocumentFragment();
    let deepest = 0;
    const place = (at, left, span, above) => {
      const cell = document.createElement("div");
      const name = label(at);
      cell.textContent = span > 24 ? name : "";
      cell.title = `${name}\n${at.count} ${data.unit}, ${share(at.count, root.count)}; itself ${at.own}`;
      cell.style.left = `${left}px`;
      cell.style.width = `${span}px`;
      cell.style.top = `${at.depth * ROW_PX}px`;
      cell.style.background = colour(name);
      cell.classList.toggle("above", above);
      cell.classList.toggle("found", isFound(name));
      cell.frame = at;
      parts.append(cell);
      deepest = Math.max(deepest, at.depth);
    };
    for (let up = view.focus.parent; up; up = up.parent) place(up, 0, width, true);
    const waiting = [[view.focus, 0, width]];
    while (waiting.length) {
      const [at, left, span] = waiting.pop();
      place(at, left, span, false);
      let offset = left;
      const children = [...at.children.values()];
      children.sort((a, b) => (label(a) < label(b) ? -1 : 1));
      for (const child of children) {
        const childSpan = (child.count / at.count) * span;
        if (childSpan >= LEAST_PX) waiting.push([child, offset, childSpan]);
        offset += childSpan;
      }
    }
    graph.replaceChildren(parts);
    graph.style.height = `${(deepest + 1) * ROW_PX}px`;
    tell();
  }

  function isFound(name) {
    return view.needle !== "" && name.toLowerCase().includes(view.needle);
  }

  // Samples below the focus with a match somewhere on the stack.
  function found() {
    let count = 0;
    const waiting = [view.focus];
    while (waiting.length) {
      const at = waiting.pop();
      if (isFound(label(at))) count += at.count;
      else waiting.push(...at.children.values());
    }
    return count;
  }

  function tell() {
    const parts = [];
    if (view.needle !== "") parts.push(`${share(found(), view.focus.count)} match`);
    if (view.focus !== root) parts.push(`${share(view.focus.count, root.count)} ${label(view.focus)}`);
    status.title = status.textContent = parts.join(" · ");
  }

  function fillTable() {
    const sums = new Map();
    const visit = (at, path) => {
      const name = label(at);
      const sum = sums.get(name) ?? { name, own: 0, total: 0 };
      sums.set(name, sum);
      sum.own += at.own;
      const isRecursion = path.has(name);
      if (!isRecursion) {
        sum.total += at.count;
        path.add(name);
      }
      for (const child of at.children.values()) {
        // All waits end in the scheduler: they are those of the function that called the kernel.
        if (data.is_of_waits && isKernel(child) && !isKernel(at)) sum.own += child.count;
        else visit(child, path);
      }
      if (!isRecursion) path.delete(name);
    };
    for (const service of view.focus === root ? root.children.values() : [view.focus]) {
      // The service is no function.
      const from = service.depth === 1 ? service.children.values() : [service];
      for (const child of from) visit(child, new Set());
    }
    const rows = [...sums.values()].sort((a, b) => b[view.by] - a[view.by] || b.total - a.total);
    const parts = rows.slice(0, TABLE_ROWS).map((sum) => {
      const row = document.createElement("tr");
      for (const count of [sum.own, sum.total]) {
        const cell = row.insertCell();
        cell.className = "number";
        cell.textContent = share(count, view.focus.count || 1);
      }
      const name = document.createElement("th");
      name.scope = "row";
      name.title = name.textContent = sum.name;
      row.append(name);
      row.classList.toggle("found", isFound(sum.name));
      return row;
    });
    table.replaceChildren(...parts);
    more.hidden = rows.length <= TABLE_ROWS;
    more.textContent = `and ${rows.length - TABLE_ROWS} more functions`;
    for (const [heading, by] of HEADINGS) heading.ariaSort = view.by === by ? "descending" : null;
  }

  function show() {
    draw();
    fillTable();
  }

  function find(needle) {
    view.needle = needle.trim().toLowerCase();
    show();
  }

  graph.addEventListener("click", (event) => {
    const at = event.target.frame;
    if (!at) return;
    view.focus = at;
    show();
  });
  table.addEventListener("click", (event) => {
    const name = event.target.closest("tr")?.querySelector("th")?.textContent;
    if (!name) return;
    search.value = search.value === name ? "" : name;
    find(search.value);
  });
  search.addEventListener("input", () => find(search.value));
  for (const [select, by] of [[thread, "thread"], [work, "work"]]) {
    select.addEventListener("change", () => {
      view[by] = select.value;
      build();
      show();
    });
  }
  document.getElementById("reset").addEventListener("click", () => {
    view.focus = root;
    search.value = "";
    find("");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.getElementById("reset").click();
    if (event.key === "f" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      search.focus();
    }
  });
  for (const [heading, by] of HEADINGS) {
    heading.classList.add("sorts");
    heading.addEventListener("click", () => {
      view.by = by;
      fillTable();
    });
  }

  // Most samples first.
  function offer(select, names, by) {
    const counts = names.map((name, number) => ({ name, number, count: 0 }));
    for (const stack of data.stacks) counts[stack[by]].count += stack.count;
    counts.sort((a, b) => b.count - a.count);
    const total = counts.reduce((sum, { count }) => sum + count, 0);
    for (const { name, number, count } of counts) {
      if (count > 0) select.add(new Option(`${name || "no request told"} (${share(count, total)})`, number));
    }
  }
  offer(thread, data.threads, "thread");
  offer(work, data.work, "work");
  work.hidden = data.work.length < 2;
  // A link can say what is looked for, of which thread and of which work.
  const asked = new URLSearchParams(location.hash.slice(1));
  search.value = asked.get("search") ?? "";
  const chosen = data.threads.indexOf(asked.get("thread"));
  if (chosen >= 0) view.thread = thread.value = String(chosen);
  const chosenWork = data.work.indexOf(asked.get("work"));
  if (chosenWork >= 0) view.work = work.value = String(chosenWork);
  build();
  find(search.value);
  let drawnWidth = graph.clientWidth;
  new ResizeObserver(() => {
    if (graph.clientWidth !== drawnWidth) {
      drawnWidth = graph.clientWidth;
      draw();
    }
  }).observe(graph);
}
