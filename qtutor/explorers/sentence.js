function describe(explorer, line) {
  for (const slider of explorer.querySelectorAll(".widget-slider")) {
    const label = slider.querySelector(".widget-label").textContent;
    const handles = slider.querySelectorAll(".noUi-handle");
    handles.forEach((handle, i) => {
      const end = handles.length > 1 ? (i ? ", maximum" : ", minimum") : "";
      handle.setAttribute("aria-label", label + end);
      // noUiSlider says a position, which is not the value where a slider chooses among options.
      if (handles.length === 1) handle.setAttribute("aria-valuetext", slider.querySelector(".widget-readout").textContent);
    });
    slider.querySelector(".widget-readout").setAttribute("aria-label", label + ", type a value");
  }
  for (const choice of explorer.querySelectorAll(".widget-toggle-buttons")) {
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", choice.querySelector(".widget-label").textContent);
    for (const button of choice.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.classList.contains("mod-active"));
    }
  }
  for (const box of explorer.querySelectorAll(".qtutor-figure")) {
    box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
  }
  for (const plot of explorer.querySelectorAll(".js-plotly-plot")) {
    plot.setAttribute("role", "figure");
    plot.setAttribute("aria-label", "Figure");
    plot.setAttribute("aria-describedby", line.id);
  }
}
function fit(explorer, line, tries) {
  describe(explorer, line);
  const drawings = [...explorer.querySelectorAll(".js-plotly-plot .main-svg:first-child")];
  const fits = (drawing) => Math.abs(drawing.clientWidth - drawing.closest(".js-plotly-plot").clientWidth) < 24;
  if ((drawings.length && drawings.every(fits)) || !tries) return;
  window.dispatchEvent(new Event("resize"));
  setTimeout(() => fit(explorer, line, tries - 1), 150);
}
// Some front ends take the arrows for themselves before a control has seen them.
function keepArrows(event) {
  if (!/^(Arrow|Home|End|Page)/.test(event.key) || !event.target.closest?.(".qtutor-explorer")) return;
  if (event.target.matches(".noUi-handle")) event.preventDefault(); // they leave it then, and the slider moves
  if (event.target.matches("select")) event.stopPropagation();
}
function render({ model, el }) {
  const line = document.createElement("p");
  line.id = `qtutor-sentence-${Math.random().toString(36).slice(2)}`;
  line.className = "qtutor-sentence";
  line.setAttribute("role", "status");
  line.setAttribute("aria-live", "polite");
  const show = () => {
    line.textContent = model.get("text");
    const number = model.get("number");
    const explorer = el.closest(".qtutor-explorer");
    if (explorer) describe(explorer, line);
    requestAnimationFrame(() => { model.set("drawn", number); model.save_changes(); });
  };
  show();
  model.on("change:number", show);
  el.appendChild(line);
  let width = 0;
  const watch = new ResizeObserver(() => {
    const explorer = el.closest(".qtutor-explorer");
    if (!explorer || explorer.clientWidth === width) return;
    watch.observe(explorer);
    width = explorer.clientWidth;
    fit(explorer, line, 40);
  });
  watch.observe(el);
  window.addEventListener("keydown", keepArrows, true);
  return () => {
    watch.disconnect();
    model.off("change:number", show);
    window.removeEventListener("keydown", keepArrows, true);
  };
}
export default { render };
