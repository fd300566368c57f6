// The connection of a live page to the server in the program.
if (page.live) (() => {
  const status = page.byId("status"), age = page.byId("charts-age");
  const PAUSES = 160; // while tasks are active, a search that takes a second is repeated by itself after 160 s
  let drawn = 0, ended = false;

  /** Replace the content of an element; what is open or has the focus stays so. */
  function replace(id, html) {
    const target = page.byId(id);
    if (target.dataset.html === html) return;
    target.dataset.html = html;
    const open = new Map([...target.querySelectorAll("details")].map((one) => [one.dataset.key, one.open]));
    const focused = target.contains(document.activeElement) ? document.activeElement.closest("details")?.dataset.key : undefined;
    const [left] = [...target.querySelectorAll(".wide")].map((one) => one.scrollLeft);
    target.innerHTML = html; // the server has escaped all text in it
    for (const one of target.querySelectorAll("details")) {
      if (open.has(one.dataset.key)) one.open = open.get(one.dataset.key);
      if (focused !== undefined && one.dataset.key === focused) one.querySelector("summary").focus({ preventScroll: true });
    }
    if (left) target.querySelector(".wide").scrollLeft = left;
  }

  async function redraw(now) {
    try {
      const response = await fetch(now ? "charts?now=1" : "charts");
      if (!response.ok) return;
      page.data = await response.json();
    } catch {
      return;
    }
    drawn = performance.now();
    age.textContent = "";
    page.charts(page.data);
  }

  function replaceAll(parts) {
    for (const [id, html] of Object.entries(parts)) replace(id, html);
  }

  function onSummary(event) {
    const { parts, busy } = JSON.parse(event.data);
    replaceAll(parts);
    status.textContent = "live";
    status.className = "live";
    const seconds = (performance.now() - drawn) / 1000;
    age.textContent = drawn && seconds > 5 ? `drawn ${duration(Math.round(seconds))} ago` : "";
    const { at, seconds: took, busy: searching } = page.searching;
    if (!searching && performance.now() - at > Math.max(1000, busy ? 1000 * PAUSES * took : 0) && !document.hidden) page.refreshTasks();
  }

  const events = new EventSource("events");
  events.addEventListener("summary", onSummary);
  events.addEventListener("graph", (event) => page.graph(JSON.parse(event.data)));
  events.addEventListener("charts", () => { if (!document.hidden) redraw(false); });
  events.addEventListener("end", (event) => {
    ended = true;
    events.close();
    page.live = false; // from now on the table searches the tasks of the charts
    const { summary, graph, charts } = JSON.parse(event.data);
    page.data = charts;
    replaceAll(summary.parts);
    page.graph(graph);
    age.textContent = "";
    page.byId("charts-now").hidden = true;
    page.charts(page.data);
    page.refreshTasks();
    status.textContent = "the run has ended";
    status.className = "";
  });
  events.addEventListener("error", () => {
    if (ended) return;
    status.textContent = "not connected: the program has ended, or does not respond";
    status.className = "lost";
  });
  page.byId("charts-now").addEventListener("click", () => redraw(true));
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !ended) redraw(false); });
  redraw(false);
})();
