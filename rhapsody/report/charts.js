// The charts of the run: throughput, load, timeline, batches and latencies.
(() => {
  const RIGHT = 16, AXIS = 20, TOP = 6;
  let LEFT = 130; // room for the labels of the timeline
  let data, tasks, groups, batches, count, RUNNING, FAILED, CANCELED;
  const view = { from: 0, to: 1 };
  let whole = true; // whether the view shows the whole run
  let marked = null; // both ends of the time span that is being marked, in pixels

  function take(given) {
    data = given;
    ({ tasks, groups, batches } = data);
    count = tasks.uid.length;
    [RUNNING, FAILED, CANCELED] = ["RUNNING", "FAILED", "CANCELED"].map((s) => data.states.indexOf(s));
    if (whole) showAll();
    page.byId("batches-panel").hidden = !batches.length;
  }

  function showAll() {
    whole = true;
    Object.assign(view, { from: data.from, to: Math.max(data.seconds, data.from + 1e-6) });
  }

  function show(from, to) {
    if (to - from <= 1e-6) return;
    whole = false;
    Object.assign(view, { from, to });
  }

  const style = getComputedStyle(document.documentElement); // follows the color scheme
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const backendColor = (backend) => color(`c${backend % 7}`);

  function open(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    paint.font = "11px system-ui, sans-serif";
    paint.textBaseline = "middle";
    return { paint, width, height, plot: width - LEFT - RIGHT, bottom: height - AXIS };
  }

  function ticks(from, to, most) {
    const rough = (to - from) / most || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const found = [];
    for (let n = Math.ceil(from / step); n * step <= to; n++) found.push(n * step);
    return found;
  }

  const number = (n) => n.toLocaleString("en", { maximumSignificantDigits: 3 });
  const xOf = (panel, time) => LEFT + ((time - view.from) / (view.to - view.from)) * panel.plot;
  const timeAt = (plot, x) => view.from + ((x - LEFT) / plot) * (view.to - view.from);

  function grid(panel, top, unit) {
    const { paint, width, bottom } = panel;
    paint.strokeStyle = color("line");
    paint.fillStyle = color("soft");
    paint.textAlign = "right";
    for (const value of ticks(0, top, 4)) {
      const y = bottom - (value / top) * (bottom - TOP);
      paint.strokeRect(LEFT, y, width - LEFT - RIGHT, 0);
      paint.fillText(number(value) + (unit || ""), LEFT - 8, y);
    }
  }

  function timeAxis(panel) {
    const { paint, height } = panel;
    paint.fillStyle = color("soft");
    paint.textAlign = "center";
    const marks = ticks(view.from, view.to, Math.max(2, panel.plot / 90));
    for (const time of marks) {
      paint.fillText(time === 0 ? "0" : duration(time), xOf(panel, time), height - AXIS / 2);
    }
    if (marked) {
      paint.globalAlpha = 0.15;
      paint.fillStyle = color("ink");
      paint.fillRect(Math.min(...marked), 0, Math.abs(marked[1] - marked[0]), height - AXIS);
      paint.globalAlpha = 1;
    }
  }

  function clip(panel) {
    panel.paint.save();
    panel.paint.beginPath();
    panel.paint.rect(LEFT, 0, panel.plot, panel.bottom + 1);
    panel.paint.clip();
  }

  function line(panel, points, top, stroke, dashes) {
    const { paint, bottom } = panel;
    paint.strokeStyle = stroke;
    paint.lineWidth = 1.5;
    paint.setLineDash(dashes || []);
    paint.beginPath();
    for (const [x, value] of points) paint.lineTo(x, bottom - (value / top) * (bottom - TOP));
    paint.stroke();
    paint.setLineDash([]);
    paint.lineWidth = 1;
  }

  const ended = (i) => tasks.ended[i] ?? data.seconds;

  function drawRate(canvas) {
    const panel = open(canvas, 130);
    let inside = 0;
    for (let i = 0; i < count; i++) {
      if (tasks.ended[i] >= view.from && tasks.ended[i] <= view.to) inside++;
    }
    const bins = Math.round(Math.min(panel.plot / 3, Math.max(12, 4 * Math.sqrt(inside))));
    const width = (view.to - view.from) / bins;
    const sums = data.backends.map(() => new Float64Array(bins));
    for (let i = 0; i < count; i++) {
      const bin = Math.floor((tasks.ended[i] - view.from) / width);
      if (tasks.ended[i] === null || bin < 0 || tasks.ended[i] > view.to) continue;
      sums[groups[tasks.group[i]].backend][Math.min(bin, bins - 1)] += 1 / width;
    }
    const top = 1.1 * (Math.max(0, ...sums.map((s) => Math.max(...s))) || 1);
    grid(panel, top);
    sums.forEach((sum, b) => {
      const points = [];
      sum.forEach((value, bin) => {
        for (const edge of [bin, bin + 1]) points.push([LEFT + (edge / bins) * panel.plot, value]);
      });
      line(panel, points, top, backendColor(b));
    });
    timeAxis(panel);
  }

  /** Return how many of the given time spans cover each pixel, by backend. */
  function covering(panel, first, last) {
    const columns = Math.max(1, Math.floor(panel.plot));
    const steps = data.backends.map(() => new Int32Array(columns + 2));
    const column = (time) => {
      const x = Math.floor(((time - view.from) / (view.to - view.from)) * columns);
      return Math.max(0, Math.min(columns + 1, x));
    };
    for (let i = 0; i < count; i++) {
      const [from, to] = [first(i), last(i)];
      if (!(to > from) || to < view.from || from > view.to) continue;
      const of = steps[groups[tasks.group[i]].backend];
      of[column(from)]++;
      of[Math.min(columns + 1, column(to) + 1)]--;
    }
    return steps.map((step) => {
      let sum = 0;
      return Array.from(step.subarray(0, columns), (change, x) => [LEFT + x, (sum += change)]);
    });
  }

  function drawLoad(canvas) {
    const panel = open(canvas, 130);
    const running = covering(panel, (i) => tasks.began[i], ended);
    const waiting = covering(panel, (i) => tasks.submitted[i], (i) => tasks.began[i]);
    let top = 1;
    for (const points of [...running, ...waiting]) for (const [, value] of points) top = Math.max(top, value);
    top *= 1.1;
    grid(panel, top);
    running.forEach((points, b) => line(panel, points, top, backendColor(b)));
    waiting.forEach((points, b) => line(panel, points, top, backendColor(b), [4, 3]));
    timeAxis(panel);
  }

  function rows() {
    const most = Math.max(16, Math.min(180, 640 / groups.length));
    let y = TOP;
    return groups.map((group) => {
      const lane = Math.min(16, most / group.lanes);
      const row = { y, lane, height: Math.max(14, lane * group.lanes) };
      y += row.height + 6;
      return row;
    });
  }

  /** Return a text, shortened to a width in pixels. */
  function fitting(paint, text, width) {
    if (paint.measureText(text).width <= width) return text;
    let short = text;
    while (short && paint.measureText(`${short}…`).width > width) short = short.slice(0, -1);
    return `${short}…`;
  }

  function drawTimeline(canvas) {
    const places = rows();
    const last = places[places.length - 1];
    const panel = open(canvas, (last ? last.y + last.height : TOP) + 4 + AXIS);
    const { paint } = panel;
    groups.forEach((group, g) => {
      const { y, height } = places[g];
      paint.fillStyle = color("soft");
      paint.textAlign = "right";
      paint.fillText(fitting(paint, group.label, LEFT - 14), LEFT - 8, y + Math.min(height / 2, 40));
      paint.fillStyle = color("line");
      paint.fillRect(LEFT, y + height + 2.5, panel.plot, 0.5);
    });
    clip(panel);
    const [failed, canceled] = [color("failed"), color("canceled")];
    const colors = data.backends.map((_, b) => backendColor(b));
    for (const onTop of [false, true]) {
      for (let i = 0; i < count; i++) {
        const state = tasks.state[i];
        if (tasks.lane[i] < 0 || (state === FAILED) !== onTop) continue;
        const x = xOf(panel, tasks.began[i]), end = xOf(panel, ended(i));
        if (end < LEFT || x > panel.width - RIGHT) continue;
        const { y, lane } = places[tasks.group[i]];
        const wide = Math.max(end - x - (end - x > 4 ? 0.5 : 0), 1);
        const high = onTop ? Math.max(lane > 3 ? lane - 1 : lane, 1) : lane > 3 ? lane - 1 : lane;
        paint.fillStyle = state === FAILED ? failed : state === CANCELED ? canceled : colors[groups[tasks.group[i]].backend];
        paint.globalAlpha = state === RUNNING ? 0.45 : 1;
        paint.fillRect(x, y + tasks.lane[i] * lane, wide, high);
      }
    }
    paint.restore();
    timeAxis(panel);
  }

  function drawBatches(canvas) {
    const panel = open(canvas, 130);
    const top = 1.1 * Math.max(1, ...batches.map((of) => of.size.reduce((a, b) => Math.max(a, b), 0)));
    grid(panel, top);
    clip(panel);
    for (const of of batches) {
      const size = of.time.length > 500 ? 2 : 5;
      panel.paint.fillStyle = backendColor(of.backend);
      panel.paint.globalAlpha = 0.7;
      of.time.forEach((time, i) => {
        const y = panel.bottom - (of.size[i] / top) * (panel.bottom - TOP);
        panel.paint.fillRect(xOf(panel, time) - size / 2, y - size / 2, size, size);
      });
    }
    panel.paint.restore();
    timeAxis(panel);
  }

  function drawLatency(canvas) {
    const panel = open(canvas, 180);
    const { paint } = panel;
    const sorted = data.backends.map(() => []);
    for (let i = 0; i < count; i++) {
      if (tasks.ended[i] === null) continue;
      sorted[groups[tasks.group[i]].backend].push(Math.max(tasks.ended[i] - tasks.submitted[i], 1e-6));
    }
    sorted.forEach((latencies) => latencies.sort((a, b) => a - b));
    grid(panel, 100, " %");
    const kept = sorted.filter((latencies) => latencies.length);
    if (!kept.length) return;
    const low = Math.floor(Math.log10(Math.min(...kept.map((l) => l[0]))) - 1e-9);
    const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...kept.map((l) => l[l.length - 1])))));
    const x = (seconds) => LEFT + ((Math.log10(seconds) - low) / (high - low)) * panel.plot;
    paint.fillStyle = color("soft");
    paint.textAlign = "center";
    for (let power = low; power <= high; power++) {
      for (const n of high - low > 4 || panel.plot < 480 ? [1] : [1, 2, 5]) {
        const seconds = n * 10 ** power;
        if (power < high || n === 1) paint.fillText(duration(seconds), x(seconds), panel.height - AXIS / 2);
      }
    }
    sorted.forEach((latencies, b) => {
      if (!latencies.length) return;
      const step = Math.max(1, Math.floor(latencies.length / 2000));
      const points = [];
      for (let i = 0; i < latencies.length; i += step) {
        for (const ended of [i, i + 1]) points.push([x(latencies[i]), (100 * ended) / latencies.length]);
      }
      points.push([x(latencies[latencies.length - 1]), 100], [panel.width - RIGHT, 100]);
      line(panel, points, 100, backendColor(b));
    });
  }

  const panels = { rate: drawRate, load: drawLoad, timeline: drawTimeline, batches: drawBatches, latency: drawLatency };
  const canvases = Object.keys(panels).map((id) => document.getElementById(id)).filter(Boolean);
  let asked = false;

  function draw() {
    if (asked || !data) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      LEFT = document.body.clientWidth < 600 ? 84 : 130;
      for (const canvas of canvases) if (canvas.clientWidth) panels[canvas.id](canvas);
    });
  }

  function taskAt(canvas, x, y) {
    const plot = canvas.clientWidth - LEFT - RIGHT;
    const places = rows();
    const g = places.findIndex((row) => y >= row.y && y < row.y + row.height + 6);
    if (g < 0 || x < LEFT) return -1;
    const time = timeAt(plot, x), slack = (3 / plot) * (view.to - view.from);
    const lane = (y - places[g].y) / places[g].lane, reach = Math.max(0, 2 / places[g].lane);
    let best = -1, distance = Infinity;
    for (let i = 0; i < count; i++) {
      if (tasks.group[i] !== g || tasks.lane[i] < 0) continue;
      if (tasks.began[i] - slack > time || ended(i) + slack < time) continue;
      const away = Math.abs(tasks.lane[i] + 0.5 - lane);
      if (away <= 0.5 + reach && away < distance) [best, distance] = [i, away];
    }
    return best;
  }

  function describe(i) {
    const lines = [`${tasks.uid[i]}: ${data.names[tasks.name[i]]}`, `${groups[tasks.group[i]].label}, ${data.states[tasks.state[i]]}`];
    if (tasks.began[i] > tasks.submitted[i]) lines.push(`waited ${duration(tasks.began[i] - tasks.submitted[i])}`);
    lines.push(`${tasks.ended[i] === null ? "active for" : "took"} ${duration(ended(i) - tasks.began[i])}, started at ${duration(tasks.began[i])}`);
    if (tasks.reason[i] >= 0) lines.push(data.reasons[tasks.reason[i]]);
    return lines.join("\n");
  }

  const tip = document.getElementById("tip");
  function point(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const i = marked || !data ? -1 : taskAt(event.currentTarget, event.clientX - box.left, event.clientY - box.top);
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.textContent = describe(i);
    tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
  }

  for (const canvas of canvases.filter((one) => one.id !== "latency")) {
    const at = (event) => Math.max(LEFT, Math.min(canvas.clientWidth - RIGHT, event.clientX - canvas.getBoundingClientRect().left));
    canvas.addEventListener("pointerdown", (event) => {
      if (!data) return;
      marked = [at(event), at(event)];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!marked) return;
      marked[1] = at(event);
      draw();
    });
    canvas.addEventListener("pointerup", () => {
      if (!marked) return;
      const plot = canvas.clientWidth - LEFT - RIGHT;
      const [from, to] = marked.map((x) => timeAt(plot, x)).sort((a, b) => a - b);
      if (Math.abs(marked[1] - marked[0]) > 4) show(from, to);
      marked = null;
      draw();
    });
    canvas.addEventListener("dblclick", () => {
      showAll();
      draw();
    });
    canvas.addEventListener("keydown", (event) => {
      const span = view.to - view.from;
      const steps = {
        ArrowLeft: [-span / 5, -span / 5], ArrowRight: [span / 5, span / 5],
        "+": [span / 4, -span / 4], "=": [span / 4, -span / 4], "-": [-span / 2, span / 2],
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in steps || event.key === "0")) return;
      event.preventDefault();
      if (event.key === "0") showAll();
      else show(view.from + steps[event.key][0], view.to + steps[event.key][1]);
      draw();
    });
  }
  const timeline = document.getElementById("timeline");
  if (timeline) {
    timeline.addEventListener("pointermove", point);
    timeline.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  page.charts = (given) => {
    take(given);
    draw();
  };
  if (page.data) page.charts(page.data);
})();
