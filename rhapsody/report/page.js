// What the other parts of the script share. The page's template puts all of them into one function.
"use strict";
const page = {
  data: JSON.parse(document.getElementById("data").textContent),
  live: document.body.dataset.live !== undefined,
  byId: (id) => document.getElementById(id),
};

/** Return a new element with a class and a text. */
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function duration(seconds) {
  const units = [["h", 3600], ["min", 60], ["s", 1], ["ms", 1e-3], ["µs", 1e-6]];
  const [unit, size] = units.find(([, size]) => seconds >= size * 0.9995) || units[4];
  return `${+(seconds / size).toPrecision(3)} ${unit}`;
}
