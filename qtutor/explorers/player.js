// Plays recorded explorers: finds the state that the controls stand for, and shows what Python computed for it.
(() => {
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const make = (tag, attributes = {}, ...inside) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...inside);
    return element;
  };
  const put = (target, path, value) => {
    const last = path[path.length - 1];
    for (const step of path.slice(0, -1)) target = target[step] ??= {};
    if (value === undefined) delete target[last];
    else target[last] = value;
  };

  let count = 0;

  class Player {
    constructor(root, tape) {
      Object.assign(this, { root, tape, id: `qtutor-${count++}`, places: [...tape.start], asked: false, kept: {} });
      this.columns = Object.entries(tape.columns).map(([path, [values, which]]) => [JSON.parse(path), values, which]);
      this.sentence = make("p", { className: "qtutor-sentence", role: "status", id: `${this.id}-says` });
      this.plot = make("div", { role: "figure", ariaLabel: "Figure" });
      this.plot.setAttribute("aria-describedby", this.sentence.id);
      this.missions = Object.keys(tape.said).filter((name) => name !== "sentence");
      this.verdict = make("p", { className: "qtutor-verdict", role: "status" });
      const controls = make("div", { className: "qtutor-controls" }, ...tape.axes.map((axis, i) => this.control(axis, i)));
      const buttons = make("div", { className: "qtutor-buttons" }, ...this.buttons());
      const fewer = tape.axes.filter((axis) => axis.kind === "slider" && !axis.all).map((axis) => axis.label);
      const note = fewer.length ? `Fewer stops than in the notebook: ${fewer.join("; ")}.` : "";
      const frame = make("div", { className: "qtutor-drawing", tabIndex: 0 }, this.plot);
      root.append(controls, buttons, this.sentence, this.verdict, frame, make("p", { className: "qtutor-note" }, note));
      this.show(true);
    }

    control(axis, i) {
      const id = `${this.id}-${i}`;
      const move = (place) => { this.places[i] = place; this.later(); };
      if (axis.kind === "slider") {
        const says = make("span", { className: "qtutor-value", ariaHidden: "true" });  // the slider's own value says it
        const slider = make("input", { type: "range", id, min: 0, max: axis.texts.length - 1, step: 1 });
        slider.addEventListener("input", () => move(slider.valueAsNumber));
        axis.follow = (place) => {
          slider.value = place;
          slider.setAttribute("aria-valuetext", axis.texts[place]);
          says.textContent = axis.texts[place];
        };
        return make("div", { className: "qtutor-control" }, make("label", { htmlFor: id }, axis.label), slider, says);
      }
      if (axis.kind === "switch") {
        const box = make("input", { type: "checkbox", id });
        box.addEventListener("input", () => move(Number(box.checked)));
        axis.follow = (place) => { box.checked = place === 1; };
        return make("div", { className: "qtutor-control" }, box, make("label", { htmlFor: id }, axis.label));
      }
      const type = axis.kind === "several" ? "checkbox" : "radio";
      const options = axis.texts.map((text, j) => make("input", { type, name: id, id: `${id}-${j}`, value: j }));
      const mask = () => options.reduce((sum, option, j) => sum + (option.checked ? 2 ** j : 0), 0);
      options.forEach((option, j) =>
        option.addEventListener("input", () => move(type === "radio" ? j : axis.masks.indexOf(mask()))));
      axis.follow = (place) => {
        if (place < 0) return;
        options.forEach((option, j) => {
          option.checked = type === "radio" ? j === place : Math.floor(axis.masks[place] / 2 ** j) % 2 === 1;
        });
      };
      const labels = options.map((option, j) => make("label", {}, option, axis.texts[j]));
      return make("fieldset", { className: "qtutor-control" }, make("legend", {}, axis.label), ...labels);
    }

    buttons() {
      const presets = Object.entries(this.tape.presets).map(([label, places]) => {
        const button = make("button", { type: "button" }, label);
        button.addEventListener("click", () => { this.places = [...places]; this.later(); });
        return button;
      });
      const missions = this.missions.map((name) => {
        const button = make("button", { type: "button" }, `Check mission: ${name.replaceAll("_", " ")}`);
        button.addEventListener("click", () => { this.mission = name; this.judge(); });
        return button;
      });
      return [...presets, ...missions];
    }

    // The number of the state, or -1 where a choice of several was not recorded.
    number() {
      if (this.places.some((place) => place < 0)) return -1;
      return this.tape.axes.reduce((sum, axis, i) => sum * this.length(axis) + this.places[i], 0);
    }

    length(axis) { return axis.kind === "several" ? axis.masks.length : axis.texts.length; }

    said(name) {
      const [values, which] = this.tape.said[name];
      return values[which[this.number()]];
    }

    // At most one redraw a frame: the states between are dropped.
    later() {
      this.mission = undefined;
      if (this.asked) return;
      this.asked = true;
      requestAnimationFrame(() => { this.asked = false; this.show(false); });
    }

    judge() {
      if (this.number() < 0) return;
      const [outcome, text] = this.said(this.mission);
      this.verdict.textContent = `${outcome === "right" ? "✓ Right" : "✗ Not yet"}. ${text}`;
      this.verdict.dataset.outcome = outcome;
    }

    // A trace that keeps points shows those of earlier states too: all of them, or the leftmost.
    gathered(trace, i, number) {
      const keeps = trace.meta?.keeps;
      if (!keeps) return trace;
      const points = (this.kept[i] ??= new Map());
      if (trace.x.length) points.set(number, [trace.x[0], trace.y[0]]);
      let shown = [...points.values()];
      if (keeps === "leftmost") shown = shown.sort(([a], [b]) => a - b).slice(0, 1);
      return { ...trace, x: shown.map(([x]) => x), y: shown.map(([, y]) => y) };
    }

    show(first) {
      this.tape.axes.forEach((axis, i) => axis.follow(this.places[i]));
      if (!this.mission) this.verdict.textContent = "";
      const number = this.number();
      if (number < 0) {
        this.sentence.textContent = "This choice was not recorded: choose fewer, or open the notebook.";
        return;
      }
      const { data, layout } = this.tape.figure;
      for (const [path, values, which] of this.columns) put(this.tape.figure, path, values[which[number]]);
      const fresh = data.map((trace, i) => this.gathered({ ...trace }, i, number));
      const options = { responsive: true, displayModeBar: false };
      const draw = first ? Plotly.newPlot : Plotly.react;
      draw(this.plot, fresh, { ...layout, autosize: true }, options);
      this.sentence.textContent = this.said("sentence");
      this.root.dataset.state = number;
    }
  }

  const start = async () => {
    for (const root of document.querySelectorAll(".qtutor-player")) {
      const tape = await unpack(root.querySelector("script").textContent.trim());
      root.player = new Player(root, tape);
    }
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
})();
