function describe(explorer, line) {
  for (const slider of explorer.querySelectorAll(".widget-slider")) {
    const label = slider.querySelector(".widget-label").textContent;
    const handles = slider.querySelectorAll(".noUi-handle");
    handles.forEach((handle, i) => {
      const end = handles.length > 1 ? (i ? ", maximum" : ", minimum") : "";
      handle.setAttribute("aria-label", label + end);
    });
    slider.querySelector(".widget-readout").setAttribute("aria-label", label + ", type a value");
  }
  for (const plot of explorer.querySelectorAll(".js-plotly-plot")) {
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", "Figure");
    plot.setAttribute("aria-describedby", line.id);
  }
}
function fit(explorer, line, tries) {
  describe(explorer, line);
  const drawings = [...explorer.querySelectorAll(".js-plotly-plot .main-svg:first-child")];
  const fits = (drawing) => Math.abs(drawing.clientWidth - explorer.clientWidth) < 24;
  if ((drawings.length && drawings.every(fits)) || !tries) return;
  window.dispatchEvent(new Event("resize"));
  setTimeout(() => fit(explorer, line, tries - 1), 150);
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
  return () => { watch.disconnect(); model.off("change:number", show); };
}
export default { render };
