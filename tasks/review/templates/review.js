// One image at a time. An answer that the server has not confirmed is kept in the browser and sent again.
"use strict";

const KEPT = "scones-review-unsent";
const NAME = "scones-review-name";
const AGAIN_MILLISECONDS = 2000;
// Pictures of fewer pixels a side are enlarged without blurring.
const SMALL = 160;

const element = (id) => document.getElementById(id);
let item = null;
let shownAt = 0;
let busy = false;
// Whether the person sees the image, or that it can't be drawn.
let visible = false;

// A browser may forbid storage; then an answer outlives a dead server, but no closed page.
const memory = new Map();
const kept = {
  get: (key) => { try { return localStorage.getItem(key); } catch { return memory.get(key) ?? null; } },
  set: (key, value) => { try { localStorage.setItem(key, value); } catch { memory.set(key, value); } },
  remove: (key) => { try { localStorage.removeItem(key); } catch { memory.delete(key); } },
};
let reviewer = kept.get(NAME) || "";

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const content = await response.json();
  if (!response.ok) throw new Refused(response.status, content.error);
  return content;
}

// Sends until the server answers: it may be down, or AWS may be out of its reach.
async function insist(path, body) {
  for (;;) {
    try {
      const content = await post(path, body);
      tell(null);
      return content;
    } catch (error) {
      if (error instanceof Refused && error.status !== 503) throw error;
      const reason = error instanceof Refused ? error.message : "the server does not answer";
      tell(`Waiting: ${reason}. Nothing is lost; this page tries again by itself.`);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MILLISECONDS));
    }
  }
}

function tell(problem) {
  element("problem").hidden = problem === null;
  element("problem").textContent = problem || "";
}

function say(text, kind) {
  element("said").textContent = text;
  element("said").className = kind || "";
}

function enable() {
  for (const button of document.querySelectorAll("#answers button")) {
    button.disabled = busy || ((item === null || !visible) && button.id !== "undo");
  }
}

function show(next) {
  item = next;
  visible = false;
  const image = element("image");
  image.hidden = true;
  image.removeAttribute("src");
  element("empty").hidden = item !== null;
  if (item === null) {
    element("empty").textContent = "Nothing is left for you. The page looks again every half minute.";
  } else {
    image.src = `/api/images/${encodeURIComponent(item.inference_id)}`;
  }
}

async function explainImage() {
  if (item === null) return;
  const asked = item;
  const empty = element("empty");
  let status = 0;
  try {
    status = (await fetch(`/api/images/${encodeURIComponent(asked.inference_id)}`)).status;
  } catch {
    status = 503;
  }
  if (asked !== item) return;
  empty.hidden = false;
  if (status === 410) {
    empty.textContent = "This image is gone, or is another one by now. The next one follows.";
    item = null;
    alone(() => next());
  } else if (status === 415) {
    empty.textContent = "This is no picture that can be drawn: “unreadable” is the answer.";
    seen();
  } else {
    empty.textContent = "The image can't be loaded at the moment.";
    setTimeout(() => { if (asked === item) show(item); }, AGAIN_MILLISECONDS);
  }
}

function seen() {
  visible = true;
  shownAt = performance.now();
  enable();
}

const plural = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const percent = (share) => `${(Math.floor(1000 * share) / 10).toFixed(1)} %`;

