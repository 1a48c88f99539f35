// What a page for reading needs of a notebook: guesses before answers, and exercises that check a value.
(() => {
  const after = (element) => (element ? [element, ...after(element.nextElementSibling)] : []);

  // What follows a guess, up to the next one or the next section, waits until the reader has guessed.
  const guess = (form) => {
    const waiting = after(form.closest(".output").nextElementSibling);
    for (const next of after(form.closest(".cell").nextElementSibling)) {
      if (next.matches("section") || next.querySelector(".qtutor-guess")) break;
      waiting.push(next);
    }
    waiting.forEach((element) => { element.hidden = true; });
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = form.querySelector("input").value.trim();
      waiting.forEach((element) => { element.hidden = false; });
      const told = waiting.flatMap((element) => [...element.querySelectorAll("pre")])
        .find((element) => element.textContent.includes("You made no guess;"));
      if (told && given) told.textContent = told.textContent.replace("You made no guess;", `You guessed ${given};`);
      form.querySelector("button").disabled = true;
      dispatchEvent(new Event("resize"));
    });
  };

  // As Python reads it: a word with or without quotes, a number with a comma for thousands or for the point.
  const read = (text, words) => {
    const bare = text.replace(/^["'\s(]+|["'\s).]+$/g, "").replace("\u2212", "-");
    if (words) return bare.toLowerCase();
    return Number(/^-?\d{1,3}([,_ ]\d{3})+$/.test(bare) ? bare.replace(/[,_ ]/g, "") : bare.replace(",", "."));
  };

  const exercise = (form) => {
    const bytes = Uint8Array.from(atob(form.dataset.exercise), (letter) => letter.charCodeAt(0));
    const { words, answer, mistakes, hints, because, tolerance } = JSON.parse(new TextDecoder().decode(bytes));
    const field = form.querySelector("input");
    const says = form.querySelector("[role=status]");
    const close = (a, b) => (words ? a === b.toLowerCase() : Math.abs(a - b) <= tolerance * (1 + Math.abs(b)));
    let hinted = 0;
    const say = (text) => { says.textContent = text; };
    form.hidden = false;
    form.querySelector("[name=hint]").addEventListener("click", () => {
      const number = Math.min(hinted++, hints.length - 1);
      say(`Hint ${number + 1} of ${hints.length}: ${hints[number]}`);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = read(field.value, words);
      const known = mistakes.find(([wrong]) => close(given, wrong));
      if (field.value.trim() === "") say("… Open. Write your answer, then check it.");
      else if (close(given, answer)) say(`✓ Right. ${because}`);
      else if (known) say(`✗ Not yet. ${known[1]}`);
      else if (Number.isNaN(given)) say("✗ Not yet. The answer is a number.");
      else say(`✗ Not yet. ${field.value.trim()} is not it. ${hints[0]}`);
    });
  };

  addEventListener("DOMContentLoaded", () => {
    document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Lessons");
    document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
    document.querySelectorAll(".output:has(table)").forEach((output) => { output.tabIndex = 0; });  // it may scroll
    document.querySelectorAll("th:empty, th:has(> p:empty:only-child)").forEach((corner) => {
      corner.replaceWith(document.createElement("td"));  // it heads nothing
    });
    document.querySelectorAll(".qtutor-guess").forEach(guess);
    document.querySelectorAll(".qtutor-exercise").forEach(exercise);
  });
})();
