// The table of tasks: the server of a live page searches, a file searches its own data.
(() => {
  const ROWS = 50;
  const [text, state, order] = ["find-text", "find-state", "find-order"].map(page.byId);
  const body = page.byId("tasks");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  let offset = 0, asked = 0, timer = 0, shown = "";
  page.searching = { seconds: 0, at: 0, busy: false };

  const query = () => ({ text: text.value, state: state.value, order: order.value, offset, limit: ROWS });

  function findHere({ text, state, order, offset, limit }) {
    const { tasks, names, groups, backends, reasons, states } = page.data;
    const wanted = text.toLowerCase(), found = [];
    const reason = (i) => (tasks.reason[i] < 0 ? "" : reasons[tasks.reason[i]]);
    const place = (i) => {
      const { backend, label } = groups[tasks.group[i]];
      return label === backends[backend] ? "" : label.slice(backends[backend].length + 2);
    };
    for (let i = 0; i < tasks.uid.length; i++) {
      if (state && states[tasks.state[i]] !== state) continue;
      if (wanted && ![tasks.uid[i], names[tasks.name[i]], place(i), reason(i)].some((one) => one.toLowerCase().includes(wanted))) continue;
      found.push(i);
    }
    const end = (i) => tasks.ended[i] ?? page.data.seconds;
    const ran = (i) => end(i) - tasks.began[i], waited = (i) => tasks.began[i] - tasks.submitted[i];
    const key = { latest: end, longest: ran, waited }[order];
    found.sort((a, b) => key(b) - key(a));
    const row = (i) => [
      tasks.uid[i], names[tasks.name[i]], backends[groups[tasks.group[i]].backend], place(i), states[tasks.state[i]],
      duration(Math.max(waited(i), 0)), tasks.lane[i] < 0 ? "" : duration(ran(i)), reason(i),
    ];
    return { found: found.length, kept: tasks.uid.length, rows: found.slice(offset, offset + limit).map(row) };
  }

  async function find() {
    const mine = ++asked;
    page.searching.busy = true;
    let answer;
    if (page.live) {
      try {
        const response = await fetch(`tasks?${new URLSearchParams(query())}`);
        if (!response.ok) throw new Error(response.statusText);
        answer = await response.json();
      } catch {
        page.searching.busy = mine !== asked;
        return; // the run has ended, and the last rows stay
      }
      page.searching = { seconds: answer.seconds, at: performance.now(), busy: mine !== asked };
    } else if (page.data) {
      answer = findHere(query());
    }
    if (answer && mine === asked) show(answer);
  }

  function show({ found, kept, rows }) {
    if (offset && offset >= found) {
      offset = Math.max(0, Math.floor((found - 1) / ROWS) * ROWS);
      find();
      return;
    }
    const now = JSON.stringify([found, kept, rows]);
    if (now === shown) return;
    shown = now;
    const number = (n) => n.toLocaleString("en");
    page.byId("found").textContent = found === kept ? `${number(kept)} tasks` : `${number(found)} of ${number(kept)} tasks`;
    page.byId("tasks-at").textContent = found ? `${number(offset + 1)} to ${number(offset + rows.length)}` : "";
    page.byId("tasks-back").disabled = offset === 0;
    page.byId("tasks-on").disabled = offset + rows.length >= found;
    body.replaceChildren(...rows.flatMap(drawn));
    if (!rows.length) {
      const cell = element("td", "note", "No task was found.");
      cell.colSpan = 7;
      const row = element("tr");
      row.append(cell);
      body.append(row);
    }
  }

  function drawn(values) {
    const reason = values[7];
    const row = element("tr", reason ? "with-reason" : "");
    values.slice(0, 7).forEach((value, i) => {
      const cell = element(i ? "td" : "th", i === 4 ? `state ${value.toLowerCase()}` : "", value);
      if (i < 2 || i === 3) cell.title = value;
      row.append(cell);
    });
    if (!reason) return [row];
    const cell = element("td", "reason", reason);
    cell.colSpan = 7;
    const second = element("tr", "reason-row");
    second.append(cell);
    return [row, second];
  }

  function again() {
    offset = 0;
    clearTimeout(timer);
    timer = setTimeout(find, 150);
  }

  text.addEventListener("input", again);
  for (const one of [state, order]) one.addEventListener("change", again);
  page.byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    again();
  });
  page.byId("tasks-back").addEventListener("click", () => {
    offset = Math.max(0, offset - ROWS);
    find();
  });
  page.byId("tasks-on").addEventListener("click", () => {
    offset += ROWS;
    find();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-find]");
    if (link && link.tagName === "BUTTON") page.find(link.dataset.find);
  });

  page.find = (wanted) => {
    text.value = wanted;
    state.value = "";
    offset = 0;
    find();
    page.byId("tasks-section").scrollIntoView({ behavior: still.matches ? "auto" : "smooth", block: "start" });
    text.focus({ preventScroll: true });
  };
  page.refreshTasks = find;
  find();
})();
