// Evaluates plotly once for all figures of a page: they share the model that holds its text.
async function plotly(model) {
  const library = await model.widget_manager.get_model(model.get("library").slice("IPY_MODEL_".length));
  library.plotly ??= import(URL.createObjectURL(new Blob([library.get("source")], { type: "text/javascript" })));
  return (await library.plotly).default();
}
export default () => {
  let figure;
  return {
    async initialize({ model }) {
      figure = await plotly(model);
      await figure.initialize({ model });
    },
    render: (place) => figure.render(place),
  };
};
