// The graph of the run: a box for each function, or for each task, in layers from left to right.
(() => {
  const svg = page.byId("graph");
  const WIDE = 176, HIGH = 46, GAP_X = 96, GAP_Y = 18, MARGIN = 14;
  const SVG = svg.namespaceURI;
  const CLASSES = { DONE: "done", FAILED: "failed", CANCELED: "canceled", RUNNING: "running", PENDING: "pending", WAITING: "waiting" };
  let graph = null, single = false, shape = "", size = { width: 1, height: 1 };
  let view = null; // x, y, scale; null: everything fits
  let dragged = null;

  function made(tag, attributes, text) {
    const one = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
    if (text !== undefined) one.textContent = text;
    return one;
  }

  const shorter = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  /** Return the layer of each box: one more than that of any box before it, without cycles. */
  function layers(count, edges) {
    const after = Array.from({ length: count }, () => []);
    for (const [from, to] of edges) if (from !== to) after[from].push(to);
    const state = new Uint8Array(count), order = [], back = new Set();
    for (let first = 0; first < count; first++) {
      if (state[first]) continue;
      const stack = [[first, 0]];
      state[first] = 1;
      while (stack.length) {
        const top = stack[stack.length - 1];
        if (top[1] < after[top[0]].length) {
          const next = after[top[0]][top[1]++];
          if (state[next] === 1) back.add(`${top[0]} ${next}`);
          else if (!state[next]) {
            state[next] = 1;
            stack.push([next, 0]);
          }
        } else {
          state[top[0]] = 2;
          order.push(top[0]);
          stack.pop();
        }
      }
    }
    const layer = new Int32Array(count);
    for (const box of order.reverse()) {
      for (const next of after[box]) {
        if (!back.has(`${box} ${next}`)) layer[next] = Math.max(layer[next], layer[box] + 1);
      }
    }
    return layer;
  }

  /** Return the place of each box; boxes of a layer are ordered by the mean of those before them. */
  function places(count, edges) {
    const layer = layers(count, edges);
    const columns = [];
    for (let box = 0; box < count; box++) (columns[layer[box]] ||= []).push(box);
    const before = Array.from({ length: count }, () => []);
    for (const [from, to] of edges) if (layer[from] < layer[to]) before[to].push(from);
    const row = new Float64Array(count);
    columns.forEach((boxes, number) => {
      if (number) {
        const mean = (box) => before[box].reduce((sum, one) => sum + row[one], 0) / (before[box].length || 1);
        const wish = new Map(boxes.map((box) => [box, mean(box)]));
        boxes.sort((a, b) => wish.get(a) - wish.get(b) || a - b);
      }
      boxes.forEach((box, index) => { row[box] = index; });
    });
    // A graph without edges is one column: fold it.
    if (columns.length === 1) {
      const across = Math.max(1, Math.min(4, Math.floor((svg.clientWidth || 800) / (WIDE + GAP_Y)), Math.ceil(Math.sqrt(count))));
      return Array.from({ length: count }, (_, box) => [MARGIN + (box % across) * (WIDE + GAP_Y), MARGIN + Math.floor(box / across) * (HIGH + GAP_Y)]);
    }
    const tallest = Math.max(...columns.map((boxes) => boxes.length));
    return Array.from({ length: count }, (_, box) => {
      const used = columns[layer[box]].length;
      const top = ((tallest - used) / 2) * (HIGH + GAP_Y);
      return [MARGIN + layer[box] * (WIDE + GAP_X), MARGIN + top + row[box] * (HIGH + GAP_Y)];
    });
  }

  function boxes() {
    if (!single) {
      return graph.nodes.map(([name, kind, counts]) => {
        const total = counts.reduce((sum, n) => sum + n, 0);
        const words = graph.states.map((state, i) => (counts[i] ? `${counts[i].toLocaleString("en")} ${CLASSES[state]}` : "")).filter(Boolean);
        return { name: name || "(no name)", find: name, counts, title: `${name}${kind ? `, ${kind}` : ""}: ${words.join(", ") || "no task"}`, note: `${total.toLocaleString("en")}${kind ? ` ${kind}` : ""}` };
      });
    }
    return graph.tasks.map(([uid, name, state]) => ({
      name: name || uid, find: uid, title: `${uid}: ${name}, ${CLASSES[graph.states[state]]}`, note: uid,
      counts: graph.states.map((_, i) => +(i === state)),
    }));
  }

  const edges = () => (single ? graph.taskEdges.map(([from, to]) => [from, to, 1, 0]) : graph.edges);

  function draw() {
    const all = boxes(), lines = edges();
    const at = places(all.length, lines);
    size = {
      width: Math.max(WIDE, ...at.map(([x]) => x + WIDE)) + MARGIN + (lines.some(([from, to]) => from === to) ? 24 : 0),
      height: Math.max(HIGH, ...at.map(([, y]) => y + HIGH)) + MARGIN,
    };
    const root = made("g", {});
    const labels = [];
    for (const [from, to, number, waiting] of lines) root.append(edge(at, from, to, number, waiting, labels));
    all.forEach((box, i) => root.append(drawn(box, ...at[i])));
    root.append(...labels);
    const focused = svg.contains(document.activeElement) ? document.activeElement.dataset.find : undefined;
    svg.replaceChildren(root);
    if (focused !== undefined) [...root.querySelectorAll("g[role]")].find((one) => one.dataset.find === focused)?.focus({ preventScroll: true });
    const high = Math.min(Math.max(size.height * Math.min(1, (svg.clientWidth || size.width) / size.width), 90), 520);
    svg.style.height = `${Math.ceil(high)}px`;
    look();
  }

  function edge(at, from, to, number, waiting, labels) {
    const group = made("g", { class: waiting ? "edge waits" : "edge" });
    const [x1, y1] = [at[from][0] + WIDE, at[from][1] + HIGH / 2];
    const [x2, y2] = [at[to][0], at[to][1] + HIGH / 2];
    let path, label;
    if (from === to) {
      path = `M${x1},${y1 - 8} c26,-14 26,30 0,16`;
      label = [x1 + 12, y1 - 14];
    } else if (x2 > x1) {
      const bend = Math.max((x2 - x1) / 2, 20);
      path = `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}`;
      // On the curve, in the gap before the next layer.
      const t = x2 - x1 > GAP_X + 1 ? 0.18 : 0.5, u = 1 - t;
      label = [
        u ** 3 * x1 + 3 * u * u * t * (x1 + bend) + 3 * u * t * t * (x2 - bend) + t ** 3 * x2,
        (u ** 3 + 3 * u * u * t) * y1 + (3 * u * t * t + t ** 3) * y2 - 4,
      ];
    } else {
      // A result that goes back to an earlier function, below the boxes.
      const low = Math.max(at[from][1], at[to][1]) + HIGH + 12;
      path = `M${x1},${y1} C${x1 + 40},${low} ${x1},${low} ${(x1 + x2) / 2},${low} S${x2 - 40},${low} ${x2},${y2}`;
      label = [(x1 + x2) / 2, low - 3];
    }
    group.append(made("path", { d: path, class: "line" }));
    if (from !== to) group.append(made("path", { d: `M${x2},${y2} l-7,-4 v8 z`, class: "tip" }));
    if (!single) {
      const text = waiting ? `${waiting.toLocaleString("en")} of ${number.toLocaleString("en")} wait` : number.toLocaleString("en");
      labels.push(made("text", { x: label[0], y: label[1], "text-anchor": "middle", class: "count" }, text));
    }
    return group;
  }

  function drawn(box, x, y) {
    const total = box.counts.reduce((sum, n) => sum + n, 0);
    const group = made("g", { class: "box", transform: `translate(${x},${y})`, tabindex: "0", role: "button", "aria-label": box.title });
    group.dataset.find = box.find;
    group.append(made("title", {}, box.title), made("rect", { width: WIDE, height: HIGH, rx: 6, class: "back" }));
    group.append(made("text", { x: 10, y: 17, class: "name" }, shorter(box.name, 24)));
    group.append(made("text", { x: 10, y: 30, class: "count" }, shorter(box.note, 28)));
    let left = 10;
    box.counts.forEach((count, i) => {
      if (!count) return;
      // Also one failure among 200,000 tasks is seen.
      const wide = Math.max((count / total) * (WIDE - 20), 2);
      group.append(made("rect", { x: left, y: HIGH - 11, width: Math.min(wide, WIDE - 10 - left), height: 6, class: CLASSES[graph.states[i]] }));
      left = Math.min(left + wide, WIDE - 12);
    });
    const find = () => page.find && page.find(box.find);
    group.addEventListener("click", () => { if (!moved) find(); });
    group.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      find();
    });
    return group;
  }

  function look() {
    const wide = svg.clientWidth || 1, high = svg.clientHeight || 1;
    const fit = Math.min(wide / size.width, high / size.height, 1);
    const scale = view ? view.scale : fit;
    const [x, y] = view ? [view.x, view.y] : [(wide - size.width * fit) / 2, (high - size.height * fit) / 2];
    svg.firstChild?.setAttribute("transform", `translate(${x},${y}) scale(${scale})`);
    return { x, y, scale };
  }

  function move(x, y) {
    const now = look();
    view = { ...now, x: now.x + x, y: now.y + y };
    look();
  }

  function zoom(factor, x, y) {
    const now = look();
    const scale = Math.max(0.05, Math.min(4, now.scale * factor));
    const center = [x ?? svg.clientWidth / 2, y ?? svg.clientHeight / 2];
    view = {
      scale,
      x: center[0] - ((center[0] - now.x) * scale) / now.scale,
      y: center[1] - ((center[1] - now.y) * scale) / now.scale,
    };
    look();
  }

  function fit() {
    view = null;
    look();
  }

  let moved = false;
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && !view) return; // the wheel scrolls the page until one has zoomed
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => {
    dragged = [event.clientX, event.clientY];
    moved = false;
  });
  svg.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const [x, y] = [event.clientX - dragged[0], event.clientY - dragged[1]];
    if (!moved && Math.hypot(x, y) < 4) return;
    if (!moved) svg.setPointerCapture(event.pointerId);
    moved = true;
    dragged = [event.clientX, event.clientY];
    move(x, y);
  });
  for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, () => { dragged = null; });
  svg.addEventListener("dblclick", fit);
  svg.addEventListener("keydown", (event) => {
    const step = 40;
    const keys = {
      ArrowLeft: () => move(step, 0), ArrowRight: () => move(-step, 0), ArrowUp: () => move(0, step), ArrowDown: () => move(0, -step),
      "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: fit,
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  page.byId("graph-in").addEventListener("click", () => zoom(1.25));
  page.byId("graph-out").addEventListener("click", () => zoom(0.8));
  page.byId("graph-fit").addEventListener("click", fit);
  function choose(tasks) {
    single = tasks;
    view = null;
    page.byId("graph-names").setAttribute("aria-pressed", String(!tasks));
    page.byId("graph-tasks").setAttribute("aria-pressed", String(tasks));
    draw();
  }
  page.byId("graph-names").addEventListener("click", () => choose(false));
  page.byId("graph-tasks").addEventListener("click", () => choose(true));
  window.addEventListener("resize", () => { if (graph) draw(); });

  page.graph = (given) => {
    const now = JSON.stringify(given);
    if (now === shape) return;
    shape = now;
    graph = given;
    page.byId("graph-section").hidden = !graph.nodes.length;
    page.byId("graph-modes").hidden = !graph.tasks.length;
    if (single && !graph.tasks.length) choose(false);
    else if (graph.nodes.length) draw();
  };
  if (page.data) page.graph(page.data.graph);
})();
