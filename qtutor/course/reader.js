// What a page for reading needs of a notebook: guesses before answers, and exercises that check a value.
(() => {
  const after = (element) => (element ? [element, ...after(element.nextElementSibling)] : []);

  // What comes next as one reads: sections are walked through.
  const next = (element) => {
    let last = element;
    while (!last.nextElementSibling) {
      last = last.parentElement;
      if (!last.matches("section")) return null;
    }
    last = last.nextElementSibling;
    while (last.matches("section")) last = last.firstElementChild;
    return last;
  };

  const show = (elements, on) => elements.forEach((element) => {
    element.style.display = on ? "" : "none";  // the theme shows some of what has the attribute hidden
  });

  // What follows a guess waits until the reader has guessed: up to the end of the section that answers it, or the next guess.
  const guess = (form) => {
    const waiting = after(form.closest(".output").nextElementSibling);
    const answers = (element) => element.textContent.includes("You made no guess;");
    let answered = waiting.some(answers);
    for (let each = next(form.closest(".cell")); each; each = next(each)) {
      if (each.querySelector(".qtutor-guess") || (answered && each.matches("h1, h2, h3, h4"))) break;
      waiting.push(each);
      answered ||= answers(each);
    }
    show(waiting, false);
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = form.querySelector("input").value.trim();
      show(waiting, true);
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
    [...document.querySelectorAll("th")].filter((cell) => !cell.textContent.trim()).forEach((corner) => {
      corner.replaceWith(document.createElement("td"));  // it heads nothing
    });
    document.querySelectorAll(".qtutor-guess").forEach(guess);
    document.querySelectorAll(".qtutor-exercise").forEach(exercise);
  });
})();
