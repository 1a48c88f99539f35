// What a page for reading needs of a notebook: guesses before answers, and exercises that check a value.
(() => {
  const outcomes = { right: "✓ Right", wrong: "✗ Not yet", note: "Hint" };

  // What follows a guess, up to the next one or the next section, waits until the reader has guessed.
  const guess = (form) => {
    const cell = form.closest(".cell");
    const waiting = [];
    for (let next = cell.nextElementSibling; next; next = next.nextElementSibling) {
      if (next.matches("section") || next.querySelector(".qtutor-guess")) break;
      waiting.push(next);
    }
    waiting.forEach((element) => { element.hidden = true; });
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = form.querySelector("input").value.trim();
      waiting.forEach((element) => { element.hidden = false; });
      const told = waiting.flatMap((element) => [...element.querySelectorAll(".output pre")])
        .find((element) => element.textContent.startsWith("You made no guess;"));
      if (told && given) told.textContent = told.textContent.replace("You made no guess;", `You guessed ${given};`);
      form.querySelector("button").disabled = true;
      dispatchEvent(new Event("resize"));
    });
  };

  const exercise = (form) => {
    const bytes = Uint8Array.from(atob(form.dataset.exercise), (letter) => letter.charCodeAt(0));
    const { words, answer, mistakes, hints, because, tolerance } = JSON.parse(new TextDecoder().decode(bytes));
    const says = form.querySelector("[role=status]");
    const close = (a, b) => (words ? a === b : Math.abs(a - b) <= tolerance * (1 + Math.abs(b)));
    let hinted = 0;
    const say = (outcome, text) => { says.textContent = `${outcomes[outcome]}. ${text}`; says.dataset.outcome = outcome; };
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (event.submitter?.name === "hint") {
        say("note", hints[Math.min(hinted++, hints.length - 1)]);
        return;
      }
      const text = form.querySelector("input").value.trim().replace(/^["']|["']$/g, "").replace(",", ".");
      const given = words ? text : Number(text);
      if (text === "") says.textContent = "Write an answer first.";
      else if (close(given, answer)) say("right", because);
      else say("wrong", (mistakes.find(([wrong]) => close(given, wrong)) ?? [0, hints[0]])[1]);
    });
  };

  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".qtutor-guess").forEach(guess);
    document.querySelectorAll(".qtutor-exercise").forEach(exercise);
  });
})();