function count(progress) {
  element("left").textContent = progress.left === 0 ? "Nothing left" : `${plural(progress.left, "image", "images")} left`;
  element("reviewer").textContent = reviewer;
  const whole = progress.left + progress.by_me;
  const share = whole === 0 ? 100 : (100 * progress.by_me) / whole;
  element("done").style.width = `${share}%`;
  document.querySelector(".bar").setAttribute("aria-valuenow", share.toFixed(0));
  const { states, certificate } = progress;
  element("worth-short").textContent = `${progress.by_me.toLocaleString("en")} answered by you; what they are worth`;
  const lines = [
    `The queue: ${states.answered} answered, ${states.open} open, ${states.skipped} skipped, ${states.expired} expired.`,
  ];
  if (progress.waiting > 0) lines.push(`${plural(progress.waiting, "image waits", "images wait")} for another person's answer.`);
  lines.push(
    progress.labels_needed > 0
      ? `${progress.new_labels} of ${plural(progress.labels_needed, "new label", "new labels")} that start a training.`
      : `${plural(progress.new_labels, "new label", "new labels")} for the next training.`,
  );
  if (certificate !== null) {
    const { model_version, target, labels, lower_bound, missing_labels } = certificate;
    const known = labels === 0 ? "no label of it yet" : `${plural(labels, "label", "labels")} of it: at least ${percent(lower_bound)} is right`;
    lines.push(
      `${plural(progress.audits_open, "open image is", "open images are")} of a random sample of what ${model_version} accepted (${known}).` +
      (missing_labels > 0 ? ` ${missing_labels} more labels without an error show ${percent(target)}.` : ""),
    );
  }
  if (progress.strange > 0) lines.push(`${plural(progress.strange, "object", "objects")} below review/ can't be read and are left out.`);
  element("worth-long").replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

async function next(butNot) {
  const content = await insist("/api/next", { reviewer, but_not: butNot || null });
  show(content.item);
  count(content.progress);
}

function outcome(body, content) {
  if (body.answer === "skipped") return say("Skipped. It comes again at the end.");
  const said = body.label === null ? body.answer.replaceAll("_", " ") : body.label.replaceAll("_", " ");
  const model = `${content.predicted_class.replaceAll("_", " ")} (${(content.confidence ?? 0).toFixed(2)})`;
  if (content.agrees) return say(`The last one: you and the model said ${model}.`, "agree");
  return say(`The last one: you said ${said}, the model ${model}.`, "differ");
}

async function deliver(body) {
  kept.set(KEPT, JSON.stringify(body));
  try {
    const content = await insist("/api/answers", body);
    outcome(body, content);
    if (content.progress !== null) count(content.progress);
  } finally {
    kept.remove(KEPT);
  }
}

async function alone(work) {
  if (busy) return;
  busy = true;
  enable();
  try {
    await work();
  } catch (error) {
    tell(error instanceof Refused ? error.message : `The server does not answer, or something is wrong: ${error.message}`);
  } finally {
    busy = false;
    enable();
  }
}

function answer(kind, label) {
  if (item === null || !visible) return;
  const body = {
    reviewer,
    inference_id: item.inference_id,
    answer: kind,
    label,
    seconds: Math.round(performance.now() - shownAt) / 1000,
  };
  alone(async () => {
    await deliver(body);
    await next(kind === "skipped" ? body.inference_id : null);
  });
}

function undo() {
  alone(async () => {
    // Not sent again by itself: the next one would take back another answer.
    const content = await post("/api/undo", { reviewer });
    if (content.item === null) return say("There is nothing to take back.");
    show(content.item);
    count(content.progress);
    say("Taken back. What is in this image?");
  });
}

function begin() {
  alone(async () => {
    const unsent = kept.get(KEPT);
    if (unsent !== null) {
      try {
        await deliver(JSON.parse(unsent));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        tell(`An answer of before was refused: ${error.message}`);
      }
    }
    try {
      await next();
    } catch (error) {
      if (error instanceof Refused && error.status === 422) ask(); // a name that can't be one
      throw error;
    }
  });
}

function ask() {
  const dialog = element("who");
  element("name").value = reviewer || document.body.dataset.reviewer;
  dialog.showModal();
  element("name").select();
}

// Escape leaves everything as it is, unless nobody has said yet who answers.
element("who").addEventListener("close", () => {
  if (element("who").returnValue !== "begin") return reviewer ? undefined : ask();
  element("who").returnValue = "";
  const name = element("name").value.trim();
  if (!element("name").checkValidity()) return ask();
  reviewer = name;
  kept.set(NAME, reviewer);
  begin();
});
element("reviewer").addEventListener("click", ask);
element("image").addEventListener("load", () => {
  const image = element("image");
  image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
  image.hidden = false;
  seen();
});
element("image").addEventListener("error", explainImage);
element("undo").addEventListener("click", undo);
for (const button of document.querySelectorAll("[data-answer]")) {
  button.addEventListener("click", () => answer(button.dataset.answer, button.dataset.label || null));
}
document.addEventListener("keydown", (event) => {
  if (element("who").open || event.altKey || event.metaKey || event.repeat) return;
  if (event.ctrlKey ? event.key === "z" : event.key === "z" || event.key === "Backspace") {
    event.preventDefault();
    return undo();
  }
  if (event.ctrlKey) return;
  const classes = document.querySelectorAll(".classes button");
  const others = { n: "none_of_these", x: "unreadable", s: "skipped" };
  if (/^[1-9]$/.test(event.key) && classes[event.key - 1]) classes[event.key - 1].click();
  else if (others[event.key]) answer(others[event.key], null);
});
setInterval(() => { if (reviewer && item === null && !busy) begin(); }, 30000);

if (reviewer) begin();
else ask();
