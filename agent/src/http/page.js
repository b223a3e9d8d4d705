// Replaces the page's content each five seconds, and marks a flamegraph button while it samples.
"use strict";

const EVERY_MS = 5000;

async function refresh() {
  if (document.hidden || document.querySelector(".busy") || isSelecting()) return;
  try {
    const response = await fetch("/", { signal: AbortSignal.timeout(EVERY_MS) });
    if (!response.ok) throw new Error(response.statusText);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const open = document.querySelector("details")?.open;
    for (const part of ["header", "main"]) {
      document.querySelector(part).replaceWith(fresh.querySelector(part));
    }
    const details = document.querySelector("details");
    if (details && open) details.open = true;
    document.body.classList.remove("stale");
  } catch {
    // The agent is gone or busy: what is shown is old, and looks it.
    document.body.classList.add("stale");
    const state = document.querySelector(".state");
    state.className = "state bad";
    state.textContent = "unreachable";
  }
}

function isSelecting() {
  return !document.getSelection().isCollapsed || document.activeElement?.matches("main a");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("a.flame");
  if (!button || button.classList.contains("busy")) return;
  const label = button.textContent;
  button.classList.add("busy");
  button.textContent = `Sampling ${button.dataset.seconds} s…`;
  setTimeout(() => {
    button.classList.remove("busy");
    button.textContent = label;
    button.blur();
  }, (Number(button.dataset.seconds) + 1) * 1000);
});

setInterval(refresh, EVERY_MS);
