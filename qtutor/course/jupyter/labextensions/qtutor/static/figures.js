// JupyterLab loads this as a prebuilt extension. Plotly draws without names and without a way in for the keyboard:
// here every figure gets a name from its titles, and its tools become a toolbar (one tab stop, arrows within).
// JupyterLab takes the arrows for itself, also those that choose from a list: here the list keeps them.
// It breaks a long printed line within a word: here between words.
// And anywidget gives up for good on a widget that the page has not loaded within two seconds, figures and sentences
// alike: they open, and never change again. A busy computer takes longer: here it gets two minutes.

const timeout = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (milliseconds) => timeout(milliseconds === 2000 ? 120000 : milliseconds);

function name(plot) {
  const text = (selector) => [...plot.querySelectorAll(selector)].map((e) => e.textContent.trim()).filter(Boolean);
  const titles = [...text(".gtitle"), ...text(".annotation-text")];
  const axes = text(".g-xtitle, .g-ytitle, .g-x2title, .g-y2title, .g-x3title, .g-y3title");
  return [...new Set([titles.join(". ") || "Figure", axes.length ? `Axes: ${axes.join("; ")}` : ""])].filter(Boolean).join(". ");
}
function makeToolbar(bar) {
  bar.setAttribute("role", "toolbar");
  bar.setAttribute("aria-label", "Figure tools");
  bar.querySelectorAll(".modebar-btn").forEach((button, i) => {
    button.setAttribute("role", "button");
    button.setAttribute("aria-label", button.dataset.title || "Tool");
    button.tabIndex = i ? -1 : 0;
  });
}
function onKey(event) {
  if (event.target.matches?.(".jp-OutputArea select")) {
    if (/^(Arrow|Home|End|Page)/.test(event.key)) event.stopImmediatePropagation();
    return;
  }
  const bar = event.target.closest?.(".modebar[role=toolbar]");
  if (!bar) return;
  const buttons = [...bar.querySelectorAll(".modebar-btn")];
  const at = buttons.indexOf(event.target);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") event.target.click();
  else if (next === undefined) return;
  else {
    const to = buttons[(next + buttons.length) % buttons.length];
    buttons.forEach((button) => { button.tabIndex = button === to ? 0 : -1; });
    to.focus();
  }
  event.preventDefault();
  event.stopImmediatePropagation();
}
function visit() {
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    if (!plot.closest(".qtutor-explorer")) {
      plot.setAttribute("role", "figure");
      plot.setAttribute("aria-label", name(plot));
      const output = plot.closest(".jp-OutputArea-output");
      if (output) output.tabIndex = output.scrollWidth > output.clientWidth ? 0 : -1;
    }
    plot.querySelectorAll(".modebar:not([role])").forEach(makeToolbar);
  }
  // The corner of a pandas table heads nothing.
  for (const head of document.querySelectorAll(".jp-RenderedHTML th")) {
    if (!head.textContent.trim()) head.setAttribute("role", "cell");
  }
}
function activate() {
  const style = document.createElement("style");
  style.textContent = `
    .jp-RenderedText pre { word-break: normal; overflow-wrap: anywhere; }
    .js-plotly-plot .modebar:focus-within { opacity: 1; }
    .js-plotly-plot .modebar-btn:focus-visible { outline: 2px solid #0072B2; }
    .jp-OutputArea-output > .js-plotly-plot, .jp-OutputArea-output > .jp-RenderedPlotly { min-width: 560px; }`;
  document.head.appendChild(style);
  let waiting = 0;
  const later = () => { clearTimeout(waiting); waiting = setTimeout(visit, 200); };
  new MutationObserver(later).observe(document.body, { childList: true, subtree: true });
  window.addEventListener("resize", later);
  window.addEventListener("keydown", onKey, true); // before JupyterLab takes the arrows for itself
}
window._JUPYTERLAB = window._JUPYTERLAB || {};
window._JUPYTERLAB.qtutor = {
  init: () => {},
  get: async () => () => ({ __esModule: true, default: { id: "qtutor:figures", autoStart: true, activate } }),
};
